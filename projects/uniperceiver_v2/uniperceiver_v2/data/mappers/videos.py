"""Clips with a class: the mapper of video classification."""

from typing import Any

import torch

from ...reading import read_frames
from ..samples import ClipSample
from .images import ClassificationMapper, as_tensor


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
        first, transforms = self._transform(frames[0], record)
        alike = [first, *(as_tensor(transforms.apply_image(frame)) for frame in frames[1:])]
        return {**self._described(frames[0], record), "frames": torch.stack(alike), "label": record["label"]}
