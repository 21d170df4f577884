"""Checks annotations of instances when a dataset is read, and not hours later in a worker.

One coordinate of 1e9 makes the rasteriser of masks take 21 GB and ends the process without a message. So boxes,
polygons, run-length encodings and categories are compared with the size of their image. NumPy checks many annotations
at once. If a part of them looks wrong, :mod:`.instances` checks its annotations one by one. It makes the decision, and
it has the messages.
"""

import itertools
import json
import logging
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import UserError
from .disk import open_text
from .instances import (
    LARGEST_SIDE,
    Instance,
    longest_outline,
    make_sizes_whole,
    problem_of,
    problem_of_size,
    require_size,
)
from .run_lengths import fit
from .sources import source_of

logger = logging.getLogger(__name__)

LARGEST_ID = 2**63 - 1  # of what COCO's program counts
_AT_A_TIME = 1024  # annotations that are checked at once; the numbers of more leave the processor's cache


class _Part(NamedTuple):
    """N annotations and the dicts of their images."""

    annotations: list[dict]
    images: list[dict]

    def sides(self, name: str) -> np.ndarray:
        """The "height" or "width" of each image in pixels, float64 [N]. All are NaN if one is missing or not a whole
        number."""
        values = [image.get(name) for image in self.images]
        if not set(map(type, values)) <= {int}:
            return np.full(len(values), np.nan)
        return np.array(values, dtype=np.float64)


def check_annotations(name: str, records: Sequence[dict], most_bad: float = 0.0) -> None:
    """Check the annotations in a registered dataset's records.

    Records without "annotations" pass. So does an object that is not a list, such as shards with pairs that are read
    one by one.

    Args:
        name: the dataset's.
        records: their wrong annotations are removed, if there are few.
        most_bad: the share of annotations that may be wrong. The log has their number and the first one.

    Raises:
        UserError: more annotations are wrong. The message has the file, the id and the value of the first one.
    """
    if not isinstance(records, list) or not any(record.get("annotations") for record in records):
        return
    classes = MetadataCatalog.get(name).get("thing_classes")
    _require_names(classes or (), source_of(name))
    _require_ids_of_records(records, source_of(name))
    make_sizes_whole(records)
    categories = None if classes is None else range(len(classes))
    problems = _problems(_parts_of_records(records), categories, strict=True)
    found = next(problems, None)
    if found is None:
        return
    (annotation, image, *_), reason = found
    its_id = annotation.get("id") if isinstance(annotation, dict) else None
    which = "an annotation" if its_id is None else f"annotation {its_id}"
    first = (
        f"{source_of(name)} of dataset '{name}': {which} of image {image.get('image_id')} "
        f"({image.get('file_name')}) cannot be used: {reason}"
    )
    if not most_bad:
        check_json_of(name)  # the JSON's annotations have ids, which Detectron2's records do not have
        raise UserError(first)
    bad = {id(instance.annotation) for instance, _ in itertools.chain([found], problems)}
    whole = sum(len(record.get("annotations") or ()) for record in records)
    if len(bad) > most_bad * whole:
        share = (
            f"{len(bad):,} of {whole:,} annotations are wrong, more than DATALOADER.MAX_BAD_ANNOTATIONS ({most_bad:g})"
        )
        raise UserError(f"{first}; {share}")
    for record in records:
        record["annotations"] = [a for a in record.get("annotations") or () if id(a) not in bad]
    logger.warning("%s; %s of %s annotations are left out", first, f"{len(bad):,}", f"{whole:,}")


def check_json_of(name: str) -> None:
    """Search a dataset's JSON for an annotation that makes it unusable.

    Raises:
        UserError: there is such an annotation.
    """
    json_file = MetadataCatalog.get(name).get("json_file")
    try:
        with open_text(json_file) as file:
            content = json.load(file)
        if not content.get("categories"):  # for example captions
            return
        for strict in (False, True):
            check_instances(json_file, content, strict=strict)
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        pass  # the JSON has another format, or there is none


def check_instances(json_file: str, content: dict[str, Any], *, strict: bool = False) -> None:
    """Check the content of a JSON of instances, in COCO's or LVIS's format, as an evaluator reads it.

    Args:
        json_file: the file's path, for messages.
        content: has "images", "categories" and optionally "annotations".
        strict: whether polygons of fewer than three points are refused. COCO's own files have some. Detectron2 leaves
            them out of training, and evaluation accepts them.

    Raises:
        UserError: an annotation is wrong. The message has the id and the value of the first one.
    """
    categories = {category["id"] for category in content.get("categories", ())}
    images = {image["id"]: image for image in content.get("images", ())}
    # Readers of the file ignore annotations without an image.
    annotations = [annotation for annotation in content.get("annotations", ()) if annotation["image_id"] in images]
    parts = (
        _Part(part, [images[annotation["image_id"]] for annotation in part])
        for part in (annotations[start : start + _AT_A_TIME] for start in range(0, len(annotations), _AT_A_TIME))
    )
    for instance, reason in _problems(parts, categories, strict=strict):
        raise UserError(
            f"{json_file}: annotation {instance.annotation.get('id')} of image {instance.image.get('id')} "
            f"cannot be used: {reason}"
        )


def check_entries(json_file: str, content: dict[str, Any]) -> None:
    """Check the images and categories of a JSON of instances, as COCO's and LVIS's evaluators take them.

    Args:
        json_file: the file's path, for messages.
        content: has "images" and "categories". Sides of images such as 32.0 are made whole.

    Raises:
        UserError: an id is no whole number or is there twice, an image has no size, or a name of a category is no text
            or is there twice.
    """
    images, categories = content.get("images", ()), content.get("categories", ())
    make_sizes_whole(images)
    for image in images:
        if type(image["id"]) is not int or not 0 <= image["id"] <= LARGEST_ID:
            raise UserError(f'{json_file}: an image has the "id" {image["id"]!r:.80}, not a whole number in 0..2**63-1')
        if image.get("height") is not None and image.get("width") is not None:
            require_size(image, f"{json_file}: image {image['id']}")
    for category in categories:
        if type(category["id"]) is not int:
            raise UserError(f'{json_file}: a category has the "id" {category["id"]!r:.80}, not a whole number')
    for what, entries in (("images", images), ("categories", categories)):
        counts = Counter(entry["id"] for entry in entries)
        if len(counts) < len(entries):
            raise UserError(f"{json_file}: two {what} have the id {counts.most_common(1)[0][0]}")
    _require_names([category["name"] for category in categories], json_file)


def _require_names(names: Sequence[Any], file: str) -> None:
    """Check the names of categories, which are what the model compares with: it could not tell two of a name apart."""
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{file}: a category has the name {name!r:.80}, not a text")
    if len(set(names)) < len(names):
        raise UserError(f"{file}: two categories are both called '{Counter(names).most_common(1)[0][0]:.80}'")


def _require_ids_of_records(records: Sequence[dict], file: str) -> None:
    if {bool, float}.isdisjoint(type(record.get("image_id")) for record in records):
        return
    wrong = next(record for record in records if isinstance(record.get("image_id"), bool | float))
    raise UserError(
        f"{file}: image {wrong.get('file_name')} has the id {wrong['image_id']!r}, not a whole number or a text"
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


def _problems(
    parts: Iterable[_Part], categories: Collection[int] | None, strict: bool
) -> Iterator[tuple[Instance, str]]:
    for part in parts:
        if _looks_right(part, categories):
            continue
        for annotation, image in zip(part.annotations, part.images):
            instance = Instance(annotation, image, image.get("height"), image.get("width"))
            reason = problem_of_size(instance) or problem_of(instance, categories, strict)
            if reason:
                yield instance, reason


def _looks_right(part: _Part, categories: Collection[int] | None) -> bool:
    """Whether certainly no annotation of a part is wrong. False for anything unusual."""
    annotations = part.annotations
    try:
        sizes = np.stack([part.sides("width"), part.sides("height")])
        return bool(
            np.all((sizes >= 1) & (sizes <= LARGEST_SIDE))
            and {a.get("iscrowd", 0) for a in annotations} <= {0, 1}
            and _categories_look_right([a["category_id"] for a in annotations], categories)
            and _areas_look_right([a["area"] for a in annotations if "area" in a])
            and _boxes_look_right(annotations, *sizes)
            and _segmentations_look_right([a.get("segmentation") for a in annotations], *sizes)
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False  # values of other types


def _categories_look_right(ids: list[int], categories: Collection[int] | None) -> bool:
    return set(map(type, ids)) <= {int} and (categories is None or all(i in categories for i in set(ids)))


def _areas_look_right(areas: list[float]) -> bool:
    found = _numbers([areas])
    return bool(np.all((found >= 0) & np.isfinite(found)))


def _boxes_look_right(annotations: list[dict], widths: np.ndarray, heights: np.ndarray) -> bool:
    boxes = [a["bbox"] for a in annotations]
    modes = [a.get("bbox_mode", BoxMode.XYWH_ABS) for a in annotations]
    if modes.count(BoxMode.XYWH_ABS) != len(modes):  # a set would hash each in Python
        return False
    x, y, width, height = _numbers(boxes).reshape(len(boxes), 4).T
    if width.min() < 0 or height.min() < 0:
        return False
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
    sizes = np.stack([widths, heights])[:, np.array(owners, dtype=np.int64)]
    return _polygons_look_right(polygons, sizes) and _encoded_look_right(encoded)


def _polygons_look_right(polygons: list[list[float]], sizes: np.ndarray) -> bool:
    """Checks P polygons. ``sizes`` [2, P] has width and height of each polygon's image."""
    if not polygons:
        return True
    lengths = np.array(list(map(len, polygons)))
    if (lengths < 6).any() or (lengths % 2).any():
        return False
    points = np.ascontiguousarray(_numbers(polygons).reshape(-1, 2).T)
    ends = np.cumsum(lengths // 2)
    starts = ends - lengths // 2
    low, high = np.minimum.reduceat(points, starts, 1), np.maximum.reduceat(points, starts, 1)  # [2, P]; NaN is kept
    steps = np.abs(np.diff(points, append=points[:, -1:])).max(axis=0)
    steps[ends - 1] = 0  # the step to the next polygon does not count
    outlines = np.add.reduceat(steps, starts)
    return (
        _within_reach(low, sizes)
        and _within_reach(high, sizes)
        and bool(np.all(outlines <= longest_outline(sizes[1], sizes[0])))
    )


def _encoded_look_right(encoded: list[tuple[dict, float, float]]) -> bool:
    """Checks run-length encodings, given as (encoding, height of its image, width of its image)."""
    compressed, areas = [], []
    for segmentation, height, width in encoded:
        size = list(segmentation["size"])
        if size != [height, width] or not set(map(type, size)) <= {int}:
            return False
        counts = segmentation["counts"]
        if type(counts) is list:
            if not set(map(type, counts)) <= {int} or min(counts) < 0 or sum(counts) != height * width:
                return False
            continue
        if not isinstance(counts, str | bytes):  # bytes(2**31) would be as many zeros
            return False
        compressed.append(counts.encode() if isinstance(counts, str) else counts)
        areas.append(height * width)
    return fit(compressed, np.array(areas))


def _numbers(lists: list[list[float]]) -> np.ndarray:
    """All numbers of the lists, concatenated, float64.

    Raises:
        OverflowError, TypeError: a value is not a number that float64 has, or is a bool.
    """
    flat = array("d")
    for each in lists:
        flat.fromlist(each)  # in a fifth of the time of np.array
    numbers = np.frombuffer(flat)
    may_be_bools = np.flatnonzero((numbers == 0) | (numbers == 1))
    owners = np.searchsorted(np.cumsum([len(each) for each in lists]), may_be_bools, side="right")
    if any(bool in map(type, lists[owner]) for owner in np.unique(owners).tolist()):
        raise TypeError
    return numbers


def _within_reach(values: np.ndarray, sides: np.ndarray) -> bool:
    """Whether coordinates are inside their image, or outside by at most the length of its side. False for NaN."""
    return bool(np.all((values >= -sides) & (values <= 2 * sides)))
