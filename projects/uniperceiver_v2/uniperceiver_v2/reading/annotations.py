"""Annotations of instances: checked when a dataset is read, not in a worker hours later.

One coordinate of 1e9 makes the rasteriser of masks take 21 GB and ends the process without a message. So boxes,
polygons, run-length encodings and categories are compared with what their image allows. Millions of them are looked
through at once with NumPy; only a part in which something looks wrong is gone through one by one, by
:mod:`.instances`, which decides and has the words.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import UserError
from .instances import LARGEST_SIDE, Instance, longest_outline, problem_of, problem_of_size
from .run_lengths import fit
from .sources import source_of

_AT_A_TIME = 8192  # annotations that are looked through together


class _Part(NamedTuple):
    """N annotations with the dicts of their images."""

    annotations: list[dict]
    images: list[dict]

    def sides(self, name: str) -> np.ndarray:
        """Each image's "height" or "width" in pixels, float64 [N]; NaN where one is missing or no number."""
        values = [image.get(name) for image in self.images]
        if not set(map(type, values)) <= {int, float}:
            return np.full(len(values), np.nan)
        return np.array(values, dtype=np.float64)


def check_annotations(name: str, records: Sequence[dict]) -> None:
    """Check what a registered dataset's records hold of instances.

    Records without "annotations" pass, and so does what is no list: shards, whose pairs are read one by one.

    Raises:
        UserError: the first that cannot be right, with its file, its id and its value.
    """
    if not isinstance(records, list) or not any(record.get("annotations") for record in records):
        return
    classes = MetadataCatalog.get(name).get("thing_classes")
    categories = None if classes is None else range(len(classes))
    found = _first_problem(_parts_of_records(records), categories, strict=True)
    if found is None:
        return
    instance, reason = found
    check_json_of(name)  # whose annotations have ids, which records have not
    image = instance.image
    raise UserError(
        f"{source_of(name)} of dataset '{name}': an annotation of image {image.get('image_id')} "
        f"({image.get('file_name')}) cannot be used: {reason}"
    )


def check_json_of(name: str) -> None:
    """Look in a dataset's JSON for the annotation that made it unusable, if there is one.

    Raises:
        UserError: the annotation that was found.
    """
    json_file = MetadataCatalog.get(name).get("json_file")
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
        if not content.get("categories"):  # of captions, say
            return
        for strict in (False, True):
            check_instances(json_file, content, strict=strict)
    except (AttributeError, LookupError, OSError, TypeError, ValueError):
        pass  # another format, or none


def check_instances(json_file: str, content: dict[str, Any], *, strict: bool = False) -> None:
    """Check the content of a JSON of instances, COCO's or LVIS's, as an evaluator reads it.

    Args:
        json_file: for messages.
        content: with "images", "categories" and maybe "annotations".
        strict: refuse polygons of fewer than three points as well. COCO's own files have some, which Detectron2 leaves
            out of training and evaluation takes.

    Raises:
        UserError: the first annotation that cannot be right, with its id and its value.
    """
    categories = {category["id"] for category in content.get("categories", ())}
    images = {image["id"]: image for image in content.get("images", ())}
    # Those of no image are left out by whoever reads the file.
    annotations = [annotation for annotation in content.get("annotations", ()) if annotation["image_id"] in images]
    parts = (
        _Part(part, [images[annotation["image_id"]] for annotation in part])
        for part in (annotations[start : start + _AT_A_TIME] for start in range(0, len(annotations), _AT_A_TIME))
    )
    found = _first_problem(parts, categories, strict=strict)
    if found is not None:
        instance, reason = found
        raise UserError(
            f"{json_file}: annotation {instance.annotation.get('id')} of image {instance.image.get('id')} "
            f"cannot be used: {reason}"
        )


def _parts_of_records(records: Sequence[dict]) -> Iterator[_Part]:
    annotations: list[dict] = []
    images: list[dict] = []
    for record in records:
        found = record.get("annotations") or ()
        annotations += found
        images += [record] * len(found)
        if len(annotations) >= _AT_A_TIME:
            yield _Part(annotations, images)
            annotations, images = [], []
    if annotations:
        yield _Part(annotations, images)


def _first_problem(
    parts: Iterable[_Part], categories: Collection[int] | None, strict: bool
) -> tuple[Instance, str] | None:
    for part in parts:
        if _looks_right(part, categories):
            continue
        for annotation, image in zip(part.annotations, part.images):
            instance = Instance(annotation, image, image.get("height"), image.get("width"))
            reason = problem_of_size(instance) or problem_of(instance, categories, strict)
            if reason:
                return instance, reason
    return None


def _looks_right(part: _Part, categories: Collection[int] | None) -> bool:
    """Whether nothing of a part can be wrong; of what is unusual, False."""
    annotations = part.annotations
    try:
        sizes = np.stack([part.sides("width"), part.sides("height")])
        return bool(
            np.all((sizes >= 1) & (sizes <= LARGEST_SIDE))
            and {a.get("iscrowd", 0) for a in annotations} <= {0, 1}
            and _categories_look_right([a["category_id"] for a in annotations], categories)
            and _boxes_look_right(annotations, *sizes)
            and _segmentations_look_right([a.get("segmentation") for a in annotations], *sizes)
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False  # not numbers, not lists, ...


def _categories_look_right(ids: list[int], categories: Collection[int] | None) -> bool:
    return set(map(type, ids)) <= {int} and (categories is None or all(i in categories for i in set(ids)))


def _boxes_look_right(annotations: list[dict], widths: np.ndarray, heights: np.ndarray) -> bool:
    boxes = [a["bbox"] for a in annotations]
    if not {a.get("bbox_mode", BoxMode.XYWH_ABS) for a in annotations} <= {BoxMode.XYWH_ABS}:
        return False
    x, y, width, height = _numbers(boxes).reshape(len(boxes), 4).T
    corners = ((x, widths), (x + width, widths), (y, heights), (y + height, heights))
    return all(_within_reach(values, sides) for values, sides in corners)


def _segmentations_look_right(segmentations: list, widths: np.ndarray, heights: np.ndarray) -> bool:
    polygons, owners, encoded = [], [], []
    for number, segmentation in enumerate(segmentations):
        if type(segmentation) is list:
            polygons += segmentation
            owners += [number] * len(segmentation)
        elif type(segmentation) is dict:
            encoded.append((segmentation, heights[number], widths[number]))
        elif segmentation is not None:
            return False
    sizes = np.stack([widths, heights], axis=1)[np.array(owners, dtype=np.int64)]
    return _polygons_look_right(polygons, sizes) and _encoded_look_right(encoded)


def _polygons_look_right(polygons: list[list[float]], sizes: np.ndarray) -> bool:
    """``sizes`` [P, 2]: width and height of each polygon's image."""
    if not polygons:
        return True
    lengths = np.array(list(map(len, polygons)))
    if (lengths < 6).any() or (lengths % 2).any():
        return False
    points = _numbers(polygons).reshape(-1, 2)
    ends = np.cumsum(lengths // 2)
    starts = ends - lengths // 2
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)  # [P, 2]; NaN stays NaN
    steps = np.abs(np.diff(points, axis=0, append=points[-1:])).max(axis=1)
    steps[ends - 1] = 0  # from one polygon to the next
    outlines = np.add.reduceat(steps, starts)
    return (
        _within_reach(low, sizes)
        and _within_reach(high, sizes)
        and bool(np.all(outlines <= longest_outline(sizes[:, 1], sizes[:, 0])))
    )


def _encoded_look_right(encoded: list[tuple[dict, float, float]]) -> bool:
    """Run-length encodings, each with its image's height and width."""
    compressed, areas = [], []
    for segmentation, height, width in encoded:
        if list(segmentation["size"]) != [height, width]:
            return False
        counts = segmentation["counts"]
        if type(counts) is list:
            if not set(map(type, counts)) <= {int} or min(counts) < 0 or sum(counts) != height * width:
                return False
            continue
        compressed.append(counts.encode() if type(counts) is str else bytes(counts))
        areas.append(height * width)
    return fit(compressed, np.array(areas))


def _numbers(lists: list[list[float]]) -> np.ndarray:
    """All numbers of the lists, one behind the other, float64.

    Raises:
        TypeError: not all are Python's int or float.
    """
    flat = list(itertools.chain.from_iterable(lists))
    if not set(map(type, flat)) <= {int, float}:
        raise TypeError
    return np.array(flat, dtype=np.float64)


def _within_reach(values: np.ndarray, sides: np.ndarray) -> bool:
    """Whether coordinates lie inside their image or no farther beyond an edge than its side; NaN does not."""
    return bool(np.all((values >= -sides) & (values <= 2 * sides)))
