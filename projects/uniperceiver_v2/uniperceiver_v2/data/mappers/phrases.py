"""Images with phrases for their objects: the mapper of grounding."""

import re

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from ..samples import GroundingSample
from .images import ImageMapper, make_instances

# Words whose truth a mirror changes; RefCOCO's annotators also write "lft", "rt", "l" and "r".
_SIDES = re.compile(r"\b(?:left\w*|right\w*|lft|rgt|rght|rt|[lr])\b", re.IGNORECASE)


class GroundingMapper(ImageMapper):
    """Adds "phrases"; in training "instances" and "phrase_objects", in evaluation "phrase_boxes".

    Images have detection's sizes. Nothing is cropped, as a phrase may speak of what stands outside the crop. With
    ``INPUT.RANDOM_FLIP`` "horizontal" an image is mirrored only if none of its phrases says left or right; none is
    turned upside down. Crowds are no instances. A phrase is left out of training where nothing is left of the objects
    that it means, which is not the same as being true of nothing.

    Args:
        cfg: its ``INPUT`` says how images are resized, ``MODEL.MASK_ON`` whether there are masks. Instances of an image
            have masks only if all of them have a segmentation.
        task: see :class:`ImageMapper`.
        is_train: whether to augment and to give targets.
        count: of phrases to draw at random in training, where the image has as many.
    """

    def __init__(self, cfg: CfgNode, task: str, is_train: bool, count: int = 0):
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        unmirrored = [augmentation for augmentation in augmentations if not isinstance(augmentation, T.RandomFlip)]
        super().__init__(task, None, unmirrored, cfg.INPUT.FORMAT)
        self._mirrored = None
        if is_train and cfg.INPUT.RANDOM_FLIP == "horizontal":
            self._mirrored = T.AugmentationList([self._augmentations, T.RandomFlip()])
        self._is_train = is_train
        self._count = count
        self._with_masks = cfg.MODEL.MASK_ON

    def _augmentations_of(self, record: dict) -> T.AugmentationList:
        if self._mirrored is None or any(_SIDES.search(entry["phrase"]) for entry in record["phrases"]):
            return self._augmentations
        return self._mirrored

    def add_targets(self, sample: GroundingSample, record: dict, transforms: T.TransformList) -> None:
        if self._is_train:
            self._add_training_targets(sample, record, transforms)
            return
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]]
        table = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        sample["phrases"] = tuple(entry["phrase"] for entry in record["phrases"])
        sample["phrase_boxes"] = [table[list(entry["objects"])] for entry in record["phrases"]]

    def _add_training_targets(self, sample: GroundingSample, record: dict, transforms: T.TransformList) -> None:
        places = [i for i, a in enumerate(record["annotations"]) if not a.get("iscrowd", 0)]
        annotations = [record["annotations"][i] for i in places]
        with_masks = self._with_masks and all(a.get("segmentation") for a in annotations)
        size = tuple(sample["image"].shape[1:])
        instances, keep = make_instances(annotations, transforms, size, with_masks)
        kept = {places[i]: row for row, i in enumerate(keep.nonzero().flatten().tolist())}
        meant = [[kept[i] for i in entry["objects"] if i in kept] for entry in record["phrases"]]
        usable = [i for i, entry in enumerate(record["phrases"]) if meant[i] or not entry["objects"]]
        drawn = [usable[i] for i in np.random.permutation(len(usable))[: self._count]]
        objects = torch.zeros(len(drawn), len(kept), dtype=torch.bool)
        for row, phrase in enumerate(drawn):
            objects[row, meant[phrase]] = True
        sample["instances"] = instances if keep.all() else instances[keep]
        sample["phrases"] = tuple(record["phrases"][i]["phrase"] for i in drawn)
        sample["phrase_objects"] = objects
