"""Objects in folders of one file for each image: YOLO's texts and Pascal VOC's XML."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detectron2.structures import BoxMode

from ...errors import UserError, nearest
from ...reading import picture_endings, read_lines, read_xml, read_yaml, while_reading
from .objects import Objects, box_around, named, readable_size
from .records import Records


def read_yolo(yaml_file: str, split: str) -> Objects:
    """Objects of YOLO's format: a YAML with the names and the folders of images, and a text for each image.

    The text of "images/a/b.jpg" is "labels/a/b.txt", or "b.txt" beside the image where no folder is called "images". An
    image without a text has no objects. The category's id is the number in the text, and the image's id is its path
    below the split's folder.

    Args:
        yaml_file: with "names", a list or {number: name}, and the splits. Folders are relative to its "path", which is
            relative to the YAML.
        split: a key of the YAML: "train", "val" or "test". Its value is a folder, a list of image paths, or several of
            them.

    Raises:
        UserError: a file is not in the format. The message has the line that is wrong.
    """
    content, path = read_yaml(yaml_file), os.path.abspath(yaml_file)
    categories = named(_yolo_names(content.get("names"), path), path)
    index_of = {category.id: index for index, category in enumerate(categories)}
    if split not in content:
        raise UserError(f"{path} has no split '{split}'{nearest(split, (k for k in content if k != 'names'))}")
    root = Path(path).parent / str(content.get("path") or ".")
    sources = content[split] if isinstance(content[split], list) else [content[split]]
    with while_reading(yaml_file):  # which names the folders
        images = [found for source in sources for found in _yolo_images(_source(root, str(source)))]
    with_keypoints = "kpt_shape" in content  # they follow the box
    records, labelled = [], 0
    for image, image_id in images:
        size = readable_size(str(image))
        if size is None:
            continue
        text = yolo_text_of(image)
        labelled += text.is_file()
        try:
            annotations = [] if not text.is_file() else _yolo_objects(text, index_of, *size, with_keypoints)
        except UserError as error:  # where a folder is a wrong one, the text is none of this data
            raise UserError(f"{error} (for '{split}' of {path})") from error
        records.append(_record(str(image), image_id, size, annotations))
    if records and not labelled:
        raise UserError(f"{path}: none of the {len(records)} images of '{split}' has a text, such as {text}")
    return Objects(records, categories)


def yolo_text_of(image: Path) -> Path:
    """The path of an image's text."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _yolo_names(names: Any, path: str) -> dict[int, str]:
    if isinstance(names, list):
        return dict(enumerate(names))
    if isinstance(names, dict) and names and all(type(number) is int and number >= 0 for number in names):
        return names
    raise UserError(f'{path} needs "names": a list of names or NUMBER: NAME pairs, not {names!r}')


def _source(root: Path, name: str) -> Path:
    """A path of the YAML. Some programs write "../train/images" for "train/images"."""
    path = root / name
    return root / name.removeprefix("../") if not path.exists() and name.startswith("../") else path


def _yolo_images(source: Path) -> Iterator[tuple[Path, str]]:
    """The images of a folder, or of a text with their paths, and their ids."""
    if source.is_file():
        for line in read_lines(str(source)):
            yield source.parent / line, line
        return
    for image in images_below(source):
        yield image, image.relative_to(source).as_posix()


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and the folders in it, sorted by path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(None, "no such folder", str(folder))
    endings = picture_endings()
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)


def _yolo_objects(text: Path, index_of: Mapping[int, int], height: int, width: int, with_keypoints: bool) -> list[dict]:
    annotations = []
    for number, line in enumerate(read_lines(str(text)), 1):
        where = f"{os.path.abspath(text)}: line {number}, '{line[:60]}'"
        try:
            category, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise UserError(f"{where}, is no object") from error
        values = values[:4] if with_keypoints else values
        is_polygon = len(values) >= 6 and len(values) % 2 == 0
        if not (len(values) == 4 or is_polygon) or not all(map(math.isfinite, (category, *values))):
            raise UserError(f"{where}, is no object")
        if category not in index_of:
            raise UserError(f"{where}, has the class {category:g}, which is none of the {len(index_of)} names")
        annotation = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": index_of[int(category)], "iscrowd": 0}
        scaled = [value * (height if place % 2 else width) for place, value in enumerate(values)]
        if is_polygon:
            annotation |= {"bbox": box_around([scaled]), "segmentation": [scaled]}
        else:
            x, y, w, h = scaled
            annotation["bbox"] = [x - w / 2, y - h / 2, w, h]
        annotations.append(annotation)
    return annotations


def read_voc(annotations: str, images: str, list_file: str = "", names: Sequence[str] = ()) -> Objects:
    """Objects of Pascal VOC's format: an XML for each image. A category's id is its name.

    Corners are counted from 1 in the files, and from 0 in the records. An object that is "difficult" counts as a
    crowd: it is not learned, and detecting it is neither right nor wrong.

    Args:
        annotations: the folder of the XML files.
        images: the folder of the images.
        list_file: a text with the names of the files to use, without suffix; "" for all of them.
        names: the categories; by default those of all files of the folder, so that splits have the same.

    Raises:
        UserError: a file is not in the format.
    """
    folder = Path(annotations)
    if not folder.is_dir():
        raise FileNotFoundError(None, "no such folder", str(folder))
    files = {path.stem: path for path in sorted(folder.glob("*.xml"))}
    trees = {stem: read_xml(str(path)) for stem, path in files.items()}
    found = {name for stem, tree in trees.items() for name in _voc_names(tree, files[stem])}
    categories = named({name: name for name in names or found}, os.path.abspath(annotations))
    if names and (unknown := sorted(found - set(names))):
        raise UserError(f"{folder.resolve()} has objects called '{unknown[0]}'{nearest(unknown[0], names)}")
    index_of = {category.id: index for index, category in enumerate(categories)}
    chosen = [line.split()[0] for line in read_lines(list_file)] if list_file else list(files)
    records: Records = []
    for stem in chosen:
        if stem not in trees:
            raise UserError(f"{os.path.abspath(list_file)} names '{stem}', but {folder.resolve()} has no {stem}.xml")
        tree = trees[stem]
        image = _voc_image(tree, Path(images), stem)
        size = readable_size(str(image))
        if size is not None:
            objects = [_voc_object(item, files[stem], index_of) for item in tree.iter("object")]
            records.append(_record(str(image), stem, size, objects))
    return Objects(records, categories)


def _voc_image(tree: ElementTree.Element, images: Path, stem: str) -> Path:
    """The image of an XML file: as it says, or else the image with the name of the XML."""
    said = images / (tree.findtext("filename") or f"{stem}.jpg").strip()
    beside = (images / f"{stem}{suffix}" for suffix in picture_endings())
    return said if said.is_file() else next((path for path in beside if path.is_file()), said)


def _voc_names(tree: ElementTree.Element, path: Path) -> Iterator[str]:
    for item in tree.iter("object"):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{path.resolve()}: an <object> has no <name>")
        yield name


def _voc_object(item: ElementTree.Element, path: Path, index_of: Mapping[str, int]) -> dict:
    name = item.findtext("name").strip()
    try:
        corners = [float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError as error:
        raise UserError(
            f"{path.resolve()}: the object '{name}' has no <bndbox> of numbers <xmin>, <ymin>, <xmax> and <ymax>"
        ) from error
    x0, y0, x1, y1 = corners
    return {
        "bbox": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": index_of[name],
        "iscrowd": int((item.findtext("difficult") or "0").strip() == "1"),
    }


def _record(file_name: str, image_id: str, size: tuple[int, int], annotations: list[dict]) -> dict:
    height, width = size
    return {
        "file_name": file_name,
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": annotations,
    }
