"""Images with captions: mappers of captioning and retrieval.

Samples are as in :mod:`.images`. Token ids are int64 [T], with ``<s>`` and ``</s>``. T is at most the text encoder's
length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from transformers import PreTrainedTokenizerBase

from ..datasets.texts import encode
from ..samples import CaptionedSample
from .augmentations import RandomResizedCrop
from .images import ImageMapper

CAPTIONS_PER_IMAGE = 5  # in the Karpathy protocol


class CaptionedImageMapper(ImageMapper):
    """Images in detection's sizes, or squares. They are never mirrored, as captions say left and right.

    In detection's sizes nothing is cropped either. Squares are random resized crops in training. In evaluation they are
    whole images, as a caption may name what stands at the border: their sides are scaled to one length.

    Args:
        cfg: the settings. ``INPUT`` decides the sizes of images that do not become squares.
        task: the task's name in training, its kind in evaluation.
        tokenizer: the text encoder's tokenizer, for mappers that add tokens.
        square: the side of the squares in pixels; 0 for detection's sizes.
        crop_scale: in training, the smallest and the largest share of an image's area in a square.
    """

    is_train: bool

    def __init__(
        self,
        cfg: CfgNode,
        task: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        square: int = 0,
        crop_scale: Sequence[float] = (1.0, 1.0),
    ):
        if square:
            augmentations = [RandomResizedCrop(square, crop_scale) if self.is_train else T.Resize(square)]
        else:
            augmentations = detection_utils.build_augmentation(cfg, self.is_train)
        unmirrored = [augmentation for augmentation in augmentations if not isinstance(augmentation, T.RandomFlip)]
        super().__init__(task, None, unmirrored, cfg.INPUT.FORMAT)
        self._tokenizer = tokenizer
        self.makes_squares = square > 0


class CaptionMapper(CaptionedImageMapper):
    """Training of captioning: adds "captions", different random ones of the image's, and "caption_token_ids", a tensor
    for each.

    Args:
        count: the number of captions. An image with fewer captions gives all of them.
        references: whether to add "references", all captions of the image.
        sizes: ``square`` and ``crop_scale`` of the base class.
    """

    is_train = True

    def __init__(
        self,
        cfg: CfgNode,
        task: str,
        tokenizer: PreTrainedTokenizerBase,
        count: int,
        *,
        references: bool = False,
        **sizes: Any,
    ):
        super().__init__(cfg, task, tokenizer, **sizes)
        self._count, self._references = count, references

    def add_targets(self, sample: CaptionedSample, record: dict, transforms: T.TransformList) -> None:
        drawn = np.random.permutation(len(record["captions"]))[: self._count]
        sample["captions"] = [record["captions"][index] for index in drawn]
        sample["caption_token_ids"] = [encode(self._tokenizer, caption) for caption in sample["captions"]]
        if self._references:
            sample["references"] = list(record["captions"])


class ReferenceMapper(CaptionedImageMapper):
    """Evaluation of captioning: adds "captions", all references of the image."""

    is_train = False

    def add_targets(self, sample: CaptionedSample, record: dict, transforms: T.TransformList) -> None:
        sample["captions"] = list(record["captions"])


class PairMapper(CaptionedImageMapper):
    """Training of retrieval: adds "captions", random ones of the image's, and "caption_token_ids", a tensor for each.

    Args:
        count: the number of captions. They are different, unless the image has fewer. Then some are repeated, as all
            images of a batch need the same number.
        sizes: ``square`` and ``crop_scale`` of the base class.
    """

    is_train = True

    def __init__(self, cfg: CfgNode, task: str, tokenizer: PreTrainedTokenizerBase, count: int = 1, **sizes: Any):
        super().__init__(cfg, task, tokenizer, **sizes)
        self._count = count

    def add_targets(self, sample: CaptionedSample, record: dict, transforms: T.TransformList) -> None:
        drawn = np.resize(np.random.permutation(len(record["captions"])), self._count)
        sample["captions"] = [record["captions"][index] for index in drawn]
        sample["caption_token_ids"] = [encode(self._tokenizer, caption) for caption in sample["captions"]]


class RetrievalMapper(CaptionedImageMapper):
    """Evaluation of retrieval: adds "captions", the image's first five, and "caption_token_ids", a tensor for each."""

    is_train = False

    def add_targets(self, sample: CaptionedSample, record: dict, transforms: T.TransformList) -> None:
        sample["captions"] = record["captions"][:CAPTIONS_PER_IMAGE]
        sample["caption_token_ids"] = [encode(self._tokenizer, caption) for caption in sample["captions"]]
