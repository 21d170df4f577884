"""What a mapper gives and a task takes, one type a kind. All of them are plain dicts, as Detectron2's models take them.

A name means one thing in all kinds. Shapes: H, W of the transformed image; T tokens of a text, ``<s>`` and ``</s>``
included. Keys that only training or only evaluation has are marked ``NotRequired``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from detectron2.structures import Instances
from torch import Tensor

if TYPE_CHECKING:
    from typing import NotRequired  # Python 3.11


class ImageSample(TypedDict):
    """An image, of whatever kind of task.

    Of these, a model needs "image" alone, and "task" for all tasks but detection.
    """

    task: str  # name of a task of the configuration, or of a kind
    image: Tensor  # uint8 or float [3,H,W] in INPUT.FORMAT
    height: int  # of the image in the file, in pixels
    width: int
    file_name: str
    image_id: Any  # int or str, as the dataset has it


class DetectionSample(ImageSample):
    """Objects with masks."""

    candidates: tuple[str, ...]  # category names to choose from
    instances: NotRequired[Instances]  # training: gt_boxes in the transformed image, gt_classes, gt_masks


class ClassificationSample(ImageSample):
    """One class for the whole image."""

    candidates: tuple[str, ...]  # class names to choose from
    label: int  # index of the class among the candidates


class CaptionedSample(ImageSample):
    """An image with captions: captioning and retrieval.

    Captioning trains on some captions of an image and is evaluated against all; retrieval trains on one of them and is
    evaluated on the first five.
    """

    captions: list[str]
    caption_token_ids: NotRequired[list[Tensor]]  # int64 [T] of each caption; not in evaluation of captioning


class TextSample(TypedDict):
    """A text some of whose tokens are hidden: language modelling."""

    task: str
    text_id: int
    token_ids: Tensor  # int64 [T], with hidden tokens replaced
    labels: Tensor  # int64 [T], the token behind each hidden one, NOT_PREDICTED elsewhere


NOT_PREDICTED = -100  # label of a token that is not hidden

Sample = DetectionSample | ClassificationSample | CaptionedSample | TextSample
Samples = Sequence[Sample]
