"""What the specialists share: their description, their images, and the backbone of most of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from transformers import ResNetConfig

NUM_CLASSES = 10  # of the digits
BEST_OF_IMAGE = 100  # instances, at most


@dataclass(frozen=True)
class Specialist:
    """A model for one task alone, with Detectron2's interface.

    In training mode it takes a batch of the task's samples and returns the loss, a scalar. In evaluation mode it
    returns a prediction for each sample, in the form that the task's evaluators take.

    Attributes:
        task: the task of the small generalist with the same training data.
        tests: {test dataset: {name of a figure: (kind of result, key)}}.
        build: makes the model with random weights, from the settings of the small generalist.
        rate: the largest learning rate, chosen on the development tree.
        pace: iterations a second of one thread, on the machine on which `make train` takes 0.55 s for one of its own.
        weight_decay: of AdamW.
        clip: the largest norm of a gradient.
        settings: settings that differ from the generalist's, such as the size of a batch.
        any_size: whether it takes images of another size than that of its training. It is then tested at the
            generalist's size of tests as well.
        needs: a module that not every installation has.
    """

    task: str
    tests: Mapping[str, Mapping[str, tuple[str, str]]]
    build: Callable[[CfgNode], nn.Module]
    rate: float
    pace: float
    weight_decay: float = 0.01
    clip: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    any_size: bool = False
    needs: str = "torch"

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


class Pixels(nn.Module):
    """The images of a batch as normalised values [B,3,H,W]. All of them have one size, as those of digit_scenes."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.register_buffer("mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1))

    def forward(self, inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        return (torch.stack([x["image"] for x in inputs]).float() - self.mean) / self.std


def resnet_config(*stages: str, **fields: Any) -> ResNetConfig:
    """A ResNet-18 with the widths of the generalist's backbone. ``stages`` are the maps that it returns."""
    widths = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}
    return ResNetConfig(**{"layer_type": "basic", **widths, "out_features": list(stages) or None, **fields})


def best_instances(scores: Tensor, size: tuple[int, int], pred_boxes: Boxes, **fields: Tensor) -> Instances:
    """The best pairs of query and class, best first.

    Args:
        scores: [Q,C].
        size: (height, width) of the image.
        pred_boxes: of the Q queries, in pixels.
        fields: further ones of the queries, [Q,...].
    """
    best, flat = scores.flatten().topk(min(BEST_OF_IMAGE, scores.numel()))
    query, classes = flat // scores.shape[1], flat % scores.shape[1]
    found = Instances(size, pred_boxes=pred_boxes, **fields)[query]
    found.scores, found.pred_classes = best, classes
    found.pred_boxes.clip(size)
    return found
