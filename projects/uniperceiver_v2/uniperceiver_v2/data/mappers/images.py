"""Mappers of images: they turn a dataset's record into a model's input.

Shapes: H, W of the transformed image; N instances.

A mapper is a callable. It takes a record, does not change it, and returns a dict with "task", "image" (uint8 [3, H, W]
in ``cfg.INPUT.FORMAT``), "height" and "width" of the image in the file, "file_name" and "image_id". If there are
classes, it also has their names, "candidates". As in Detectron2, all random numbers come from NumPy's global generator.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from pycocotools import mask as mask_api

from ...errors import UnreadableImage
from ...reading import read_image
from ..datasets.records import Federation
from ..samples import ClassificationSample, DetectionSample, ImageSample
from .augmentations import BoundedResize, CenterCrop, RandomResizedCrop
from .copy_paste import paste_objects
from .rand_augment import RandAugment, RandomErasing

_SMALLEST_EDGE = 1e-5  # pixels; smaller boxes count as empty, as in Detectron2


class ImageMapper(ABC):
    """The base of all mappers of images: reads, transforms and describes an image.

    Args:
        task: the task's name in training, its kind in evaluation.
        candidates: the names of the classes in the order of the labels; None without classes.
        augmentations: augmentations of ``detectron2.data.transforms``.
        image_format: "RGB" or "BGR".
    """

    def __init__(
        self,
        task: str,
        candidates: Sequence[str] | None,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
    ):
        self._task = task
        self._classes = {} if candidates is None else {"candidates": tuple(candidates)}
        resizing = (T.ResizeShortestEdge, T.ResizeScale)
        bounded = [BoundedResize(a) if isinstance(a, resizing) else a for a in augmentations]
        self._augmentations = T.AugmentationList(bounded)
        self._image_format = image_format

    def __call__(self, record: dict) -> ImageSample:
        """
        Raises:
            UnreadableImage: the file cannot be used.
            UserError: the disk is at fault.
        """
        image = read_image(record, self._image_format)
        tensor, transforms = self._transform(image, record)
        sample = {**self._described(image, record), "image": tensor}
        self.add_targets(sample, record, transforms)
        return sample

    def _transform(self, image: np.ndarray, record: dict) -> tuple[torch.Tensor, T.TransformList]:
        """An image of a record for the model, and the transforms that made it. A refusal names the file."""
        try:
            return _transformed(image, self._augmentations_of(record))
        except UnreadableImage as error:
            raise UnreadableImage(f"{os.path.abspath(record['file_name'])}: {error}") from error

    def _described(self, image: np.ndarray, record: dict) -> dict[str, Any]:
        """What a sample says of a record and its image in the file."""
        return {
            "task": self._task,
            "height": image.shape[0],
            "width": image.shape[1],
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            **self._classes,
        }

    def view(self, image: np.ndarray) -> torch.Tensor:
        """An image uint8 [H, W, 3] in ``image_format`` as the mapper gives it to a model, uint8 [3, H', W'].

        Raises:
            UnreadableImage: it would become too large.
        """
        return _transformed(image, self._augmentations)[0]

    def _augmentations_of(self, record: dict) -> T.AugmentationList:
        """The augmentations of a record: all have the same, unless a mapper says otherwise."""
        return self._augmentations

    @abstractmethod
    def add_targets(self, sample: Any, record: dict, transforms: T.TransformList) -> None:
        """Add to ``sample`` the data to learn from or to compare with, if there are any."""


def _transformed(image: np.ndarray, augmentations: T.AugmentationList) -> tuple[torch.Tensor, T.TransformList]:
    augmented = T.AugInput(image)
    transforms = augmentations(augmented)
    return as_tensor(augmented.image), transforms


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """An image [H,W,3] as a tensor [3,H,W]."""
    # A copy, and not what numpy takes for contiguous: a mirrored image of one pixel keeps a negative stride there.
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


class DetectionMapper(ImageMapper):
    """Boxes and masks: adds "instances" in training, and nothing in evaluation.

    "instances" has gt_boxes (absolute XYXY in the transformed image), gt_classes [N] int64 and, with masks, gt_masks
    (``BitMasks`` [N, H, W]). Crowds, and objects outside the crop, are left out.

    With ``copy_paste``, a record has the key "another", with a second record.

    Args:
        cfg: the settings. ``INPUT`` decides how images are resized, cropped and flipped, as in Detectron2's own mapper.
            ``MODEL.MASK_ON`` decides whether there are masks.
        task, candidates: see :class:`ImageMapper`.
        is_train: whether images are augmented and have targets.
        jitter: (side, smallest, largest scale) of large-scale jitter in training, which takes the place of
            ``INPUT``'s sizes: an image is scaled to fit into a square of this side times a random scale, and what
            exceeds the square is cut off. None for ``INPUT``'s sizes.
        copy_paste: the probability that an image in training gets objects of another image.
        federation: adds "category_images" and "unsure_categories" in training; None adds neither.
    """

    def __init__(
        self,
        cfg: CfgNode,
        task: str,
        candidates: Sequence[str],
        is_train: bool,
        *,
        jitter: tuple[int, float, float] | None = None,
        copy_paste: float = 0.0,
        federation: Federation | None = None,
    ):
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if jitter is not None:
            side, smallest, largest = jitter
            # Without padding: the model pads a batch itself, and knows then what is no image.
            augmentations[:1] = [T.ResizeScale(smallest, largest, side, side), T.FixedSizeCrop((side, side), pad=False)]
        crop = cfg.INPUT.CROP
        self._cropped = is_train and (crop.ENABLED or jitter is not None)
        if is_train and crop.ENABLED:
            augmentations.insert(0, T.RandomCrop(crop.TYPE, crop.SIZE))
        super().__init__(task, candidates, augmentations, cfg.INPUT.FORMAT)
        self._is_train = is_train
        self._with_masks = cfg.MODEL.MASK_ON
        self._copy_paste = copy_paste
        self._federation = federation

    @property
    def takes_another(self) -> bool:
        """Whether a record needs the key "another"."""
        return self._copy_paste > 0

    def __call__(self, record: dict) -> DetectionSample:
        sample = super().__call__(record)
        if self.takes_another and np.random.uniform() < self._copy_paste:
            paste_objects(sample, super().__call__(record["another"]))
        return sample

    def add_targets(self, sample: DetectionSample, record: dict, transforms: T.TransformList) -> None:
        if not self._is_train:
            return
        annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        size = tuple(sample["image"].shape[1:])
        instances, keep = make_instances(annotations, transforms, size, self._with_masks, self._cropped)
        instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        sample["instances"] = instances if keep.all() else instances[keep]
        if self._federation is not None:
            sample["category_images"] = self._federation.image_counts
            sample["unsure_categories"] = self._federation.unsure(record)


def make_instances(
    annotations: list[dict],
    transforms: T.TransformList,
    size: tuple[int, int],
    with_masks: bool,
    cropped: bool = False,
) -> tuple[Instances, torch.Tensor]:
    """Boxes and masks after the transforms.

    Args:
        annotations: N of them, in Detectron2's format.
        transforms: of the image.
        size: (H, W) of the transformed image.
        with_masks: whether to make masks of their segmentations.
        cropped: whether the transforms cut something off.

    Returns:
        all N, with gt_boxes and maybe gt_masks; and which of them to keep, bool [N], as something is left of them.
    """
    height, width = size
    boxes = transforms.apply_box(_boxes_xyxy(annotations)).clip(min=0)
    boxes = Boxes(torch.from_numpy(np.minimum(boxes, [width, height, width, height])).float())
    keep = boxes.nonempty(threshold=_SMALLEST_EDGE)
    instances = Instances(size)
    if with_masks:
        masks = _masks([a["segmentation"] for a in annotations], transforms, size)
        instances.gt_masks = BitMasks(masks)
        keep &= instances.gt_masks.nonempty()
        if cropped:
            # A box that is cut by the crop may be larger than the visible part of its object. The mask's box is not.
            boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_boxes = boxes
    return instances, keep


def _boxes_xyxy(annotations: list[dict]) -> np.ndarray:
    """Absolute XYXY float64 [N, 4]. All annotations are converted at once if they have the same mode."""
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    modes = {a["bbox_mode"] for a in annotations}
    if len(modes) <= 1:
        return BoxMode.convert(boxes, modes.pop(), BoxMode.XYXY_ABS) if modes else boxes
    pairs = zip(boxes, annotations)
    return np.stack([BoxMode.convert(box[None], a["bbox_mode"], BoxMode.XYXY_ABS)[0] for box, a in pairs])


def _masks(segmentations: list, transforms: T.TransformList, size: tuple[int, int]) -> torch.Tensor:
    """Polygons or run-length encodings as bool [N, H, W] after the transforms.

    The masks are those of :func:`detection_utils.annotations_to_instances`. They are decoded together, which takes half
    the time.
    """
    encoded = []
    for segmentation in segmentations:
        if isinstance(segmentation, dict):
            mask = transforms.apply_segmentation(mask_api.decode(segmentation))
            encoded.append(mask_api.encode(np.asfortranarray(mask)))
        else:
            # By coordinates, as apply_polygons of a crop needs shapely. The rasteriser clips polygons to the image.
            polygons = [np.array(p, dtype=np.float64).reshape(-1, 2) for p in segmentation]
            flat = [transforms.apply_coords(polygon).reshape(-1) for polygon in polygons]
            encoded.append(mask_api.merge(mask_api.frPyObjects(flat, *size)))
    if not encoded:
        return torch.zeros((0, *size), dtype=torch.bool)
    return torch.from_numpy(np.ascontiguousarray(mask_api.decode(encoded).transpose(2, 0, 1))).bool()


class ClassificationMapper(ImageMapper):
    """Whole images: adds "label", the index of the class among the candidates.

    Training takes random resized crops, which it may flip, change by RandAugment and erase in part. Evaluation scales
    the image's shorter edge to ``image_size`` and takes the square at the centre.

    Args:
        task, candidates, image_format: see :class:`ImageMapper`.
        image_size: H = W in pixels.
        crop_scale: the smallest and the largest share of an image's area in a random crop; None in evaluation.
        flip: whether images are flipped with a probability of one half.
        rand_augment: the number and the magnitude of RandAugment's operations.
        erasing: the probability that a rectangle is erased.
    """

    makes_squares = True

    def __init__(
        self,
        task: str,
        candidates: Sequence[str],
        image_format: str,
        image_size: int,
        crop_scale: Sequence[float] | None = None,
        flip: bool = False,
        rand_augment: tuple[int, float] = (0, 0.0),
        erasing: float = 0.0,
    ):
        if crop_scale is None:
            augmentations = [T.ResizeShortestEdge(image_size), CenterCrop(image_size)]
        else:
            augmentations = [RandomResizedCrop(image_size, crop_scale)]
        if flip:
            augmentations.append(T.RandomFlip())
        if rand_augment[0]:
            augmentations.append(RandAugment(*rand_augment))
        if erasing:
            augmentations.append(RandomErasing(erasing))
        super().__init__(task, candidates, augmentations, image_format)

    def add_targets(self, sample: ClassificationSample, record: dict, transforms: T.TransformList) -> None:
        sample["label"] = record["label"]
