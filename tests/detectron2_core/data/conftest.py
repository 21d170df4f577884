"""Small datasets on disk."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture
def name(request):
    """A dataset name that only this test uses, removed afterwards."""
    name = request.node.name
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def _annotation(number, image_id, category_id, box, **more):
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [polygon],
    } | more


@pytest.fixture
def coco_content(tmp_path):
    """Three images: a 40 x 20 one with two objects and a crowd, a 20 x 40 one with one object, and an empty one.

    The ids of the categories have a gap and are not sorted.
    """
    rng = np.random.default_rng(0)
    images = []
    for image_id, (width, height) in {7: (20, 40), 3: (40, 20), 9: (40, 20)}.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{image_id}.png")
        images.append({"id": image_id, "width": width, "height": height, "file_name": f"{image_id}.png"})
    crowd = np.zeros((20, 40), dtype=np.uint8, order="F")
    crowd[2:10, 20:35] = 1
    rle = mask_util.encode(crowd)
    rle["counts"] = rle["counts"].decode()
    return {
        "images": images,
        "categories": [{"id": 5, "name": "five"}, {"id": 2, "name": "two"}],
        "annotations": [
            _annotation(1, 7, 5, (4.0, 6.0, 10.0, 20.0), score=0.5),
            _annotation(2, 3, 2, (5.0, 2.0, 12.0, 10.0)),
            _annotation(3, 3, 5, (18.0, 8.0, 16.0, 8.0)),
            _annotation(4, 3, 2, (20.0, 2.0, 15.0, 8.0), iscrowd=1, segmentation=rle),
        ],
    }


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write
