"""Images with captions of regions: the mapper of region captioning."""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from transformers import PreTrainedTokenizerBase

from ..datasets.texts import encode
from ..samples import RegionSample
from .captions import CaptionedImageMapper


class Region(NamedTuple):
    """A region, with its box in the file's image (x0, y0, x1, y1), in pixels."""

    box: tuple[float, ...]
    captions: list[str]


def regions_of(record: dict) -> list[Region]:
    """The regions of a record with phrases, in the order of its annotations. A phrase that means one object is a
    caption of its box; other phrases say nothing of one region."""
    captions: dict[int, list[str]] = {}
    for entry in record["phrases"]:
        if len(entry["objects"]) == 1:
            captions.setdefault(entry["objects"][0], []).append(entry["phrase"])
    annotations = record["annotations"]
    return [
        Region(
            tuple(BoxMode.convert(annotations[i]["bbox"], annotations[i]["bbox_mode"], BoxMode.XYXY_ABS)), captions[i]
        )
        for i in sorted(captions)
    ]


class RegionCaptionMapper(CaptionedImageMapper):
    """Adds "regions"; in training a caption of each, as "captions" and "caption_token_ids", in evaluation all captions
    as "references".

    Images have detection's sizes. Nothing is cropped or mirrored.

    Args:
        cfg, task, tokenizer: see the base class.
        is_train: whether to draw regions, and a caption of each.
        count: of regions to draw at random in training, where the image has as many.
    """

    def __init__(self, cfg: CfgNode, task: str, tokenizer: PreTrainedTokenizerBase, *, is_train: bool, count: int = 0):
        self.is_train = is_train
        super().__init__(cfg, task, tokenizer)
        self._count = count

    def add_targets(self, sample: RegionSample, record: dict, transforms: T.TransformList) -> None:
        regions = regions_of(record)
        if self.is_train:
            regions = [regions[index] for index in np.random.permutation(len(regions))[: self._count]]
            captions = [region.captions[np.random.randint(len(region.captions))] for region in regions]
            sample["captions"] = captions
            sample["caption_token_ids"] = [encode(self._tokenizer, caption) for caption in captions]
        else:
            sample["references"] = [region.captions for region in regions]
        boxes = torch.tensor([region.box for region in regions], dtype=torch.float32)
        sample["regions"] = boxes / torch.tensor([sample["width"], sample["height"]] * 2)
