"""Objects in images with the user's own ids: what the readers of COCO, LVIS, YOLO and Pascal VOC files have in common,
and the reader of the first two.

Ids of categories and images may be numbers with gaps, may start anywhere, or be strings. Records have the index of a
category, 0, 1, ..., as Detectron2 wants it. ``Objects.categories`` leads back.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from detectron2.structures import BoxMode
from pycocotools import mask as mask_api

from ...errors import UnreadableImage, UserError
from ...reading import Id, is_id, make_sizes_whole, read_json, read_size, require_size, sorted_ids
from .records import Records

logger = logging.getLogger(__name__)


class Category(NamedTuple):
    """A category by its index: the user's id, its name, and in LVIS's format its frequency, "r", "c" or "f"."""

    id: Id
    name: str
    frequency: str | None = None


class Objects(NamedTuple):
    """Records with "annotations", and the categories in the order of their indices."""

    records: Records
    categories: tuple[Category, ...]


def named(ids_and_names: Mapping[Id, str], path: str) -> tuple[Category, ...]:
    """Categories in the order of their ids.

    Raises:
        UserError: a name is empty or no string, or two categories have the same name. Names are what the model
            compares with, so it could not tell the two apart.
    """
    owner: dict[str, Id] = {}
    for category_id in sorted_ids(ids_and_names):
        name = ids_and_names[category_id]
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: category {category_id!r} has the name {name!r}, not a text")
        if name in owner:
            raise UserError(f"{path}: categories {owner[name]!r} and {category_id!r} are both called '{name}'")
        owner[name] = category_id
    return tuple(Category(category_id, name) for name, category_id in owner.items())


def read_objects_json(json_file: str, image_root: str, *, lvis: bool = False) -> Objects:
    """Objects of a JSON in COCO's format, or in LVIS's.

    Other programs write COCO's format with less in it, so some keys may be missing: the "id", "iscrowd" and "area" of
    an annotation, the "bbox" of one with polygons, and the size of an image, which is then read from its file. An image
    whose size cannot be read is left out. An annotation that says "ignore" counts as a crowd.

    Args:
        json_file: the file.
        image_root: the folder of the images. An image of LVIS without a "file_name" is found by the last two parts of
            its "coco_url".
        lvis: whether the format is LVIS's. Then records have "neg_category_ids" and "not_exhaustive_category_ids".

    Raises:
        UserError: the file is not in the format. The message has the entry that is wrong.
    """
    content = read_json(json_file)
    path = os.path.abspath(json_file)
    for section in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise UserError(f'{path} has no list "{section}"')
    annotations = content.get("annotations") or []
    if not isinstance(annotations, list):
        raise UserError(f'{path} has no list "annotations"')
    categories = _categories(content["categories"], path, lvis)
    index_of = {category.id: index for index, category in enumerate(categories)}
    records: dict[Id, dict] = {}
    for entry in content["images"]:
        record = _record(entry, image_root, path, lvis)
        if record["image_id"] in records:
            raise UserError(f"{path}: two images have the id {record['image_id']!r}")
        records[record["image_id"]] = record
    _add_annotations(records, annotations, index_of, path)
    kept = (records[image_id] for image_id in sorted_ids(records))
    return Objects([record for record in kept if record["height"] is not None], categories)


def readable_size(path: str) -> tuple[int, int] | None:
    """(height, width) of an image in pixels. None for an image that cannot be read, which the log names."""
    try:
        return read_size(path)
    except UnreadableImage as error:
        logger.warning("left out, as it cannot be read: %s", error)
        return None


def _categories(entries: list, path: str, lvis: bool) -> tuple[Category, ...]:
    found: dict[Id, dict] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            raise UserError(f'{path}: a category needs an "id", a whole number or a string, and a "name", not {entry}')
        if entry["id"] in found:
            raise UserError(f"{path}: two categories have the id {entry['id']!r}")
        if lvis and entry.get("frequency") not in ("r", "c", "f"):
            raise UserError(f'{path}: category {entry["id"]!r} needs a "frequency", which is "r", "c" or "f"')
        found[entry["id"]] = entry
    names = {i: (entry.get("synonyms") or [None])[0] if lvis else None for i, entry in found.items()}
    categories = named({i: names[i] or entry.get("name") for i, entry in found.items()}, path)
    return tuple(c._replace(frequency=found[c.id].get("frequency")) for c in categories) if lvis else categories


def _record(entry: Any, image_root: str, path: str, lvis: bool) -> dict:
    """An image's record. Its "height" and "width" are None if it has none and its file cannot be read."""
    if not isinstance(entry, dict) or not is_id(entry.get("id")):
        raise UserError(f'{path}: an image needs an "id", a whole number or a string, and a "file_name", not {entry}')
    name = entry.get("file_name")
    if name is None and lvis and isinstance(entry.get("coco_url"), str):
        name = os.path.join(*entry["coco_url"].split("/")[-2:])
    if not isinstance(name, str) or not name:
        raise UserError(f'{path}: image {entry["id"]!r} has no "file_name"')
    record = {"file_name": os.path.join(image_root, name), "image_id": entry["id"], "annotations": []}
    record["height"], record["width"] = entry.get("height"), entry.get("width")
    if record["height"] is None or record["width"] is None:
        record["height"], record["width"] = readable_size(record["file_name"]) or (None, None)
    if record["height"] is not None:
        make_sizes_whole([record])
        require_size(record, f"{path}: image {entry['id']!r}")
    if lvis:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            record[key] = list(entry.get(key) or ())
    return record


def _add_annotations(records: dict[Id, dict], annotations: list, index_of: dict[Id, int], path: str) -> None:
    lost = flat = 0
    for place, entry in enumerate(annotations):
        if not isinstance(entry, dict) or not is_id(entry.get("image_id")):
            raise UserError(f'{path}: an annotation needs "image_id", "category_id" and "bbox", not {entry!r:.80}')
        what = f"{path}: annotation {entry.get('id', place)!r} of image {entry['image_id']!r}"
        category = entry.get("category_id")
        if not is_id(category) or category not in index_of:
            raise UserError(
                f'{what} has the "category_id" {category!r}, which is none of the {len(index_of)} categories'
            )
        record = records.get(entry["image_id"])
        converted = None if record is None else _annotation(entry, record, index_of[category])
        lost += record is None
        flat += record is not None and converted is None
        if converted is not None:
            record["annotations"].append(converted)
    if lost:
        logger.warning("%s: %d annotations are of images that are not among its images, and left out", path, lost)
    if flat:
        logger.warning("%s: %d annotations have polygons of fewer than three points only, and are left out", path, flat)


def _annotation(entry: dict, record: dict, index: int) -> dict | None:
    """In Detectron2's format. None if it has polygons, but none of three points or more."""
    crowd = entry.get("iscrowd", 0)
    converted = {
        "id": entry.get("id"),  # for messages; the format does not need it
        "bbox": entry.get("bbox"),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": index,
        "iscrowd": crowd if not entry.get("ignore") else 1,
    }
    if entry.get("area") is not None:
        converted["area"] = entry["area"]
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        segmentation = [p for p in segmentation if not isinstance(p, list) or (len(p) >= 6 and len(p) % 2 == 0)]
        if not segmentation:
            return None
        if converted["bbox"] is None and all(isinstance(p, list) for p in segmentation):
            converted["bbox"] = box_around(segmentation)
    elif isinstance(segmentation, dict):
        segmentation = _compressed(segmentation, record)
    if segmentation:
        converted["segmentation"] = segmentation
    return converted


def box_around(polygons: list[list[float]]) -> list[float]:
    """[x, y, width, height] of polygons x0, y0, x1, y1, ..."""
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _compressed(encoding: dict, record: dict) -> dict:
    """Runs as a list are compressed. Wrong runs stay as they are: the check of annotations names them."""
    counts, size = encoding.get("counts"), [record["height"], record["width"]]
    fits = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
    if not fits or encoding.get("size") != size or sum(counts) != size[0] * size[1]:
        return encoding
    return mask_api.frPyObjects(encoding, *size)
