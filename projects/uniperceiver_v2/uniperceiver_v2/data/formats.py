"""Dataset formats beyond Detectron2's own: folders of classes, captions, lines of text."""

import json
import os
from collections.abc import Mapping, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from .records import Records, load_checked

_IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


def register_image_folder(
    name: str,
    root: str,
    class_names: Sequence[str] | Mapping[str, str] | None = None,
    *,
    names_file: str | None = None,
    **metadata,
) -> None:
    """Register an ImageNet-style tree, ``root/<class>/<image>``, for classification.

    Args:
        name: for ``DatasetCatalog``.
        root: the folder of the classes' folders; read when the dataset is first loaded.
        class_names: the folders' names in the order of the labels, or their classes' names by folder; by
            default the folders in alphabetical order, each named as its class.
        names_file: a text file with a folder and its class's names, separated by commas, on each line
            (ImageNet's ``LOC_synset_mapping.txt``); the first name is taken. Not with ``class_names``.
        metadata: more of it.
    """

    def load() -> Records:
        return load_checked(name, lambda: load_image_folder(root, _classes(), dataset_name=name))

    def _classes() -> Sequence[str] | Mapping[str, str] | None:
        return class_names if names_file is None else _read_class_names(names_file)

    DatasetCatalog.register(name, load)
    known = {} if class_names is None else {"thing_classes": list(_by_folder(class_names).values())}
    MetadataCatalog.get(name).set(source=root, evaluator_type="imagenet", **known, **metadata)


def load_image_folder(
    root: str,
    class_names: Sequence[str] | Mapping[str, str] | None = None,
    dataset_name: str | None = None,
) -> Records:
    """Records {"file_name", "image_id", "label"} of an ImageNet-style tree, in order of class and file name.

    Args:
        root, class_names: see :func:`register_image_folder`. Other folders are left aside.
        dataset_name: its metadata gets ``thing_classes``, as that of detection datasets.

    Raises:
        FileNotFoundError: ``root`` or a class's folder is missing.
    """
    if class_names is None:
        with os.scandir(root) as entries:
            class_names = sorted(entry.name for entry in entries if entry.is_dir())
    classes = _by_folder(class_names)
    records = []
    for label, folder in enumerate(classes):
        with os.scandir(os.path.join(root, folder)) as entries:
            paths = sorted(entry.path for entry in entries if entry.name.lower().endswith(_IMAGE_SUFFIXES))
        for path in paths:
            records.append({"file_name": path, "image_id": len(records), "label": label})
    if dataset_name is not None:
        MetadataCatalog.get(dataset_name).thing_classes = list(classes.values())
    return records


def _by_folder(class_names: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    return dict(class_names) if isinstance(class_names, Mapping) else {name: name for name in class_names}


def _read_class_names(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8") as file:
        lines = [line.split(maxsplit=1) for line in file if line.strip()]
    return {folder: names.split(",")[0].strip() for folder, names in lines}


def load_caption_json(json_file: str, image_root: str) -> Records:
    """Records of COCO's captions format, in order of image id.

    Returns:
        {"file_name", "height", "width", "image_id", "captions": list[str] in order of their ids}.

    Raises:
        KeyError: a caption's image is not among the JSON's.
    """
    with open(json_file, encoding="utf-8") as file:
        content = json.load(file)
    records = {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "captions": [],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    }
    for annotation in sorted(content["annotations"], key=lambda annotation: annotation["id"]):
        records[annotation["image_id"]]["captions"].append(annotation["caption"])
    return list(records.values())


def load_text_lines(path: str) -> Records:
    """Records {"text_id", "text"} of a file with one text on each line; empty lines are left out."""
    with open(path, encoding="utf-8") as file:
        texts = [line.strip() for line in file if line.strip()]
    return [{"text_id": index, "text": text} for index, text in enumerate(texts)]
