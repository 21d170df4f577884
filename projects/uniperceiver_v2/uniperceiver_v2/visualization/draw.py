"""Detections and annotations drawn on an image, large enough to be read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

# Names and scores need room: images are scaled up by a whole number to at least this many pixels a side.
LEGIBLE_SIZE = 384


def draw_detections(
    image: np.ndarray, instances: Instances, names: Sequence[str], score_threshold: float = 0.3
) -> np.ndarray:
    """Draw masks, boxes, names and scores.

    Args:
        image: uint8 [H,W,3], RGB.
        instances: ``pred_boxes``, ``pred_classes``, ``scores`` and, if there are any, ``pred_masks``, in the
            image's pixels and on any device.
        names: of the categories that ``pred_classes`` counts.
        score_threshold: detections with a lower score are left out.

    Returns:
        uint8 [s·H, s·W, 3], RGB, s the whole number that makes the picture legible.
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
        names: of the categories that ``category_id`` counts.

    Returns:
        as :func:`draw_detections`.
    """
    return _visualizer(image, names).draw_dataset_dict(record).get_image()


def enlarged(image: np.ndarray) -> np.ndarray:
    """An image with nothing drawn on it, in the size of one with detections: uint8 [H,W,3] to [s·H, s·W, 3]."""
    scale = _scale(image)
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _visualizer(image: np.ndarray, names: Sequence[str]) -> Visualizer:
    return Visualizer(image, Metadata(thing_classes=list(names)), scale=_scale(image))


def _scale(image: np.ndarray) -> int:
    return max(1, -(-LEGIBLE_SIZE // min(image.shape[:2])))
