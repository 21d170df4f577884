"""Describes in words what is wrong with an annotation of an instance."""

import math
import reprlib
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from ..errors import UserError
from .run_lengths import fit

LARGEST_SIDE = 2**17  # pixels, of an image
LONGEST_OUTLINE = 2**22  # pixels, of a polygon


class Instance(NamedTuple):
    """An annotation, the dict of its image, and the image's size in pixels, or None if it is unknown."""

    annotation: Any
    image: dict
    height: Any
    width: Any


def longest_outline(height: Any, width: Any) -> Any:
    """The longest allowed outline of a polygon in pixels, for numbers or arrays. The rasteriser's memory grows with
    it."""
    return np.minimum(1000 * (height + width), LONGEST_OUTLINE)


def problem_of_size(instance: Instance) -> str | None:
    """What is wrong with the image's size. None if it is right or unknown."""
    for side in (instance.height, instance.width):
        if side is not None and not _is_side(side):
            return f"its image has {_size_of(instance.height, instance.width)}"
    return None


def require_size(image: dict, what: str) -> None:
    """Check the "height" and "width" of an image in a file of annotations.

    Raises:
        UserError: one of them is no side of an image; the message begins with ``what`` image it is.
        KeyError: one of them is missing.
    """
    if not (_is_side(image["height"]) and _is_side(image["width"])):
        raise UserError(f"{what} has {_size_of(image['height'], image['width'])}")


def _size_of(height: Any, width: Any) -> str:
    return f"height {_short(height)} and width {_short(width)}, not whole numbers of pixels in 1..{LARGEST_SIDE}"


def _is_side(value: Any) -> bool:
    return _is_number(value) and 1 <= value <= LARGEST_SIDE and value == int(value)


def make_sizes_whole(images: Iterable[dict]) -> None:
    """Make whole numbers of sides such as 32.0, which tables of numbers are written with. Evaluators take no others."""
    for image in images:
        for key in ("height", "width"):
            value = image.get(key)
            if isinstance(value, float) and value.is_integer():
                image[key] = int(value)


def problem_of(instance: Instance, categories: Collection[int] | None, strict: bool) -> str | None:
    """What is wrong with an annotation. None if nothing is.

    Args:
        instance: an annotation. The size of its image, if it is known, must be right.
        categories: the existing categories, or None if they are not known.
        strict: whether polygons of fewer than three points are refused.
    """
    annotation = instance.annotation
    if not isinstance(annotation, dict):
        return f"it is {_short(annotation)}, not an object with keys"
    category, crowd = annotation.get("category_id"), annotation.get("iscrowd", 0)
    if not _is_whole(category):
        return f'its "category_id" is {_short(category)}, not a whole number'
    if categories is not None and category not in categories:
        return f'its "category_id" {category} is none of the {len(categories)} categories\''
    if not isinstance(crowd, Real) or crowd not in (0, 1):
        return f'its "iscrowd" is {_short(crowd)}, neither 0 nor 1'
    if "area" in annotation and not (_is_number(annotation["area"]) and annotation["area"] >= 0):
        return f'its "area" is {_short(annotation["area"])}, not a finite number of pixels'
    size = (instance.height or LARGEST_SIDE, instance.width or LARGEST_SIDE)
    return _problem_of_box(annotation, *size) or _problem_of_segmentation(instance, *size, strict)


def _problem_of_box(annotation: dict, height: float, width: float) -> str | None:
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    numbers = _listed(box)
    if len(numbers) != 4 or not all(map(_is_number, numbers)):
        return f'its "bbox" is {_short(box)}, not four finite numbers'
    if mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return f'its "bbox_mode" is {_short(mode)}, neither XYWH_ABS nor XYXY_ABS'
    x, y, right, bottom = map(float, numbers)
    if mode == BoxMode.XYWH_ABS:
        right, bottom = x + right, y + bottom
    if right < x or bottom < y:
        return f'its "bbox" {_short(box)} has a negative width or height'
    for value, side in ((x, width), (right, width), (y, height), (bottom, height)):
        if not -side <= value <= 2 * side:
            return f'its "bbox" {_short(box)} lies {_far_outside(height, width)}'
    return None


def _problem_of_segmentation(instance: Instance, height: float, width: float, strict: bool) -> str | None:
    segmentation = instance.annotation.get("segmentation")
    if segmentation is None or segmentation in ([], {}):
        return None
    if isinstance(segmentation, dict):
        return _problem_of_encoding(segmentation, instance.height, instance.width)
    if not isinstance(segmentation, list | tuple):
        return f'its "segmentation" is {_short(segmentation)}, neither polygons nor a run-length encoding'
    problems = (_problem_of_polygon(polygon, height, width, strict) for polygon in segmentation)
    return next((problem for problem in problems if problem), None)


def _problem_of_polygon(polygon: Any, height: float, width: float, strict: bool) -> str | None:
    numbers = _listed(polygon)
    wrong = [number for number in numbers if not _is_number(number)]
    if wrong or not isinstance(polygon, list | tuple | np.ndarray):
        return f"its polygon has the coordinate {_short(wrong[0] if wrong else polygon)}, not a finite number"
    if strict and (len(numbers) < 6 or len(numbers) % 2):
        return f"its polygon {_short(polygon)} has {len(numbers)} coordinates, not two for each of three points or more"
    points = np.array(numbers, dtype=np.float64)
    xs, ys = points[0::2], points[1::2]
    for values, side in ((xs, width), (ys, height)):
        far = values[(values < -side) | (values > 2 * side)]
        if len(far):
            return f"its polygon has the coordinate {_short(float(far[0]))}, {_far_outside(height, width)}"
    steps = np.maximum(np.abs(np.diff(xs[: len(ys)])), np.abs(np.diff(ys)))
    if steps.sum() > longest_outline(height, width):
        return f"its polygon's outline is {steps.sum():.0f} pixels long, in an image of {width:g} x {height:g}"
    return None


def _problem_of_encoding(encoding: dict, height: Any, width: Any) -> str | None:
    size, counts = _listed(encoding.get("size")), encoding.get("counts")
    if len(size) != 2 or not all(_is_whole(side) and 1 <= side <= LARGEST_SIDE for side in size):
        return f"its run-length encoding has the size {_short(encoding.get('size'))}, not a whole height and width"
    if (height is not None and size[0] != height) or (width is not None and size[1] != width):
        return f"its run-length encoding is of {size[1]:g} x {size[0]:g} pixels, its image of {width:g} x {height:g}"
    area = size[0] * size[1]
    if isinstance(counts, str | bytes):
        try:
            fits = fit([counts.encode("ascii") if isinstance(counts, str) else counts], np.array([area]))
        except UnicodeEncodeError:
            fits = False
    else:
        runs = _listed(counts)
        fits = all(_is_whole(run) and run >= 0 for run in runs) and sum(runs) == area
    return None if fits else f"the runs {_short(counts)} of its run-length encoding do not fill {area:g} pixels"


def _listed(value: Any) -> list:
    """The elements of a sequence. For any other object, an empty list."""
    if isinstance(value, np.ndarray):
        return value.reshape(-1).tolist()
    return list(value) if isinstance(value, list | tuple) else []


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _far_outside(height: float, width: float) -> str:
    return f"farther outside its image of {width:g} x {height:g} pixels than the image is large"


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # which takes no time for a value of any depth
    return text if len(text) <= 80 else f"{text[:77]}..."
