"""Image classification: the whole image is compared with the class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ranks import sum_over_ranks
from .task import Task, log_accuracy, register_task

if TYPE_CHECKING:
    from ..modeling.model import UniPerceiver


@register_task("classification")
class ClassificationTask(Task):
    """Inputs: "image", "candidates", in training "label". Predictions: "scores" [C], the candidates' probabilities."""

    def losses(self, model: UniPerceiver, inputs: list[dict]) -> dict[str, Tensor]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        candidates, anchors = model.encode_candidates_and_anchors(self.candidates(inputs))
        logits = model.likelihood.of_directions(model.decode_image(encoding), candidates)
        labels = torch.tensor([x["label"] for x in inputs], device=logits.device)
        hits = (logits.argmax(-1) == labels).sum()
        log_accuracy("label_accuracy", *sum_over_ranks(hits, torch.tensor(len(labels), device=hits.device)))
        aligned = model.likelihood(encoding.mean_global_token(), anchors)
        smoothing = self.settings["LABEL_SMOOTHING"]
        return {
            "loss_label": F.cross_entropy(logits, labels, label_smoothing=smoothing),
            "loss_alignment": self.settings["ALIGNMENT_WEIGHT"]
            * F.cross_entropy(aligned, labels, label_smoothing=smoothing),
        }

    def predict(self, model: UniPerceiver, inputs: list[dict]) -> list[dict]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        candidates = model.encode_candidates(self.candidates(inputs))
        logits = model.likelihood.of_directions(model.decode_image(encoding), candidates)
        return [{"scores": scores} for scores in logits.softmax(-1)]
