"""Boxes in absolute coordinates: their formats, a container, and pairwise overlaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

RawBox = TypeVar("RawBox", list, tuple, np.ndarray, Tensor)


@unique
class BoxMode(IntEnum):
    """Formats of boxes. The values are integers, so that dataset dicts contain plain data only.

    ``XYXY_ABS`` is (x0, y0, x1, y1) and ``XYWH_ABS`` is (x0, y0, width, height), both in pixels. ``XYXY_REL`` and
    ``XYWH_REL`` are the same, relative to the image's size. ``XYWHA_ABS`` is a rotated box (centre x, centre y, width,
    height, degrees counter-clockwise). The last three have upstream's values, but :meth:`convert` does not support
    them.
    """

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: RawBox, from_mode: BoxMode, to_mode: BoxMode) -> RawBox:
        """Converts one box (list or tuple of 4) or many (array or tensor [N,4]) to another mode.

        Returns:
            Boxes of the same type as ``box``. The input is not changed. If the modes are equal, it is returned itself.

        Raises:
            AssertionError: a list or tuple is not a box, or a mode is relative.
            NotImplementedError: there is no conversion between these modes.
        """
        if from_mode == to_mode:
            return box
        relative = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
        assert from_mode not in relative and to_mode not in relative, "Relative box modes cannot be converted"
        if isinstance(box, (list, tuple)):
            assert len(box) in (4, 5), f"A box has 4 or 5 numbers, not {len(box)}"
            converted = _convert_corners(torch.tensor(box)[None], from_mode, to_mode)
            return type(box)(converted[0].tolist())
        if isinstance(box, np.ndarray):
            return _convert_corners(torch.from_numpy(box), from_mode, to_mode).numpy()
        return _convert_corners(box, from_mode, to_mode)


def _convert_corners(box: Tensor, from_mode: BoxMode, to_mode: BoxMode) -> Tensor:
    first, second = box[:, :2], box[:, 2:]
    if (from_mode, to_mode) == (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return torch.cat([first, first + second], dim=1)
    if (from_mode, to_mode) == (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return torch.cat([first, second - first], dim=1)
    raise NotImplementedError(f"Conversion from {from_mode!r} to {to_mode!r} is not supported")


class Boxes:
    """N axis-aligned boxes of one image.

    Attributes:
        tensor: float32 [N,4], rows (x0, y0, x1, y1) in pixels.
    """

    def __init__(self, tensor: Tensor | np.ndarray | Sequence):
        """Takes anything that can be converted to a tensor [N,4]. An empty input becomes [0,4].

        Raises:
            AssertionError: another shape.
        """
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32)
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2 and tensor.size(-1) == 4, f"Boxes need the shape [N,4], not {tuple(tensor.shape)}"
        self.tensor = tensor

    def clone(self) -> Boxes:
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        """The boxes on another device. The dtype is always float32."""
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def area(self) -> Tensor:
        """[N], in square pixels."""
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        return (x1 - x0) * (y1 - y0)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Moves coordinates outside of an image of ``box_size`` (height, width) to its border, in place.

        Raises:
            AssertionError: a coordinate is not finite.
        """
        assert torch.isfinite(self.tensor).all(), "Boxes have coordinates that are not finite"
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        clipped = (x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height))
        self.tensor = torch.stack(clipped, dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Bool [N]: whether both sides are longer than ``threshold`` pixels."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """Bool [N]: whether no side is more than ``boundary_threshold`` outside of (height, width)."""
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        low, right, bottom = -boundary_threshold, width + boundary_threshold, height + boundary_threshold
        return (x0 >= low) & (y0 >= low) & (x1 < right) & (y1 < bottom)

    def get_centers(self) -> Tensor:
        """The centres, [N,2] of (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiplies the coordinates in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __getitem__(self, item: int | slice | Tensor) -> Boxes:
        """The boxes at an index, a slice, a vector of indices or a bool vector [N]. The result may share storage."""
        chosen = self.tensor[item]
        if isinstance(item, int):
            chosen = chosen[None]
        assert chosen.dim() == 2, f"Indexing Boxes with {item} does not give boxes"
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Yields each box as a tensor [4]."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> Boxes:
        """All boxes of a list or tuple as one object with its own storage."""
        assert isinstance(boxes_list, (list, tuple)) and all(isinstance(boxes, Boxes) for boxes in boxes_list)
        if not boxes_list:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Areas [N,M] of the intersections of each of N boxes with each of M boxes."""
    top_left = torch.max(boxes1.tensor[:, None, :2], boxes2.tensor[:, :2])
    bottom_right = torch.min(boxes1.tensor[:, None, 2:], boxes2.tensor[:, 2:])
    return (bottom_right - top_left).clamp(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union [N,M] of each of N boxes with each of M boxes. It is 0 for boxes that do not overlap."""
    shared = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - shared
    return torch.where(shared > 0, shared / union, torch.zeros_like(shared))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over the area of the second box, [N,M]. It is 0 for boxes that do not overlap."""
    shared = pairwise_intersection(boxes1, boxes2)
    return torch.where(shared > 0, shared / boxes2.area(), torch.zeros_like(shared))
