"""The built-in datasets. Their files are below the directory in ``DETECTRON2_DATASETS``, "datasets" by default.

A dataset's files are read when it is first used.
"""

import os

from ..catalog import MetadataCatalog
from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances
from .lvis import _LazyLvisMetadata, register_lvis_instances

# name: (images, annotations), below the root
_COCO_SPLITS = {
    "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
    "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
    "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
    "coco_2014_valminusminival": ("coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
    "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
    "coco_2017_test": ("coco/test2017", "coco/annotations/image_info_test2017.json"),
    "coco_2017_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json"),
}

# LVIS's images are COCO's. Its annotations have the folder of each image.
_LVIS_SPLITS = {
    "lvis_v1_train": ("coco/", "lvis/lvis_v1_train.json"),
    "lvis_v1_val": ("coco/", "lvis/lvis_v1_val.json"),
    "lvis_v1_test_dev": ("coco/", "lvis/lvis_v1_image_info_test_dev.json"),
    "lvis_v1_test_challenge": ("coco/", "lvis/lvis_v1_image_info_test_challenge.json"),
}


def register_all_coco(root: str) -> None:
    """Register COCO's instance annotations of 2014 and 2017 under ``root``."""
    for name, (image_root, json_file) in _COCO_SPLITS.items():
        register_coco_instances(
            name,
            _get_builtin_metadata("coco"),
            os.path.join(root, json_file),
            os.path.join(root, image_root),
        )


def register_all_lvis(root: str) -> None:
    """Register LVIS v1 under ``root``. Its 1203 categories are read from its files when they are first used."""
    for name, (image_root, json_file) in _LVIS_SPLITS.items():
        MetadataCatalog[name] = _LazyLvisMetadata(name=name)
        register_lvis_instances(name, {}, os.path.join(root, json_file), os.path.join(root, image_root))


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_root)
register_all_lvis(_root)
