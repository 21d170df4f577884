"""Images with phrases for their objects, of whatever format: checked records, and a JSON format of our own.

A record is Detectron2's, {"file_name", "height", "width", "image_id", "annotations"}, with "phrases" as well: a list
of {"phrase": str, "objects": places in "annotations", none where the phrase is true of nothing}.
"""

import logging
import os
from collections.abc import Iterable
from typing import Any

from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from ...errors import UserError
from ...reading import id_order, remedy_of, source_of, while_reading
from .formats import read_json, string
from .records import Records, load_dataset, register_dataset
from .texts import tidy

logger = logging.getLogger(__name__)


def load_phrases(name: str) -> Records:
    """The records of a dataset of images with phrases, each with at least one.

    White space is made single blanks. Phrases of nothing else are left out, and so are images that have no phrase then;
    the log says how many.

    Raises:
        UserError: as :func:`load_dataset`; besides, a phrase is no text, means what is not there, or no image has one.
    """
    loaded = load_dataset(name)
    records, empty = [], 0
    for record in loaded:
        phrases = [_checked(entry, record, name) for entry in _entries(record, name)]
        kept = [entry for entry in phrases if entry["phrase"]]
        empty += len(phrases) - len(kept)
        if kept:
            records.append({**record, "phrases": kept})
    if not records:
        raise UserError(
            f"{source_of(name)} of dataset '{name}': none of its {len(loaded)} images has a phrase{remedy_of(name)}"
        )
    if empty:
        logger.warning("dataset '%s': %d phrases are empty and left out", name, empty)
    if len(records) < len(loaded):
        left_out = len(loaded) - len(records)
        logger.info("dataset '%s': %d of %d images have no phrase and are left out", name, left_out, len(loaded))
    return records


def _entries(record: dict, name: str) -> list:
    entries = record.get("phrases")
    if isinstance(entries, list) and isinstance(record.get("annotations"), list):
        return entries
    raise UserError(
        f'dataset \'{name}\': image {record.get("file_name")} has no list of "phrases" or no list of "annotations"'
    )


def _checked(entry: Any, record: dict, name: str) -> dict:
    """A phrase with its text made tidy."""
    where = f"dataset '{name}': image {record.get('file_name')}"
    if not isinstance(entry, dict) or not isinstance(entry.get("phrase"), str):
        raise UserError(f'{where} has a phrase that is no dict with a string as "phrase": {entry!r}')
    objects, count = entry.get("objects"), len(record["annotations"])
    if not isinstance(objects, list | tuple) or not all(type(i) is int and 0 <= i < count for i in objects):
        raise UserError(f"{where}: \"objects\" of '{entry['phrase']}' are {objects!r}, not places among {count}")
    return {**entry, "phrase": tidy(entry["phrase"])}


def register_phrases(
    name: str, json_file: str, image_root: str, *, instances_json: str | None = None, **metadata: Any
) -> None:
    """Register images with phrases in a JSON of our own, for grounding.

    Args:
        name: for ``DatasetCatalog``.
        json_file: see :func:`load_phrase_json`.
        image_root: the folder of its images.
        instances_json: in COCO's instances format, whose annotations the phrases mean.
        metadata: more of it.
    """
    register_grounding(
        name,
        lambda: load_phrase_json(json_file, image_root, instances_json),
        json_file=json_file,
        image_root=image_root,
        **metadata,
    )


def register_grounding(name: str, load, **metadata: Any) -> None:
    """Register a dataset of records with phrases, evaluated by grounding; see :func:`register_dataset`."""
    register_dataset(name, load, evaluator_type="grounding", **metadata)


def load_phrase_json(json_file: str, image_root: str, instances_json: str | None = None) -> Records:
    """Records of a JSON like COCO's captions, in order of image id.

    Its "annotations" are {"id", "image_id", "phrase"} and what the phrase means: "annotation_ids", those of
    ``instances_json``; or, without such a file, "bboxes", a list of [x, y, width, height] in pixels. An empty list
    means that the phrase is true of nothing in the image.

    Raises:
        UserError: a phrase is no string, is of an image that is not there, or means an annotation that is not.
    """
    content = read_json(json_file)
    if instances_json is None:
        records = _records_of_images(content["images"], image_root)
    else:
        records = objects_by_image(instances_json, image_root)
    for entry in sorted(content["annotations"], key=lambda entry: id_order(entry["id"])):
        what = f"{json_file}: annotation {entry['id']}"
        record = record_of(records, entry["image_id"], what, instances_json or json_file)
        phrase = string(entry["phrase"], f"{what}: its phrase")
        if instances_json is None:
            objects = [add_box(record, box, what) for box in entry["bboxes"]]
        else:
            objects = [place_of(record, i, what, instances_json) for i in entry["annotation_ids"]]
        record["phrases"].append({"phrase": phrase, "objects": objects})
    return list(records.values())


def _records_of_images(images: Iterable[dict], image_root: str) -> dict[Any, dict]:
    return {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
            "phrases": [],
        }
        for image in sorted(images, key=lambda image: id_order(image["id"]))
    }


def objects_by_image(instances_json: str, image_root: str) -> dict[Any, dict]:
    """By image id, records of COCO's instances format that have no phrases yet; annotations keep their "id"."""
    with while_reading(instances_json):
        records = load_coco_json(instances_json, image_root, extra_annotation_keys=["id"])
    return {record["image_id"]: {**record, "phrases": []} for record in records}


def record_of(records: dict[Any, dict], image_id: Any, what: str, images_file: str) -> dict:
    """The record of an image.

    Raises:
        UserError: there is none; the message begins with ``what`` asked for it, and has the file of the images.
    """
    if image_id not in records:
        raise UserError(f"{what} is of image {image_id}, which is not among the images of {images_file}")
    return records[image_id]


def place_of(record: dict, annotation_id: int, what: str, instances_json: str) -> int:
    """The place of an annotation among its image's.

    Raises:
        UserError: it is not there, or left out because its segmentation is none.
    """
    for place, annotation in enumerate(record["annotations"]):
        if annotation["id"] == annotation_id:
            return place
    raise UserError(
        f"{what} means annotation {annotation_id}, which image {record['image_id']} does not have in {instances_json}"
    )


def add_box(record: dict, box: list[float], what: str) -> int:
    """The place of a box [x, y, width, height] among an image's annotations, put there if it is new.

    Raises:
        UserError: it is no box of numbers with an area.
    """
    is_box = isinstance(box, list | tuple) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    if not is_box or not (box[2] > 0 and box[3] > 0):
        raise UserError(f"{what} has {box!r} as a box, not [x, y, width, height] with an area")
    for place, annotation in enumerate(record["annotations"]):
        if annotation["bbox"] == list(box):
            return place
    # One category for all: what an object is, its phrases say.
    record["annotations"].append({"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0})
    return len(record["annotations"]) - 1
