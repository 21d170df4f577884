"""Images that are divided into segments: the mapper of segmentation."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from ..datasets.segments import read_segments
from ..samples import SegmentationSample
from .images import ImageMapper


class SegmentationMapper(ImageMapper):
    """Adds "is_stuff"; in training "instances", in evaluation "segment_ids" and "segments".

    An instance is a segment, of a thing or of stuff. Crowds are no instances. Images have detection's sizes, flips and
    crops.

    Args:
        cfg: its ``INPUT`` says how images are resized, flipped and cropped.
        task, candidates: see :class:`ImageMapper`.
        is_stuff: of each of the C candidates.
        is_train: whether to augment and to give instances.
    """

    def __init__(self, cfg: CfgNode, task: str, candidates: Sequence[str], is_stuff: Sequence[bool], is_train: bool):
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        super().__init__(task, candidates, augmentations, cfg.INPUT.FORMAT)
        self._is_stuff = tuple(is_stuff)
        self._is_train = is_train

    def add_targets(self, sample: SegmentationSample, record: dict, transforms: T.TransformList) -> None:
        sample["is_stuff"] = self._is_stuff
        ids, segments = read_segments(record)
        if not self._is_train:
            sample["segment_ids"], sample["segments"] = ids, segments
            return
        learned = [segment for segment in segments if not segment["iscrowd"]]
        masks = [transforms.apply_segmentation((ids == s["id"]).astype(np.uint8)) for s in learned]
        size = tuple(sample["image"].shape[1:])
        stacked = torch.from_numpy(np.stack(masks)).bool() if masks else torch.zeros((0, *size), dtype=torch.bool)
        instances = Instances(size, gt_masks=BitMasks(stacked))
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances.gt_classes = torch.tensor([segment["category_id"] for segment in learned], dtype=torch.int64)
        sample["instances"] = instances[instances.gt_masks.nonempty()]
