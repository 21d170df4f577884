"""Clips with a class: the mapper of video classification."""

from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T

from ...reading import read_frames
from ..samples import ClipSample
from .images import ClassificationMapper


class ClipMapper(ClassificationMapper):
    """Adds "frames", uint8 [F,3,H,W], in place of "image", and "label".

    All frames of a clip are cropped, and changed otherwise, alike.

    Args:
        frames: F, evenly spaced over the clip.
        others: those of :class:`ClassificationMapper`.
    """

    def __init__(self, *others: Any, frames: int, **more: Any):
        super().__init__(*others, **more)
        self._frames = frames

    def __call__(self, record: dict) -> ClipSample:
        frames = read_frames(record["video"], self._frames, self._image_format)
        first = T.AugInput(frames[0])
        transforms = self._augmentations(first)
        alike = np.stack([first.image, *(transforms.apply_image(frame) for frame in frames[1:])])
        return {
            "task": self._task,
            "frames": torch.from_numpy(np.ascontiguousarray(alike.transpose(0, 3, 1, 2))),
            "height": frames[0].shape[0],
            "width": frames[0].shape[1],
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "label": record["label"],
            **self._classes,
        }
