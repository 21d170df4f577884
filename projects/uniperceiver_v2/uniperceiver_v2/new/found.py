"""Recognises the datasets in a user's folder by their files."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..data.datasets.folders import images_below
from ..errors import UserError
from ..reading import read_columns, read_json, read_table, read_xml, read_yaml

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_IMAGE_COLUMNS = ("image", "file", "file_name", "filename", "path", "image_path")
_CLASS_COLUMNS = ("class", "label", "category", "species", "kind", "name")
_TEXT_COLUMNS = ("text", "sentence", "caption", "title", "description")


class Found(NamedTuple):
    """A dataset of a folder: its node of ``DATASETS.CUSTOM``, its split, "train", "val", "test" or "" for all in one,
    and the path that it was recognised by."""

    node: dict[str, Any]
    split: str
    path: Path


def find_datasets(folder: Path) -> tuple[list[Found], list[str]]:
    """The datasets in a folder, and a sentence for each file that looked like one and could not be read.

    Files that say what they are come first: JSON, YOLO's YAML, Pascal VOC's XML, CSV. Folders of images are folders of
    classes where none of these was found, and texts are a corpus where there are no images.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    images = images_below(folder)
    found: list[Found] = []
    problems: list[str] = []
    for finder in (_find_json, _find_yolo, _find_voc, _find_tables):
        found += finder(folder, images, problems)
    if images and not found:
        found += _find_class_folders(folder)
    if not images and not found:
        texts = sorted(folder.rglob("*.txt"))
        found += [Found({"FORMAT": "text_lines", "FILE": str(path)}, _split_of(path, folder), path) for path in texts]
    return found, problems


def _split_of(path: Path, folder: Path) -> str:
    """The split in the names of a path below a folder: "instances_train2017.json" is of "train"."""
    words = re.findall(r"[a-z]+", path.relative_to(folder).as_posix().lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "")


def _root_of(name: str, images: list[Path], near: Path) -> Path | None:
    """The folder that an image's name is relative to. Of several, the one that shares most with ``near``. A whole path
    needs none, so it gets the folder of ``near``."""
    if os.path.isabs(name) and Path(name).resolve() in {image.resolve() for image in images}:
        return near.parent
    parts = Path(name).parts
    roots = [image.parents[len(parts) - 1] for image in images if image.parts[-len(parts) :] == parts]
    return max(roots, key=lambda root: _shared(root, near), default=None)


def _shared(root: Path, near: Path) -> tuple[int, int]:
    """How similar two paths are: common parts at the start, then words of the name."""
    words = set(re.findall(r"[a-z]+", near.stem.lower()))
    return len(os.path.commonpath([root, near])), len(words & set(re.findall(r"[a-z]+", root.as_posix().lower())))


def _find_json(folder: Path, images: list[Path], problems: list[str]) -> Iterator[Found]:
    for path in sorted(folder.rglob("*.json")):
        try:
            content = read_json(str(path))
        except UserError as error:
            problems.append(str(error))
            continue
        name = _json_format(content)
        if name is None:
            continue
        entry = content["images"][0]
        file_name = str(entry.get("file_name") or "/".join(str(entry.get("coco_url", "")).split("/")[-2:]))
        root = _root_of(file_name, images, path)
        if root is None:
            problems.append(f"{path} names the image '{file_name}', which is nowhere in {folder}")
            continue
        yield Found({"FORMAT": name, "JSON": str(path), "IMAGES": str(root)}, _split_of(path, folder), path)


def _json_format(content: Any) -> str | None:
    """The format of a JSON by the keys of its entries. None if it is another file."""
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not content["images"]:
        return None
    annotations = content.get("annotations") or [{}]
    image, annotation = content["images"][0], annotations[0] if isinstance(annotations, list) else None
    if not isinstance(image, dict) or not isinstance(annotation, dict):
        return None
    if "caption" in annotation:
        return "coco_captions"
    if "phrase" in annotation:
        return "phrases"
    if not isinstance(content.get("categories"), list):
        return None
    return "lvis" if "neg_category_ids" in image else "coco"


def _find_yolo(folder: Path, images: list[Path], problems: list[str]) -> Iterator[Found]:
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        try:
            content = read_yaml(str(path))
        except UserError as error:
            problems.append(str(error))
            continue
        if "names" in content:
            for key in ("train", "val", "test"):
                if content.get(key):
                    yield Found({"FORMAT": "yolo", "YAML": str(path), "SPLIT": key}, SPLITS[key], path)


def _find_voc(folder: Path, images: list[Path], problems: list[str]) -> Iterator[Found]:
    for annotations in sorted({path.parent for path in folder.rglob("*.xml")}):
        files = sorted(annotations.glob("*.xml"))
        try:
            root = read_xml(str(files[0]))
        except UserError as error:
            problems.append(str(error))
            continue
        if root.tag != "annotation":
            continue
        name = (root.findtext("filename") or f"{files[0].stem}.jpg").strip()
        place = _root_of(name, images, files[0])
        if place is None:
            problems.append(f"{files[0]} names the image '{name}', which is nowhere in {folder}")
            continue
        node = {"FORMAT": "voc", "ANNOTATIONS": str(annotations), "IMAGES": str(place)}
        lists = [path for path in sorted(annotations.parent.glob("ImageSets/Main/*.txt")) if path.stem in SPLITS]
        for path in lists:
            yield Found({**node, "LIST": str(path)}, SPLITS[path.stem], path)
        if not lists:
            yield Found(node, _split_of(annotations, folder), annotations)


def _find_tables(folder: Path, images: list[Path], problems: list[str]) -> Iterator[Found]:
    for path in sorted([*folder.rglob("*.csv"), *folder.rglob("*.tsv")]):
        try:
            node = _table_node(path, read_columns(str(path)), images, problems)
        except UserError as error:
            problems.append(str(error))
            continue
        if node is not None:
            yield Found(node, _split_of(path, folder), path)


def _table_node(path: Path, columns: list[str], images: list[Path], problems: list[str]) -> dict[str, Any] | None:
    image = next((column for column in columns if column.lower() in _IMAGE_COLUMNS), None)
    kind = next((column for column in columns if column.lower() in _CLASS_COLUMNS and column != image), None)
    text = next((column for column in columns if column.lower() in _TEXT_COLUMNS), None)
    if image is None or (kind is None and text is None):
        return None if text is None else {"FORMAT": "text_csv", "FILE": str(path), "COLUMNS": [text]}
    rows = read_table(str(path), (image,))
    root = _root_of(rows[0][image], images, path) if rows else None
    if root is None:
        problems.append(f"{path}: its column '{image}' names no image that is in the folder")
        return None
    name, other = ("caption_csv", text) if text is not None else ("class_csv", kind)
    return {"FORMAT": name, "FILE": str(path), "IMAGES": str(root), "COLUMNS": [image, other]}


def _find_class_folders(folder: Path) -> list[Found]:
    """Folders of two classes or more, right in the folder or in its splits."""
    splits = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in SPLITS]
    if splits:
        return [
            Found({"FORMAT": "class_folders", "IMAGES": str(path)}, SPLITS[path.name.lower()], path) for path in splits
        ]
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and images_below(path)]
    classes = [path for path in below if any(image.parent == path for image in images_below(path))]
    if len(below) == 1 and not classes:
        return _find_class_folders(below[0])
    return [Found({"FORMAT": "class_folders", "IMAGES": str(folder)}, "", folder)] if len(classes) > 1 else []
