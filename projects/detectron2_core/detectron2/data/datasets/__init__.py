"""Loaders of COCO's and LVIS's formats, and the built-in dataset names."""

from .coco import convert_to_coco_json, load_coco_json, register_coco_instances
from .lvis import get_lvis_instances_meta, load_lvis_json, register_lvis_instances

from . import builtin  # isort: skip  (registers the built-in names)

__all__ = [
    "builtin",
    "convert_to_coco_json",
    "get_lvis_instances_meta",
    "load_coco_json",
    "load_lvis_json",
    "register_coco_instances",
    "register_lvis_instances",
]
