"""Draws detections and annotations on an image that is enlarged until they are legible."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

# Images are scaled up by a whole number until their shorter side has this many pixels, so that names are legible.
LEGIBLE_SIZE = 384


def draw_detections(
    image: np.ndarray, instances: Instances, names: Sequence[str], score_threshold: float = 0.3
) -> np.ndarray:
    """Draw masks, boxes, names and scores.

    Args:
        image: uint8 [H,W,3], RGB.
        instances: ``pred_boxes``, ``pred_classes``, ``scores`` and optionally ``pred_masks``, in pixels of the image,
            on any device.
        names: the names of the categories; ``pred_classes`` are indices into it.
        score_threshold: detections with a lower score are left out.

    Returns:
        uint8 [s·H, s·W, 3], RGB. s is the whole number that makes the shorter side at least ``LEGIBLE_SIZE`` pixels.
    """
    kept = instances.to("cpu")
    kept = kept[kept.scores >= score_threshold]
    visualizer = _visualizer(image, names)
    return visualizer.draw_instance_predictions(kept).get_image()


def draw_annotations(image: np.ndarray, record: dict[str, Any], names: Sequence[str]) -> np.ndarray:
    """Draw a dataset's annotations of an image.

    Args:
        image: uint8 [H,W,3], RGB.
        record: the image's dict in Detectron2's dataset format.
        names: the names of the categories; ``category_id`` is an index into it.

    Returns:
        as :func:`draw_detections`.
    """
    return _visualizer(image, names).draw_dataset_dict(record).get_image()


def enlarged(image: np.ndarray) -> np.ndarray:
    """An image with nothing drawn on it, as large as one with detections: uint8 [H,W,3] to [s·H, s·W, 3]."""
    scale = _scale(image)
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _visualizer(image: np.ndarray, names: Sequence[str]) -> Visualizer:
    return Visualizer(image, Metadata(thing_classes=list(names)), scale=_scale(image))


def _scale(image: np.ndarray) -> int:
    return max(1, -(-LEGIBLE_SIZE // min(image.shape[:2])))
