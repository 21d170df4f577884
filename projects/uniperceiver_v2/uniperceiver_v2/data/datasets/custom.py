"""Registers the datasets that a configuration describes in ``DATASETS.CUSTOM``.

    DATASETS:
      CUSTOM:
        boats_train: {FORMAT: "coco", JSON: "boats/train.json", IMAGES: "boats/images"}

``FORMATS`` has all formats with their keys. Paths are relative to the working folder.
"""

from __future__ import annotations

import contextlib
import os
from ast import literal_eval
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError, nearest
from .folders import read_voc, read_yolo
from .formats import load_caption_json, load_image_folder, load_text_lines
from .objects import Objects, read_objects_json
from .parts import PARTS, part_of
from .phrases import load_phrase_json
from .records import Records, register_dataset
from .tables import read_caption_table, read_class_table, read_text_table

# Keys that every format has, with their defaults.
SHARED: dict[str, Any] = {"FORMAT": "", "PART": "", "TEST_SHARE": 0.2, "LEFT_OUT": []}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of a dataset's files.

    Attributes:
        title: in words.
        form: what the files look like, for messages.
        paths: the keys of its paths. The first is the source that messages name.
        read: (name, node with every key) -> the records, or :class:`Objects`. ``name`` is the dataset's.
        options: the other keys with their defaults. The type of a default is the type of the value.
        optional: those of ``paths`` that may be left out.
        evaluated_as: the values of "evaluator_type" that it may have; the first is the default.
    """

    title: str
    form: str
    paths: tuple[str, ...]
    read: Callable[[str, Mapping[str, Any]], Records | Objects]
    evaluated_as: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> dict[str, Any]:
        """Every key with its default."""
        return {
            **SHARED,
            **dict.fromkeys(self.paths, ""),
            **self.options,
            **({"EVALUATED_AS": self.evaluated_as[0]} if len(self.evaluated_as) > 1 else {}),
        }


_COCO_FORM = (
    'a JSON with "images" [{"id", "file_name", "height", "width"}], "categories" [{"id", "name"}] and "annotations" '
    '[{"image_id", "category_id", "bbox": [x, y, width, height], "segmentation"}]'
)

_YOLO_LINE = "<class> <x> <y> <width> <height>, or <class> <x1> <y1> <x2> <y2> <x3> <y3> ..., in shares of the image"

FORMATS: dict[str, Format] = {
    "coco": Format(
        title="objects in COCO's format",
        form=_COCO_FORM,
        paths=("JSON", "IMAGES"),
        read=lambda name, node: read_objects_json(node["JSON"], node["IMAGES"]),
        evaluated_as=("coco",),
    ),
    "lvis": Format(
        title="objects in LVIS's format",
        form=f'{_COCO_FORM}, with "frequency" of categories and "neg_category_ids" of images',
        paths=("JSON", "IMAGES"),
        read=lambda name, node: read_objects_json(node["JSON"], node["IMAGES"], lvis=True),
        evaluated_as=("lvis",),
    ),
    "yolo": Format(
        title="objects in YOLO's format",
        form=f'a YAML with "names" and the folders of the splits, and a text for each image with lines {_YOLO_LINE}',
        paths=("YAML",),
        options={"SPLIT": "train"},
        read=lambda name, node: read_yolo(node["YAML"], node["SPLIT"]),
        evaluated_as=("coco",),
    ),
    "voc": Format(
        title="objects in Pascal VOC's format",
        form="a folder of XML files with <object>, <name> and <bndbox>, and a folder of images",
        paths=("ANNOTATIONS", "IMAGES", "LIST"),
        optional=("LIST",),
        options={"NAMES": []},
        read=lambda name, node: read_voc(node["ANNOTATIONS"], node["IMAGES"], node["LIST"], node["NAMES"]),
        evaluated_as=("coco",),
    ),
    "class_folders": Format(
        title="images in a folder for each class",
        form="a folder of folders, one for each class, with its images",
        paths=("IMAGES",),
        options={"NAMES": []},
        read=lambda name, node: load_image_folder(node["IMAGES"], node["NAMES"] or None, name),
        evaluated_as=("imagenet",),
    ),
    "class_csv": Format(
        title="images with a class each, in a table",
        form="a CSV with a column of image paths and a column of classes",
        paths=("FILE", "IMAGES"),
        options={"COLUMNS": ["image", "class"]},
        read=lambda name, node: read_class_table(node["FILE"], node["IMAGES"], node["COLUMNS"], name),
        evaluated_as=("imagenet",),
    ),
    "coco_captions": Format(
        title="images with captions, in COCO's format",
        form='a JSON with "images" [{"id", "file_name", "height", "width"}] and "annotations" [{"id", "image_id", '
        '"caption"}]',
        paths=("JSON", "IMAGES"),
        read=lambda name, node: load_caption_json(node["JSON"], node["IMAGES"]),
        evaluated_as=("coco_caption", "retrieval"),
    ),
    "caption_csv": Format(
        title="images with captions, in a table",
        form="a CSV with a column of image paths and a column of captions; an image may have several rows",
        paths=("FILE", "IMAGES"),
        options={"COLUMNS": ["image", "caption"]},
        read=lambda name, node: read_caption_table(node["FILE"], node["IMAGES"], node["COLUMNS"]),
        evaluated_as=("coco_caption", "retrieval"),
    ),
    "phrases": Format(
        title="images with phrases for boxes",
        form='a JSON with "images" [{"id", "file_name", "height", "width"}] and "annotations" [{"id", "image_id", '
        '"phrase", "bboxes": [[x, y, width, height], ...]}], or "annotation_ids" of INSTANCES in place of "bboxes"',
        paths=("JSON", "IMAGES", "INSTANCES"),
        optional=("INSTANCES",),
        read=lambda name, node: load_phrase_json(node["JSON"], node["IMAGES"], node["INSTANCES"] or None),
        evaluated_as=("grounding",),
    ),
    "text_lines": Format(
        title="texts, one a line",
        form="a text in UTF-8 with one text a line",
        paths=("FILE",),
        read=lambda name, node: load_text_lines(node["FILE"]),
        evaluated_as=("corpus",),
    ),
    "text_csv": Format(
        title="texts, in a table",
        form="a CSV with a column of texts",
        paths=("FILE",),
        options={"COLUMNS": ["text"]},
        read=lambda name, node: read_text_table(node["FILE"], node["COLUMNS"]),
        evaluated_as=("corpus",),
    ),
}


def register_custom_datasets(datasets: Mapping[str, Any]) -> None:
    """Register the datasets of a configuration. Files are read when a dataset is used.

    A configuration may be read several times in a process. A name that came from a configuration is then registered
    anew.

    Args:
        datasets: {name: node}, with the keys of its format.

    Raises:
        UserError: a format or key is unknown, a key is missing or has a value of the wrong type, or the name is one of
            the project's or Detectron2's own datasets.
    """
    for name, given in datasets.items():
        where = f"DATASETS.CUSTOM.{name}"
        if name == "":
            raise UserError(f"{where} has no name")
        _register(str(name), _complete(given, where), where)


def _complete(given: Any, where: str) -> dict[str, Any]:
    """A node with the defaults of the keys that it leaves out."""
    if not isinstance(given, Mapping):
        raise UserError(f"{where} is {given!r}, not a section with FORMAT and paths")
    name = given.get("FORMAT", "")
    if not isinstance(name, str) or name not in FORMATS:
        raise UserError(f"{where}.FORMAT: unknown format '{name}'{nearest(str(name), FORMATS)}")
    its = FORMATS[name]
    node = dict(its.keys)
    for key, value in given.items():
        if key not in node:
            raise UserError(f"unknown configuration key '{where}.{key}' of the format '{name}'{nearest(key, node)}")
        node[key] = _typed(value, node[key], f"{where}.{key}")
    for key in its.paths:
        if not node[key] and key not in its.optional:
            raise UserError(f"{where}.{key} is missing; the format '{name}' is {its.form}")
        node[key] = os.path.expanduser(node[key])
    if node["PART"] not in PARTS:
        raise UserError(f"{where}.PART is 'train', 'test' or '' for all, not {node['PART']!r}")
    if not 0 < node["TEST_SHARE"] < 1:
        raise UserError(f"{where}.TEST_SHARE must be above 0 and below 1, not {node['TEST_SHARE']}")
    if node.get("EVALUATED_AS", its.evaluated_as[0]) not in its.evaluated_as:
        raise UserError(f"{where}.EVALUATED_AS is one of {', '.join(its.evaluated_as)}, not {node['EVALUATED_AS']!r}")
    if len(node.get("COLUMNS", ())) != len(its.options.get("COLUMNS", ())):
        raise UserError(f"{where}.COLUMNS needs {len(its.options['COLUMNS'])} names, such as {its.options['COLUMNS']}")
    return node


def _typed(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, list):
        with contextlib.suppress(ValueError, SyntaxError):
            value = literal_eval(value) if isinstance(value, str) else value  # from the command line
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return list(value)
        raise UserError(f"{where} is {value!r}, not a list of texts")
    if isinstance(default, float):
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} is {value!r}, not a number") from error
    if isinstance(value, str):
        return value
    raise UserError(f"{where} is {value!r}, not a text")


def _register(name: str, node: dict[str, Any], where: str) -> None:
    its = FORMATS[node["FORMAT"]]
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog and not metadata.get("own_format"):
        raise UserError(f"{where}: there is a dataset '{name}' already; give it another name")
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)

    def load() -> Records:
        found = its.read(name, node)
        if isinstance(found, Objects):
            _set_categories(name, found)
            found = found.records
        left_out = {os.path.abspath(os.path.expanduser(path)) for path in node["LEFT_OUT"]}
        used = [r for r in found if "file_name" not in r or os.path.abspath(r["file_name"]) not in left_out]
        return part_of(used, node["PART"], node["TEST_SHARE"])

    images = {"image_root": node["IMAGES"]} if node.get("IMAGES") else {}
    register_dataset(
        name,
        load,
        source=node[its.paths[0]],
        evaluator_type=node.get("EVALUATED_AS", its.evaluated_as[0]),
        own_format=node["FORMAT"],
        expected_form=its.form,
        **images,
    )


def _set_categories(name: str, objects: Objects) -> None:
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = [category.name for category in objects.categories]
    metadata.thing_dataset_id_to_contiguous_id = {c.id: index for index, c in enumerate(objects.categories)}
    metadata.frequencies = [category.frequency for category in objects.categories]
