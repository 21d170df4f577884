"""Image classification: the whole image is compared with the class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ranks import sum_over_ranks
from .task import Task, log_accuracy, register_task

if TYPE_CHECKING:
    from ..image_encoder import ImageEncoding
    from ..meta_arch import UniPerceiverV2


@register_task("classification")
class ClassificationTask(Task):
    """Inputs: "image", "candidates", in training "label". Predictions: "scores" [C], the candidates' probabilities."""

    def losses(self, model: UniPerceiverV2, inputs: list[dict]) -> dict[str, Tensor]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        logits = self._logits(model, encoding, inputs)
        labels = torch.tensor([x["label"] for x in inputs], device=logits.device)
        hits = (logits.argmax(-1) == labels).sum()
        log_accuracy("label_accuracy", *sum_over_ranks(hits, torch.tensor(len(labels), device=hits.device)))
        aligned = model.likelihood(encoding.mean_global_token(), model.candidate_anchors(self.candidates(inputs)))
        smoothing = self.settings["LABEL_SMOOTHING"]
        return {
            "loss_label": F.cross_entropy(logits, labels, label_smoothing=smoothing),
            "loss_alignment": self.settings["ALIGNMENT_WEIGHT"]
            * F.cross_entropy(aligned, labels, label_smoothing=smoothing),
        }

    def predict(self, model: UniPerceiverV2, inputs: list[dict]) -> list[dict]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        return [{"scores": scores} for scores in self._logits(model, encoding, inputs).softmax(-1)]

    def _logits(self, model: UniPerceiverV2, encoding: ImageEncoding, inputs: list[dict]) -> Tensor:
        candidates = model.encode_candidates(self.candidates(inputs))
        return model.likelihood(model.decode_image(encoding), candidates)
