"""Image classification: the whole image is compared with the class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from detectron2.utils.events import get_event_storage
from torch import Tensor

from .task import Task, register_task

if TYPE_CHECKING:
    from ..meta_arch import UniPerceiverV2


@register_task("classification")
class ClassificationTask(Task):
    """Inputs: "image", "candidates", in training "label". Predictions: "scores" [C], the candidates' probabilities."""

    def losses(self, model: UniPerceiverV2, inputs: list[dict]) -> dict[str, Tensor]:
        logits = self._logits(model, inputs)
        labels = torch.tensor([x["label"] for x in inputs], device=logits.device)
        get_event_storage().put_scalar("label_accuracy", (logits.argmax(-1) == labels).float().mean().item())
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings["LABEL_SMOOTHING"])
        return {"loss_label": loss}

    def predict(self, model: UniPerceiverV2, inputs: list[dict]) -> list[dict]:
        return [{"scores": scores} for scores in self._logits(model, inputs).softmax(-1)]

    def _logits(self, model: UniPerceiverV2, inputs: list[dict]) -> Tensor:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        candidates = model.candidates.get(self.candidates(inputs))
        return model.likelihood(model.decode_image(encoding), candidates)
