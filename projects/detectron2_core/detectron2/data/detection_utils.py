"""The steps of a mapper: read an image, transform annotations, make ``Instances`` from them."""

import logging
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps

from . import transforms as T
from .catalog import MetadataCatalog

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "build_augmentation",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "get_bbox",
    "read_image",
    "transform_instance_annotations",
]

logger = logging.getLogger(__name__)

# Without EPS, for which Pillow starts Ghostscript. Pillow recognises it by the content, not by the suffix.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")

# BT.601, https://en.wikipedia.org/wiki/YUV#SDTV_with_BT.601
_RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


class SizeMismatchError(ValueError):
    """An image's size differs from its annotations'."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """A Pillow image as an array [H, W, C] in ``format``; see :func:`read_image`."""
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    pixels = np.asarray(image)
    if format == "L":
        return pixels[:, :, None]
    if format == "BGR":
        return pixels[:, :, ::-1]
    if format == "YUV-BT.601":
        return (pixels / 255.0) @ _RGB_TO_YUV.T
    return pixels


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Converts an image [H, W, C] from a format of :func:`read_image` to RGB [H, W, 3] in 0..255, uint8 or float."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, ::-1]
    if format == "YUV-BT.601":
        return image @ _YUV_TO_RGB.T * 255.0
    pixels = image.astype(np.uint8)
    if format == "L":
        return np.repeat(pixels, 3, axis=2)
    if format == "RGB":
        return pixels
    height, width = pixels.shape[:2]
    picture = Image.frombytes(format, (width, height), np.ascontiguousarray(pixels).tobytes())
    return np.asarray(picture.convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image and rotate it as its EXIF orientation says.

    Only common formats are read. EPS, for example, would start a program.

    Args:
        file_name: a path, or anything else that ``PathManager`` opens.
        format: a mode of Pillow ("RGB", "L", ...), "BGR" or "YUV-BT.601". None keeps the file's own mode.

    Returns:
        [H, W, C] uint8 in 0..255. For "YUV-BT.601" it is float, with luma in 0..1.
    """
    with PathManager.open(file_name, "rb") as file:
        image = Image.open(file, formats=_FORMATS)
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        except Exception:  # a broken EXIF block does not make the image unreadable
            turned = False
        return convert_PIL_to_numpy(ImageOps.exif_transpose(image) if turned else image, format)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare an image [H, W, C] with the dict's "width" and "height". Sets those that are missing.

    Raises:
        SizeMismatchError: they differ.
    """
    if "width" in dataset_dict or "height" in dataset_dict:
        found = (image.shape[1], image.shape[0])
        expected = (dataset_dict["width"], dataset_dict["height"])
        if found != expected:
            named = f" for image {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
            raise SizeMismatchError(
                f"Mismatched image shape{named}, got {found}, expect {expected}. "
                "Please check the width/height in your annotation."
            )
    dataset_dict.setdefault("width", image.shape[1])
    dataset_dict.setdefault("height", image.shape[0])


def get_bbox(annotation: dict) -> Sequence[float]:
    """The annotation's box as x1, y1, x2, y2 in pixels."""
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _no_keypoints(wanted: bool) -> None:
    if wanted:
        raise NotImplementedError("detectron2-core has no keypoints: install upstream Detectron2 for them")


def transform_instance_annotations(
    annotation: dict, transforms, image_size: tuple[int, int], *, keypoint_hflip_indices=None
) -> dict:
    """Apply transforms to one instance's "bbox" and "segmentation".

    Args:
        annotation: an annotation, which is changed in place. A segmentation is a list of polygons or a COCO run-length
            encoding.
        transforms: a ``TransformList`` or a list of transforms.
        image_size: (height, width) of the transformed image.
        keypoint_hflip_indices: must be None, as keypoints need upstream.

    Returns:
        ``annotation``. Its box is absolute XYXY, clipped to the image. Polygons are flat. An RLE has become a mask [H,
        W].

    Raises:
        ValueError: the segmentation has another type.
    """
    _no_keypoints("keypoints" in annotation or keypoint_hflip_indices is not None)
    if isinstance(transforms, tuple | list):
        transforms = T.TransformList(transforms)
    height, width = image_size
    box = transforms.apply_box(np.array([get_bbox(annotation)], dtype=np.float64))[0]
    annotation["bbox"] = np.minimum(box.clip(min=0), [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    return annotation


def _transform_segmentation(segmentation, transforms: T.TransformList, image_size: tuple[int, int]):
    if isinstance(segmentation, list):
        # A copy, as transforms of coordinates work in place.
        polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        assert tuple(mask.shape[:2]) == tuple(image_size), (mask.shape, image_size)
        return mask
    raise ValueError(
        f"Cannot transform segmentation of type '{type(segmentation)}'! Supported types are: polygons as "
        "list[list[float] or ndarray], COCO-style RLE as a dict."
    )


def annotations_to_instances(annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon") -> Instances:
    """The training targets of one image.

    Args:
        annos: the annotations of N instances. Masks are made if the first one has a "segmentation".
        image_size: (height, width) in pixels.
        mask_format: "polygon" for ``PolygonMasks``, "bitmask" for ``BitMasks``. "bitmask" takes polygons, run-length
            encodings and masks [H, W].

    Returns:
        ``gt_boxes`` (absolute XYXY), ``gt_classes`` [N] int64 and, with segmentations, ``gt_masks``.

    Raises:
        ValueError: a segmentation cannot be converted to ``mask_format``.
    """
    target = Instances(image_size)
    boxes = np.stack([get_bbox(anno) for anno in annos]) if annos else np.zeros((0, 4))
    target.gt_boxes = Boxes(boxes)
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    if not annos:
        return target
    _no_keypoints("keypoints" in annos[0])
    if "segmentation" in annos[0]:
        segmentations = [anno["segmentation"] for anno in annos]
        if mask_format == "polygon":
            try:
                target.gt_masks = PolygonMasks(segmentations)
            except ValueError as error:
                raise ValueError("Failed to use mask_format=='polygon' from the given annotations!") from error
        else:
            assert mask_format == "bitmask", mask_format
            bitmaps = [_to_bitmap(segmentation, image_size) for segmentation in segmentations]
            target.gt_masks = BitMasks(torch.from_numpy(np.stack(bitmaps)))
    return target


def _to_bitmap(segmentation, image_size: tuple[int, int]) -> np.ndarray:
    """A segmentation of any supported type as a mask [H, W]."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    if isinstance(segmentation, np.ndarray):
        assert segmentation.ndim == 2, f"Expect segmentation of 2 dimensions, got {segmentation.ndim}."
        return segmentation
    raise ValueError(
        f"Cannot convert segmentation of type '{type(segmentation)}' to BitMasks! Supported types are: "
        "polygons as list[list[float] or ndarray], COCO-style RLE as a dict, or a binary mask in a 2D numpy "
        "array of shape HxW."
    )


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
):
    """Leave out an instance if a side of its box is not longer than ``box_threshold``, or if its mask is empty.

    Returns:
        The remaining ``Instances``. With ``return_mask`` also a bool tensor [N] that marks them.
    """
    assert by_box or by_mask
    keep = torch.ones(len(instances), dtype=torch.bool, device=instances.gt_boxes.device)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict
) -> T.CropTransform:
    """Draw a crop that contains the centre of an instance's box.

    Args:
        crop_size, image_size: (height, width) in pixels.
        instance: an annotation with "bbox" and "bbox_mode".
    """
    crop, size = np.asarray(crop_size, dtype=np.int32), np.asarray(image_size, dtype=np.int32)
    x1, y1, x2, y2 = get_bbox(instance)
    center_yx = np.array([(y1 + y2) * 0.5, (x1 + x2) * 0.5])
    assert (size >= center_yx).all(), "The annotation bounding box is outside of the image!"
    assert (size >= crop).all(), "Crop size is larger than image size!"
    lowest = np.maximum(np.floor(center_yx).astype(np.int32) - crop, 0)
    highest = np.minimum(np.maximum(size - crop, 0), np.ceil(center_yx).astype(np.int32))
    y0 = np.random.randint(lowest[0], highest[0] + 1)
    x0 = np.random.randint(lowest[1], highest[1] + 1)
    return T.CropTransform(x0, y0, int(crop[1]), int(crop[0]))


def check_metadata_consistency(key: str, dataset_names: list[str]) -> None:
    """Check that datasets have the same value of an attribute of their metadata.

    Raises:
        AttributeError: a dataset has no such attribute.
        ValueError: two datasets have different values.
    """
    entries = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, entry in zip(dataset_names, entries, strict=True):
        if entry != entries[0]:
            logger.error("Metadata '%s' for dataset '%s' is '%s'", key, name, entry)
            logger.error("Metadata '%s' for dataset '%s' is '%s'", key, dataset_names[0], entries[0])
            raise ValueError(f"Datasets have different metadata '{key}'!")


def build_augmentation(cfg, is_train: bool) -> list[T.Augmentation]:
    """Resizing, and in training flips, by the settings of ``cfg.INPUT``."""
    if is_train:
        resize = T.ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    else:
        resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")
    if not is_train or cfg.INPUT.RANDOM_FLIP == "none":
        return [resize]
    way = cfg.INPUT.RANDOM_FLIP
    return [resize, T.RandomFlip(horizontal=way == "horizontal", vertical=way == "vertical")]
