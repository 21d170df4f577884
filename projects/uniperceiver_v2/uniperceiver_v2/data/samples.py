"""The types of samples, one for each kind of task: the output of its mapper and the input of its task.

Samples are plain dicts, as Detectron2's models take them. A key has the same meaning in all kinds. Shapes: H, W of the
transformed image; T tokens of a text, with ``<s>`` and ``</s>``. Keys that exist only in training or only in evaluation
are marked ``NotRequired``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

if TYPE_CHECKING:
    from typing import NotRequired  # Python 3.11


class ImageSample(TypedDict):
    """An image, for any kind of task.

    A model needs only "image", and "task" for all tasks but detection.
    """

    task: str  # the name of a task of the configuration, or of a kind
    image: Tensor  # uint8 or float [3,H,W] in INPUT.FORMAT
    height: int  # in pixels, of the image in the file
    width: int
    file_name: str
    image_id: Any  # int or str, from the dataset


class DetectionSample(ImageSample):
    """An image with objects and their masks."""

    candidates: tuple[str, ...]  # category names to choose from
    instances: NotRequired[Instances]  # training: gt_boxes in the transformed image, gt_classes, gt_masks
    # With a federated sample of categories, in training: how many images show each category, and which categories the
    # image may show more objects of than it annotates.
    category_images: NotRequired[tuple[int, ...]]
    unsure_categories: NotRequired[tuple[int, ...]]


class SegmentationSample(ImageSample):
    """An image that is divided into segments, of things and of stuff."""

    candidates: tuple[str, ...]  # names of categories to choose from
    is_stuff: tuple[bool, ...]  # of each of them
    instances: NotRequired[Instances]  # training: the segments, with gt_boxes, gt_classes, gt_masks
    segment_ids: NotRequired[np.ndarray]  # evaluation: int32 [H,W], in the file's image; 0 is no segment
    segments: NotRequired[list[dict[str, Any]]]  # evaluation: "id", "category_id", "iscrowd"


class GroundingSample(ImageSample):
    """Phrases, and the objects that each is true of: P phrases, N objects.

    In training, "instances" are all objects of the image that are known, those that no phrase means among them.
    """

    phrases: tuple[str, ...]
    instances: NotRequired[Instances]  # training: gt_boxes in the transformed image, gt_masks where they are known
    phrase_objects: NotRequired[Tensor]  # training: bool [P,N], which of the instances a phrase means, if any
    phrase_boxes: NotRequired[list[Tensor]]  # evaluation: float [n,4] of each phrase, absolute XYXY in the file's image


class ClassificationSample(ImageSample):
    """An image with one class."""

    candidates: tuple[str, ...]  # class names to choose from
    label: int  # index of the class among the candidates


class ClipSample(TypedDict):
    """A clip with one class: F frames of one size."""

    task: str
    frames: Tensor  # uint8 [F,3,H,W] in INPUT.FORMAT
    height: int  # of the clip in the file
    width: int
    file_name: str
    image_id: Any
    candidates: tuple[str, ...]
    label: int


class CaptionedSample(ImageSample):
    """An image with captions, for captioning and retrieval.

    Captioning and retrieval train on some of an image's captions. Captioning is evaluated with all of them, retrieval
    on the first five.
    """

    captions: list[str]
    caption_token_ids: NotRequired[list[Tensor]]  # int64 [T] for each caption; missing in the evaluation of captioning
    references: NotRequired[list[str]]  # training of captioning with CIDEr-D as a reward: all captions


class RegionSample(ImageSample):
    """An image with R regions, which captions describe."""

    regions: Tensor  # float [R,4], (x0, y0, x1, y1) in 0..1 of the image
    captions: NotRequired[list[str]]  # training: one of each region
    caption_token_ids: NotRequired[list[Tensor]]  # training: int64 [T] of each
    references: NotRequired[list[list[str]]]  # evaluation: all captions of each region


class QuestionSample(ImageSample):
    """An image with Q questions, which have the same C candidates as answers."""

    candidates: tuple[str, ...]  # answers to choose from
    questions: list[str]
    question_token_ids: list[Tensor]  # int64 [T] for each question
    answer_scores: NotRequired[Tensor]  # training: float [Q,C], how right each candidate is, in 0..1; not all are 0
    asked: NotRequired[list[dict[str, Any]]]  # evaluation: the entries of the questions in the record


class TextSample(TypedDict):
    """A text with hidden tokens, for language modelling."""

    task: str
    text_id: int
    token_ids: Tensor  # int64 [T], with hidden tokens replaced
    labels: Tensor  # int64 [T], the original token at each hidden one, NOT_PREDICTED elsewhere


NOT_PREDICTED = -100  # label of a token that is not hidden

Sample = (
    DetectionSample
    | GroundingSample
    | ClassificationSample
    | ClipSample
    | CaptionedSample
    | QuestionSample
    | RegionSample
    | SegmentationSample
    | TextSample
)
Samples = Sequence[Sample]
