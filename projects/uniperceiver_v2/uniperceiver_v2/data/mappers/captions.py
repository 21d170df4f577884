"""Images with captions: mappers of captioning and retrieval.

Samples are as in :mod:`.images`. Token ids are int64 [T], ``<s>`` and ``</s>`` included, T at most the text
encoder's length.
"""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from transformers import PreTrainedTokenizerBase

from ..datasets.texts import encode
from ..samples import CaptionedSample
from .images import ImageMapper

CAPTIONS_PER_IMAGE = 5  # of the Karpathy protocol


class _CaptionedImageMapper(ImageMapper):
    """Images at detection's sizes, never mirrored or cropped: captions say where things are and what is there.

    Args:
        cfg: its ``INPUT`` says how images are resized.
        task: the task's name in training, its kind in evaluation.
        tokenizer: of the text encoder, for mappers that give tokens.
    """

    is_train: bool

    def __init__(self, cfg: CfgNode, task: str, tokenizer: PreTrainedTokenizerBase | None = None):
        augmentations = detection_utils.build_augmentation(cfg, self.is_train)
        unmirrored = [augmentation for augmentation in augmentations if not isinstance(augmentation, T.RandomFlip)]
        super().__init__(task, None, unmirrored, cfg.INPUT.FORMAT)
        self._tokenizer = tokenizer


class CaptionMapper(_CaptionedImageMapper):
    """Training of captioning: adds "captions", some of the image's drawn at random, no one twice, and
    "caption_token_ids", a tensor for each.

    Args:
        count: of captions, where the image has as many.
    """

    is_train = True

    def __init__(self, cfg: CfgNode, task: str, tokenizer: PreTrainedTokenizerBase, count: int):
        super().__init__(cfg, task, tokenizer)
        self._count = count

    def add_targets(self, sample: CaptionedSample, record: dict, transforms: T.TransformList) -> None:
        drawn = np.random.permutation(len(record["captions"]))[: self._count]
        sample["captions"] = [record["captions"][index] for index in drawn]
        sample["caption_token_ids"] = [encode(self._tokenizer, caption) for caption in sample["captions"]]


class ReferenceMapper(_CaptionedImageMapper):
    """Evaluation of captioning: adds "captions", all that a generated one is compared with."""

    is_train = False

    def add_targets(self, sample: CaptionedSample, record: dict, transforms: T.TransformList) -> None:
        sample["captions"] = list(record["captions"])


class PairMapper(_CaptionedImageMapper):
    """Training of retrieval: adds "captions", one of the image's drawn at random, and its "caption_token_ids"."""

    is_train = True

    def add_targets(self, sample: CaptionedSample, record: dict, transforms: T.TransformList) -> None:
        sample["captions"] = [record["captions"][np.random.randint(len(record["captions"]))]]
        sample["caption_token_ids"] = [encode(self._tokenizer, sample["captions"][0])]


class RetrievalMapper(_CaptionedImageMapper):
    """Evaluation of retrieval: adds "captions", the image's first five, and "caption_token_ids", a tensor for each."""

    is_train = False

    def add_targets(self, sample: CaptionedSample, record: dict, transforms: T.TransformList) -> None:
        sample["captions"] = record["captions"][:CAPTIONS_PER_IMAGE]
        sample["caption_token_ids"] = [encode(self._tokenizer, caption) for caption in sample["captions"]]
