"""LVIS's instance annotations. Categories come from LVIS's own files, each of which has all of them."""

import functools
import glob
import json
import logging
import os

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, Metadata, MetadataCatalog
from .builtin_meta import _get_coco_instances_meta
from .coco import _is_polygon, _require_different_ids

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)


def register_lvis_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a dataset in LVIS's format.

    Args:
        name: for ``DatasetCatalog``. It contains "v1" or "v0.5", or "cocofied" for COCO's categories.
        metadata: further metadata, may be empty.
        json_file: the dataset's annotations.
        image_root: a path with "/" at its end. The last two parts of each image's ``coco_url`` are appended to it.
    """
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict]:
    """Load instance annotations, without reading images.

    Args:
        json_file: annotations in LVIS's format.
        image_root: a path with "/" at its end. The last two parts of each image's ``coco_url`` are appended to it.
        dataset_name: with a name, the dataset's metadata gets ``thing_classes``. A name with "cocofied" means COCO's
            categories. Otherwise category ids begin with 1.
        extra_annotation_keys: further keys of annotations, which are copied unchanged.

    Returns:
        Records in Detectron2's format, sorted by image id. They have "neg_category_ids" and
        "not_exhaustive_category_ids" as in the file (ids, not indices).

    Raises:
        ValueError: ``dataset_name`` has no known version of LVIS, or two images or two categories have the same id.
        AssertionError: annotation ids are not unique, or a polygon has less than three points.
    """
    from lvis import LVIS

    json_file = PathManager.get_local_path(json_file)
    lvis_api = LVIS(json_file)
    _require_different_ids(lvis_api, json_file)
    metadata = {}
    if dataset_name is not None:
        metadata = _metadata_for(dataset_name, lvis_api.dataset["categories"])
        MetadataCatalog.get(dataset_name).set(**metadata)
    index_of = metadata.get("thing_dataset_id_to_contiguous_id")

    image_ids = sorted(lvis_api.imgs)
    ids = [annotation["id"] for i in image_ids for annotation in lvis_api.img_ann_map[i]]
    assert len(set(ids)) == len(ids), f"Annotation ids in '{json_file}' are not unique"

    def convert(annotation: dict) -> dict:
        segmentation, category = annotation["segmentation"], annotation["category_id"]
        assert segmentation, "Annotation without segmentation"
        assert all(map(_is_polygon, segmentation)), "Annotation contains an invalid polygon with < 3 points"
        return {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": category - 1 if index_of is None else index_of[category],
            "segmentation": segmentation,
        } | {key: annotation[key] for key in extra_annotation_keys or []}

    records = []
    for image_id in image_ids:
        image = lvis_api.imgs[image_id]
        # ".../train2017/000000155379.jpg": LVIS uses images of several of COCO's folders
        folder, file_name = image["coco_url"].split("/")[-2:]
        records.append(
            {
                "file_name": os.path.join(image_root + folder, file_name),
                "height": image["height"],
                "width": image["width"],
                "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
                "neg_category_ids": image.get("neg_category_ids", []),
                "image_id": image_id,
                "annotations": [convert(annotation) for annotation in lvis_api.img_ann_map[image_id]],
            }
        )
    logger.info("Loaded %d images in the LVIS format from %s", len(records), json_file)
    return records


def _version(dataset_name: str) -> str:
    for version in ("v0.5", "v1"):
        if version in dataset_name:
            return version
    raise ValueError(f"No built-in metadata for dataset {dataset_name}")


def _metadata_for(dataset_name: str, categories: list[dict]) -> dict:
    if "cocofied" in dataset_name:
        return _get_coco_instances_meta()
    _version(dataset_name)  # raises for a name without LVIS's version
    categories = sorted(categories, key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    assert ids == list(range(1, len(ids) + 1)), "Category ids are not in [1, #categories], as expected"
    return {"thing_classes": [category["synonyms"][0] for category in categories]}


def get_lvis_instances_meta(dataset_name: str) -> dict:
    """``thing_classes`` of a version of LVIS. A category's name is its first synonym.

    They are read from the smallest of the version's annotation files under ``$DETECTRON2_DATASETS/lvis``. Upstream has
    tables instead.

    Args:
        dataset_name: contains "v1" or "v0.5", or "cocofied" for COCO's categories.

    Raises:
        ValueError: the name contains none of these.
        FileNotFoundError: there is no such annotation file.
    """
    if "cocofied" in dataset_name:
        return _get_coco_instances_meta()
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    pattern = os.path.join(root, "lvis", f"lvis_{_version(dataset_name)}_*.json")
    files = sorted(glob.glob(pattern), key=os.path.getsize)
    if not files:
        raise FileNotFoundError(f"The categories of {dataset_name} are read from {pattern}: no such file")
    return {"thing_classes": list(_read_thing_classes(files[0], dataset_name))}


@functools.lru_cache(maxsize=4)
def _read_thing_classes(json_file: str, dataset_name: str) -> tuple[str, ...]:
    with PathManager.open(json_file) as file:
        categories = json.load(file)["categories"]
    return tuple(_metadata_for(dataset_name, categories)["thing_classes"])


class _LazyLvisMetadata(Metadata):
    """Metadata that reads ``thing_classes`` from LVIS's files when they are first used."""

    def __getattr__(self, key: str):
        if key != "thing_classes":
            return super().__getattr__(key)
        try:
            self.thing_classes = get_lvis_instances_meta("lvis_" + _version(self.name))["thing_classes"]
        except FileNotFoundError as error:
            raise AttributeError(str(error)) from error
        return self.thing_classes
