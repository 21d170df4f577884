"""A mask of any format. ``visualizer`` uses it and exports ``GenericMask``."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import polygons_to_bitmask


class GenericMask:
    """A mask from a bitmap, polygons or COCO's run lengths, which can be read as a bitmap or as polygons."""

    def __init__(self, mask_or_polygons: dict | list | np.ndarray, height: int, width: int):
        """
        Raises:
            AssertionError: the size of a bitmap or of run lengths is not (height, width).
            ValueError: the input is not a mask.
        """
        self.height = height
        self.width = width
        self._from_polygons = isinstance(mask_or_polygons, list)
        if self._from_polygons:
            self._given = [np.asarray(polygon).reshape(-1) for polygon in mask_or_polygons]
            return
        if isinstance(mask_or_polygons, dict):
            bitmap = _decode_rle(mask_or_polygons)
        elif isinstance(mask_or_polygons, np.ndarray):
            bitmap = mask_or_polygons
        else:
            raise ValueError(f"GenericMask cannot handle an object of type {type(mask_or_polygons)}")
        assert bitmap.shape == (height, width), f"A mask of {bitmap.shape} for an image of {(height, width)}"
        self._given = bitmap.astype(np.uint8)

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8 [height,width] of 0 and 1."""
        return self.polygons_to_mask(self._given) if self._from_polygons else self._given

    @property
    def polygons(self) -> list[np.ndarray]:
        """[x0,y0,x1,y1,...] each.

        Polygons of a bitmap run through the centres of its border pixels, around parts and around holes. Parts of one
        or two pixels have no polygon.
        """
        return self._given if self._from_polygons else self._outlines[0]

    @property
    def has_holes(self) -> bool:
        """Whether a bitmap has holes. False for polygons."""
        return not self._from_polygons and self._outlines[1]

    @cached_property
    def _outlines(self) -> tuple[list[np.ndarray], bool]:
        return self.mask_to_polygons(self.mask)

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """The outlines of a bitmap's parts and holes, and whether it has holes."""
        mask = np.ascontiguousarray(mask, dtype=np.uint8)
        contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # The fourth number is the contour around this one, or -1.
        has_holes = hierarchy is not None and bool((hierarchy.reshape(-1, 4)[:, 3] >= 0).any())
        return [contour.reshape(-1) + 0.5 for contour in contours if len(contour) >= 3], has_holes

    def polygons_to_mask(self, polygons: list[np.ndarray]) -> np.ndarray:
        """uint8 [height,width] of 0 and 1."""
        return polygons_to_bitmask(polygons, self.height, self.width).astype(np.uint8)

    def area(self) -> int:
        """The area in pixels."""
        return self.mask.sum()

    def bbox(self) -> np.ndarray:
        """The box (x0, y0, x1, y1) around the polygons."""
        points = np.concatenate(self.polygons).reshape(-1, 2)
        return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _decode_rle(rle: dict) -> np.ndarray:
    if isinstance(rle["counts"], list):  # not compressed
        rle = mask_util.frPyObjects(rle, *rle["size"])
    return mask_util.decode(rle)
