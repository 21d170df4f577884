"""Masks of the instances of one image, as bitmaps or as polygons."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from .boxes import Boxes


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """The area of the polygon with corners (x[i], y[i]), by the shoelace formula."""
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of polygons (each [x0,y0,x1,y1,...]), rasterised by the COCO API, as bool [height,width]."""
    if len(polygons) == 0:  # the COCO API does not accept an empty list
        return np.zeros((height, width), dtype=bool)
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))).astype(bool)


class BitMasks:
    """N masks as bitmaps.

    Attributes:
        tensor: bool [N,H,W].
        image_size: (H, W).
    """

    def __init__(self, tensor: Tensor | np.ndarray):
        """Takes anything that can be converted to a tensor [N,H,W]. Values other than 0 are inside the mask.

        Raises:
            AssertionError: the number of dimensions is not 3.
        """
        tensor = tensor.to(torch.bool) if isinstance(tensor, Tensor) else torch.as_tensor(tensor, dtype=torch.bool)
        assert tensor.dim() == 3, f"BitMasks need the shape [N,H,W], not {tuple(tensor.shape)}"
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    def to(self, *args, **kwargs) -> BitMasks:
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> BitMasks:
        """The masks at an index, a slice, a vector of indices or a bool vector [N]. The result may share storage."""
        chosen = self.tensor[item]
        if isinstance(item, int):
            chosen = chosen[None]
        assert chosen.dim() == 3, f"Indexing BitMasks with {item} does not give masks"
        return BitMasks(chosen)

    def __iter__(self) -> Iterator[Tensor]:
        """Yields each mask as a tensor [H,W]."""
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        """Bool [N]: whether the mask has any pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int) -> BitMasks:
        """A bitmap of (height, width) for each instance, from its polygons."""
        bitmaps = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        return BitMasks(np.stack(bitmaps) if bitmaps else np.zeros((0, height, width), dtype=bool))

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes on the CPU, from the first pixel's left and top to the last one's right and bottom.

        A mask without pixels has the box (0, 0, 0, 0).
        """
        x0, x1 = _extent(self.tensor.any(dim=1))
        y0, y1 = _extent(self.tensor.any(dim=2))
        return Boxes(torch.stack([x0, y0, x1, y1], dim=1).float().cpu())

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> BitMasks:
        """All masks of a list or tuple, which is not empty, in one object."""
        assert isinstance(bitmasks_list, (list, tuple)) and len(bitmasks_list) > 0
        assert all(isinstance(masks, BitMasks) for masks in bitmasks_list)
        return type(bitmasks_list[0])(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """The first occupied position and the last one + 1 in each row of [N,L]. Both are 0 in an empty row."""
    position = torch.arange(1, occupied.shape[1] + 1, device=occupied.device)
    last = (occupied * position).amax(dim=1)
    first = occupied.shape[1] - (occupied * position.flip(0)).amax(dim=1)
    return torch.where(last > 0, first, 0), last


class PolygonMasks:
    """N masks, each a list of polygons. They are always on the CPU, even after ``to``.

    Attributes:
        polygons: a list of polygons for each instance. A polygon is float64 [x0,y0,x1,y1,...] in pixels.
    """

    def __init__(self, polygons: list[list[Tensor | np.ndarray | list[float]]]):
        """
        Raises:
            ValueError: the input is not a list of lists, or a polygon has fewer than three corners or an odd number of
                coordinates.
        """
        if not isinstance(polygons, list):
            raise ValueError(f"PolygonMasks need a list (instances) of lists (polygons), not {type(polygons)}")
        self.polygons = [_checked_polygons(instance) for instance in polygons]

    def to(self, *args, **kwargs) -> PolygonMasks:
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes around the corners of each instance. It is (0, 0, 0, 0) for an instance without polygons."""
        boxes = torch.zeros(len(self), 4)
        for row, polygons in zip(boxes, self.polygons, strict=True):
            if not polygons:
                continue
            corners = torch.from_numpy(np.concatenate(polygons)).reshape(-1, 2)
            row[:2], row[2:] = corners.amin(dim=0), corners.amax(dim=0)
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """Bool [N]: whether the instance has any polygon."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PolygonMasks:
        """The masks at an index, a slice, a list or vector of indices or a bool vector [N]."""
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, Tensor):
            if item.dtype == torch.bool:
                assert item.shape == (len(self),), f"A choice of {tuple(item.shape)} for {len(self)} masks"
                item = item.nonzero()[:, 0]
            elif item.dtype not in (torch.int32, torch.int64):
                raise ValueError(f"Unsupported tensor dtype={item.dtype} for indexing!")
            item = item.tolist()
        return PolygonMasks([self.polygons[index] for index in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yields each instance's polygons."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def area(self) -> Tensor:
        """The sum of the areas of each instance's polygons in square pixels, [N]. Overlaps count twice."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in polygons) for polygons in self.polygons]
        return torch.tensor(areas)

    @staticmethod
    def cat(polymasks_list: Sequence[PolygonMasks]) -> PolygonMasks:
        """All masks of a list or tuple, which is not empty, in one object."""
        assert isinstance(polymasks_list, (list, tuple)) and len(polymasks_list) > 0
        assert all(isinstance(masks, PolygonMasks) for masks in polymasks_list)
        return type(polymasks_list[0])(list(itertools.chain.from_iterable(polymasks_list)))


def _checked_polygons(polygons: list[Tensor | np.ndarray | list[float]]) -> list[np.ndarray]:
    if not isinstance(polygons, list):
        raise ValueError(f"An instance of PolygonMasks needs a list of polygons, not {type(polygons)}")
    arrays = [p.cpu().numpy() if isinstance(p, Tensor) else np.asarray(p) for p in polygons]
    for array in arrays:
        if len(array) % 2 != 0 or len(array) < 6:
            raise ValueError(f"Cannot create a polygon from {len(array)} coordinates.")
    return [array.astype("float64") for array in arrays]
