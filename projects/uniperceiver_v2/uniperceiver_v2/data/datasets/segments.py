"""Images that are divided into segments: COCO's panoptic format, and ADE20k's maps of classes.

A record is {"file_name", "height", "width", "image_id", "segments_file"}, in COCO's panoptic format with
"segments_info", a list of {"id", "category_id", "iscrowd"}. Categories are places in the metadata's "thing_classes",
which has the names of all categories, stuff included, and "is_stuff" says of each whether it is stuff.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from ...errors import UserError
from ...reading import id_order, read_image, read_lines, read_size, require_size
from .formats import read_json, string
from .records import Records, load_joined, register_dataset


def register_panoptic(name: str, panoptic_json: str, segments_root: str, image_root: str, **metadata: Any) -> None:
    """Register images in COCO's panoptic format, for segmentation.

    Args:
        name: for ``DatasetCatalog``.
        panoptic_json: such as ``panoptic_val2017.json``.
        segments_root: the folder of its PNGs.
        image_root: the folder of the images.
        metadata: more of it.
    """
    register_dataset(
        name,
        lambda: _load_panoptic(name, panoptic_json, segments_root, image_root),
        panoptic_json=panoptic_json,
        image_root=image_root,
        evaluator_type="panoptic",
        **metadata,
    )


def register_class_maps(name: str, maps_root: str, image_root: str, names_file: str, **metadata: Any) -> None:
    """Register images with a map of classes each, as ADE20k's scene parsing has them, for semantic segmentation.

    Args:
        name: for ``DatasetCatalog``.
        maps_root: the folder of PNGs with a class at each pixel, from 1; 0 is no class.
        image_root: the folder of the images, JPEGs with the same names.
        names_file: a table like ``objectInfo150.txt``: below a heading, the last of the columns has the names of each
            class, divided by commas. The first one counts.
        metadata: more of it.
    """
    register_dataset(
        name,
        lambda: _load_class_maps(name, maps_root, image_root, names_file),
        source=maps_root,
        image_root=image_root,
        evaluator_type="semantic",
        **metadata,
    )


def load_segments(*names: str) -> Records:
    """The records of datasets of segmented images, joined.

    Raises:
        UserError: as :func:`~.records.load_joined`.
    """
    return load_joined(names, "segments_file")


def _load_panoptic(name: str, panoptic_json: str, segments_root: str, image_root: str) -> Records:
    content = read_json(panoptic_json)
    categories = sorted(content["categories"], key=lambda category: id_order(category["id"]))
    place = {category["id"]: index for index, category in enumerate(categories)}
    names = [
        string(category["name"], f"{panoptic_json}: the name of category {category['id']}") for category in categories
    ]
    _name_categories(name, panoptic_json, names, [not category["isthing"] for category in categories], list(place))
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in sorted(content["annotations"], key=lambda annotation: id_order(annotation["image_id"])):
        image_id = annotation["image_id"]
        if image_id not in images:
            raise UserError(f'{panoptic_json}: an annotation is of image {image_id}, which is not among "images"')
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in place:
                raise UserError(
                    f"{panoptic_json}: segment {segment['id']} of image {image_id} has category "
                    f'{segment["category_id"]}, which is not among "categories"'
                )
        image = images[image_id]
        require_size(image, f"{panoptic_json}: image {image_id}")
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "segments_file": os.path.join(segments_root, annotation["file_name"]),
                "segments_info": [
                    {"id": s["id"], "category_id": place[s["category_id"]], "iscrowd": s.get("iscrowd", 0)}
                    for s in annotation["segments_info"]
                ],
            }
        )
    return records


def _load_class_maps(name: str, maps_root: str, image_root: str, names_file: str) -> Records:
    rows = [line.split("\t") for line in read_lines(names_file) if line.strip()][1:]
    names = [row[-1].split(",")[0].strip() for row in rows]
    _name_categories(name, names_file, names, [True] * len(names), list(range(1, len(names) + 1)))
    records = []
    for file_name in sorted(entry for entry in os.listdir(maps_root) if entry.endswith(".png")):
        path, stem = os.path.join(maps_root, file_name), os.path.splitext(file_name)[0]
        height, width = read_size(path)
        records.append(
            {
                "file_name": os.path.join(image_root, f"{stem}.jpg"),
                "height": height,
                "width": width,
                "image_id": stem,
                "segments_file": path,
            }
        )
    return records


def _name_categories(name: str, file: str, names: Sequence[str], is_stuff: Sequence[bool], ids: Sequence[int]) -> None:
    if len(set(names)) < len(names):
        twice = next(x for x in names if names.count(x) > 1)
        raise UserError(f"{file} has two categories called '{twice}', so the model could not tell them apart")
    MetadataCatalog.get(name).set(thing_classes=list(names), is_stuff=list(is_stuff), category_ids=list(ids))


def read_segments(record: dict) -> tuple[np.ndarray, list[dict]]:
    """The segments of a record.

    Returns:
        an id for each pixel, int32 [H,W], 0 where there is no segment; and {"id", "category_id", "iscrowd"} of each
        segment.

    Raises:
        UnreadableImage: the file cannot be read, or is not as large as the image.
    """
    png = {"file_name": record["segments_file"], "height": record["height"], "width": record["width"]}
    pixels = read_image(png, "RGB").astype(np.int32)
    if "segments_info" in record:
        return pixels @ np.array([1, 2**8, 2**16], dtype=np.int32), record["segments_info"]
    classes = pixels[:, :, 0]
    segments = [{"id": int(i), "category_id": int(i) - 1, "iscrowd": 0} for i in np.unique(classes) if i > 0]
    return classes, segments
