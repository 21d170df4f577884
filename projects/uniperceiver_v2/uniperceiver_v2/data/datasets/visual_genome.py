"""Visual Genome's region descriptions (Krishna et al., 2017): phrases that mean a box each, or captions."""

import logging
import os
from typing import Any

from ...errors import UserError
from ...reading import require_size, while_reading
from .formats import read_json, string
from .phrases import add_box, record_of
from .records import Records, register_dataset

logger = logging.getLogger(__name__)


def register_region_descriptions(
    name: str,
    regions_json: str,
    image_data_json: str,
    image_root: str,
    *,
    split: tuple[str, str] | None = None,
    evaluator_type: str = "grounding",
    **metadata: Any,
) -> None:
    """Register Visual Genome's regions, for grounding or for captions of regions.

    Args:
        name: for ``DatasetCatalog``.
        regions_json, image_data_json, image_root: see :func:`load_region_descriptions`.
        split: a JSON with lists of image ids, and the name of one; None for all images.
        evaluator_type: "grounding", or "region_captions" to evaluate captions of the regions.
        metadata: more of it.
    """

    def load() -> Records:
        records = load_region_descriptions(regions_json, image_data_json, image_root)
        if split is None:
            return records
        file, part = split
        with while_reading(file):
            chosen = set(read_json(file)[part])
        kept = [record for record in records if record["image_id"] in chosen]
        if not kept:
            raise UserError(f"{file}: its images of '{part}' are none of those in {regions_json}")
        return kept

    register_dataset(
        name, load, json_file=regions_json, image_root=image_root, evaluator_type=evaluator_type, **metadata
    )


def register_region_captions(
    name: str, regions_json: str, image_data_json: str, image_root: str, **metadata: Any
) -> None:
    """Register Visual Genome's regions as captions of their images, as in the paper.

    Args:
        name: for ``DatasetCatalog``.
        regions_json, image_data_json, image_root: see :func:`load_region_descriptions`.
        metadata: more of it.
    """
    register_dataset(
        name,
        lambda: load_region_captions(regions_json, image_data_json, image_root),
        json_file=regions_json,
        image_root=image_root,
        evaluator_type="coco_caption",
        **metadata,
    )


def load_region_captions(regions_json: str, image_data_json: str, image_root: str) -> Records:
    """Records of the images that have regions, in order of image id. Each region's phrase is a caption.

    Args:
        regions_json, image_data_json, image_root: see :func:`load_region_descriptions`.

    Raises:
        UserError: a region is of an image that is not there, or its phrase is no string.
    """
    records: dict[int, dict] = {
        image_id: {**image, "captions": []} for image_id, image in _images(image_data_json, image_root).items()
    }
    for image in read_json(regions_json):
        for region in image["regions"]:
            what = f"{regions_json}: region_id {region['region_id']}"
            caption = string(region["phrase"], f"{what}: its phrase")
            record_of(records, image["id"], what, image_data_json)["captions"].append(caption)
    return [record for record in records.values() if record["captions"]]


def _images(image_data_json: str, image_root: str) -> dict[int, dict]:
    """Records of the images by id, without their regions, and with the ids at COCO and Flickr that are known."""
    records = {}
    with while_reading(image_data_json):
        for image in sorted(read_json(image_data_json), key=lambda image: image["image_id"]):
            require_size(image, f"{image_data_json}: image {image['image_id']}")
            records[image["image_id"]] = {
                "file_name": os.path.join(image_root, *image["url"].split("/")[-2:]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["image_id"],
                "photos": [f"{site}:{image[f'{site}_id']}" for site in ("coco", "flickr") if image.get(f"{site}_id")],
            }
    return records


def load_region_descriptions(regions_json: str, image_data_json: str, image_root: str) -> Records:
    """Records of the images that have regions, in order of image id.

    Regions are cut at the image's edges; those of which nothing is left are left out, and the log says how many.

    Args:
        regions_json: ``region_descriptions.json``.
        image_data_json: ``image_data.json``, with the sizes of the images, and with their addresses, which end in the
            folder (``VG_100K`` or ``VG_100K_2``) and the name of the file.
        image_root: the folder of these folders.

    Raises:
        UserError: a region is of an image that is not there, or its phrase is no string.
    """
    records: dict[int, dict] = {
        image_id: {**image, "annotations": [], "phrases": []}
        for image_id, image in _images(image_data_json, image_root).items()
    }
    outside = 0
    for image in read_json(regions_json):
        for region in image["regions"]:
            what = f"{regions_json}: region_id {region['region_id']}"
            record = record_of(records, image["id"], what, image_data_json)
            phrase = string(region["phrase"], f"{what}: its phrase")
            x0, y0 = max(region["x"], 0), max(region["y"], 0)
            x1 = min(region["x"] + region["width"], record["width"])
            y1 = min(region["y"] + region["height"], record["height"])
            if x1 <= x0 or y1 <= y0:
                outside += 1
                continue
            place = add_box(record, [x0, y0, x1 - x0, y1 - y0], what)
            record["phrases"].append({"phrase": phrase, "objects": [place]})
    if outside:
        logger.warning("%s: %d regions have no area inside their image and are left out", regions_json, outside)
    return [record for record in records.values() if record["phrases"]]
