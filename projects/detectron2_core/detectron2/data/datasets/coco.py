"""COCO's instance annotations: loading and registering them, and converting other datasets to them."""

import contextlib
import datetime
import io
import json
import logging
import os

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Boxes, BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock
from pycocotools.coco import COCO

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "register_coco_instances"]

logger = logging.getLogger(__name__)


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict]:
    """Load instance annotations, without reading images.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder of the images; file names in the JSON are relative to it.
        dataset_name: with a name, category ids become indices 0, 1, ... in the order of the JSON's ids, and the
            dataset's metadata gets ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``. With None, category ids
            are not changed.
        extra_annotation_keys: further keys of annotations, which are copied unchanged.

    Returns:
        Records in Detectron2's format, sorted by image id.

    Raises:
        AssertionError: annotation ids are not unique, or an annotation is marked "ignore".
        KeyError: an annotation's category is not among the JSON's.
        ValueError: an annotation's box is empty, or two images or two categories have the same id.
    """
    json_file = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco_api = COCO(json_file)
    _require_different_ids(coco_api, json_file)
    index_of = None if dataset_name is None else _set_category_metadata(coco_api, dataset_name)

    image_ids = sorted(coco_api.imgs)
    annotations = [annotation for i in image_ids for annotation in coco_api.imgToAnns[i]]
    if len(annotations) < len(coco_api.anns):
        logger.warning(
            "%s contains %d annotations, but only %d of them match to images in the file.",
            json_file,
            len(coco_api.anns),
            len(annotations),
        )
    # COCO 2014's minival and valminusminival have some repeated ids, which upstream accepts, too.
    unique = len({annotation["id"] for annotation in annotations}) == len(annotations)
    assert unique or "minival" in json_file, f"Annotation ids in '{json_file}' are not unique!"

    keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    records, invalid = [], 0
    for image_id in image_ids:
        image = coco_api.imgs[image_id]
        objects = [_convert(annotation, keys, index_of) for annotation in coco_api.imgToAnns[image_id]]
        invalid += objects.count(None)
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "annotations": [obj for obj in objects if obj is not None],
            }
        )
    logger.info("Loaded %d images in COCO format from %s", len(records), json_file)
    if invalid:
        logger.warning("Filtered out %d instances without valid segmentation.", invalid)
    return records


def _require_different_ids(api, json_file: str) -> None:
    """Of two images or two categories with an id, COCO's and LVIS's programs would keep the last one."""
    for key, by_id in (("images", api.imgs), ("categories", api.cats)):
        if len(by_id) < len(api.dataset.get(key, ())):
            raise ValueError(f"Two {key} in '{json_file}' have the same id!")


def _set_category_metadata(coco_api: COCO, dataset_name: str) -> dict[int, int]:
    """Put the JSON's categories into the metadata. Returns {category id: index}."""
    ids = sorted(coco_api.cats)
    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = [coco_api.cats[i]["name"] for i in ids]
    if ids != list(range(1, len(ids) + 1)) and "coco" not in dataset_name:
        logger.warning("Category ids in annotations are not in [1, #categories]! We'll apply a mapping.")
    metadata.thing_dataset_id_to_contiguous_id = {dataset_id: index for index, dataset_id in enumerate(ids)}
    return metadata.thing_dataset_id_to_contiguous_id


def _convert(annotation: dict, keys: list[str], index_of: dict[int, int] | None) -> dict | None:
    """An annotation in Detectron2's format. None if it has polygons but none of them has three points or more."""
    assert annotation.get("ignore", 0) == 0, '"ignore" in COCO json file is not supported.'
    converted = {key: annotation[key] for key in keys if key in annotation}
    if "bbox" in converted and len(converted["bbox"]) == 0:
        raise ValueError(
            f"One annotation of image {annotation['image_id']} contains empty 'bbox' value! "
            "This json does not have valid COCO format."
        )
    segmentation = annotation.get("segmentation")
    if segmentation:
        if isinstance(segmentation, dict):
            if isinstance(segmentation["counts"], list):
                segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        else:
            segmentation = [polygon for polygon in segmentation if _is_polygon(polygon)]
            if not segmentation:
                return None
        converted["segmentation"] = segmentation
    converted["bbox_mode"] = BoxMode.XYWH_ABS
    if index_of is not None:
        category = converted["category_id"]
        if category not in index_of:
            raise KeyError(
                f"Encountered category_id={category} but this id does not exist in 'categories' of the json file."
            )
        converted["category_id"] = index_of[category]
    return converted


def _is_polygon(coordinates: list[float]) -> bool:
    """Whether x0, y0, x1, y1, ... are at least three complete points."""
    return len(coordinates) % 2 == 0 and len(coordinates) >= 6


def register_coco_instances(
    name: str, metadata: dict, json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a dataset in COCO's format.

    Args:
        name: for ``DatasetCatalog``. If it is registered already, its function is kept.
        metadata: further metadata, may be empty.
        json_file: the dataset's annotations.
        image_root: the folder of the dataset's images.
    """
    assert isinstance(name, str), name
    assert isinstance(json_file, str | os.PathLike), json_file
    assert isinstance(image_root, str | os.PathLike), image_root
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def convert_to_coco_dict(dataset_name: str) -> dict:
    """A registered dataset as the content of a COCO JSON.

    An annotation's area is that of its segmentation, or of its box if it has none. Category ids are mapped back with
    ``thing_dataset_id_to_contiguous_id`` of the metadata, if there is one.

    Args:
        dataset_name: in ``DatasetCatalog``, with ``thing_classes`` in its metadata.

    Raises:
        ValueError: a box does not have four numbers.
        TypeError: a segmentation is neither polygons nor a run-length encoding.
    """
    metadata = MetadataCatalog.get(dataset_name)
    to_index = metadata.get("thing_dataset_id_to_contiguous_id")
    if to_index is None:
        to_index = {index: index for index in range(len(metadata.thing_classes))}
    id_of = {index: dataset_id for dataset_id, index in to_index.items()}

    images, annotations = [], []
    for position, record in enumerate(DatasetCatalog.get(dataset_name)):
        image = {
            "id": record.get("image_id", position),
            "width": int(record["width"]),
            "height": int(record["height"]),
            "file_name": str(record["file_name"]),
        }
        images.append(image)
        for annotation in record.get("annotations", []):
            converted = {
                "id": len(annotations) + 1,  # ids begin with 1, as COCO's evaluation uses 0 for "no annotation"
                "image_id": image["id"],
                "iscrowd": int(annotation.get("iscrowd", 0)),
                "category_id": int(id_of[annotation["category_id"]]),
            }
            annotations.append(converted | _box_area_and_segmentation(annotation))
    coco_dict = {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": "Automatically generated COCO json file for Detectron2.",
        },
        "images": images,
        "categories": [{"id": id_of[i], "name": name} for i, name in enumerate(metadata.thing_classes)],
        "licenses": None,
    }
    if annotations:  # without ground truth the list is left out
        coco_dict["annotations"] = annotations
    return coco_dict


def _box_area_and_segmentation(annotation: dict) -> dict:
    box = annotation["bbox"].tolist() if isinstance(annotation["bbox"], np.ndarray) else annotation["bbox"]
    if len(box) != 4:
        raise ValueError(f"bbox has to have length 4. Got {box}.")
    corners = BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)
    box = BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYWH_ABS)
    converted = {"bbox": [round(float(number), 3) for number in box]}
    if "segmentation" not in annotation:
        return converted | {"area": float(Boxes([corners]).area()[0])}
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        area = PolygonMasks([segmentation]).area()[0]
    elif isinstance(segmentation, dict):
        area = mask_util.area(segmentation)
        counts = segmentation["counts"]
        segmentation = segmentation | {"counts": counts.decode() if isinstance(counts, bytes) else counts}
    else:
        raise TypeError(f"Unknown segmentation type {type(segmentation)}!")
    return converted | {"area": float(area), "segmentation": segmentation}


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write :func:`convert_to_coco_dict` to a file, unless it exists and ``allow_cached``."""
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):  # several ranks may write at once
        if PathManager.exists(output_file) and allow_cached:
            logger.warning("Using the COCO format annotations at '%s' from an earlier run.", output_file)
            return
        logger.info("Converting annotations of dataset '%s' to COCO format ...", dataset_name)
        temporary = output_file + ".tmp"
        with PathManager.open(temporary, "w") as file:
            json.dump(convert_to_coco_dict(dataset_name), file)
        os.replace(temporary, output_file)
