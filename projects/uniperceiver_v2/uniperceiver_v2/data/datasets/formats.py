"""Dataset formats that Detectron2 lacks: folders of classes, captions, objects without classes, lines of text."""

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ...errors import UserError
from ...reading import id_order, open_text, picture_endings, while_reading
from .records import Records, register_dataset


def register_image_folder(
    name: str,
    root: str,
    class_names: Sequence[str] | Mapping[str, str] | None = None,
    *,
    names_file: str | None = None,
    **metadata: Any,
) -> None:
    """Register an ImageNet-style tree, ``root/<class>/<image>``, for classification.

    Args:
        name: for ``DatasetCatalog``.
        root: the folder with the classes' folders. It is read when the dataset is first loaded.
        class_names: the names of the folders in the order of the labels, or {folder: name of the class}. By default the
            folders in alphabetical order, with their names as classes.
        names_file: a text file such as ImageNet's ``LOC_synset_mapping.txt``. A line has a folder and the names of its
            class, separated by commas. The first name is used, if no other class has it. Not together with
            ``class_names``.
        metadata: further metadata.
    """

    def load() -> Records:
        if names_file is None:
            return load_image_folder(root, class_names, dataset_name=name)
        with while_reading(names_file):  # which names the folders
            return load_image_folder(root, _read_class_names(names_file), dataset_name=name)

    known = {} if class_names is None else {"thing_classes": list(_by_folder(class_names).values())}
    register_dataset(name, load, source=root, evaluator_type="imagenet", **known, **metadata)


def load_image_folder(
    root: str,
    class_names: Sequence[str] | Mapping[str, str] | None = None,
    dataset_name: str | None = None,
) -> Records:
    """Records {"file_name", "image_id", "label"} of an ImageNet-style tree, in order of class and file name.

    Args:
        root, class_names: see :func:`register_image_folder`. Other folders are ignored.
        dataset_name: the dataset's metadata gets ``thing_classes``, as for detection datasets.

    Raises:
        FileNotFoundError: ``root`` or a class's folder is missing.
    """
    if class_names is None:
        with os.scandir(root) as entries:
            class_names = sorted(entry.name for entry in entries if entry.is_dir())
    classes, endings = _by_folder(class_names), picture_endings()
    records = []
    for label, folder in enumerate(classes):
        with os.scandir(os.path.join(root, folder)) as entries:
            paths = sorted(entry.path for entry in entries if entry.name.lower().endswith(endings))
        for path in paths:
            records.append({"file_name": path, "image_id": len(records), "label": label})
    if dataset_name is not None:
        MetadataCatalog.get(dataset_name).thing_classes = list(classes.values())
    return records


def _by_folder(class_names: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    return dict(class_names) if isinstance(class_names, Mapping) else {name: name for name in class_names}


# The two cranes of ImageNet-1k have no other name in its list.
_CRANES = {"n02012849": "crane bird", "n03126707": "construction crane"}


def _read_class_names(path: str) -> dict[str, str]:
    """{folder: name of its class} of a list such as ImageNet's. No two names are the same, whatever their case.

    A class has its first name. Where several classes share it, the one with the fewest names keeps it, and each other
    one takes its next name that no class has. For example, ImageNet's "maillot" keeps its name, and "maillot, tank
    suit" becomes "tank suit".

    Raises:
        UserError: a line has no name, or two classes have the same name and no other one.
    """
    with open_text(path) as file:
        lines = [line.split(maxsplit=1) for line in file if line.strip()]
    if not lines:
        raise UserError(f"{os.path.abspath(path)} names no class")
    listed = {
        folder: [name.strip() for name in names.split(",")] for folder, *rest in lines for names in (rest or [""])
    }
    for folder, names in listed.items():
        if not names[0]:
            raise UserError(f"{os.path.abspath(path)}: the class {folder} has no name")
        if names == ["crane"]:
            listed[folder] = [_CRANES.get(folder, "crane")]
    first_names = {names[0].casefold() for names in listed.values()}
    owners: dict[str, str] = {}
    for folder, names in sorted(listed.items(), key=lambda item: len(item[1])):
        free = (n for n in names[1:] if n.casefold() not in owners and n.casefold() not in first_names)
        name = names[0] if names[0].casefold() not in owners else next(free, None)
        if name is None:
            other = owners[names[0].casefold()]
            raise UserError(
                f"{os.path.abspath(path)}: the classes {other} and {folder} are both called '{names[0]}', so "
                "the model could not tell them apart; add another name to one of the lines, after a comma"
            )
        owners[name.casefold()] = folder
        listed[folder] = [name]
    return {folder: names[0] for folder, names in listed.items()}


def register_captions(
    name: str,
    json_file: str,
    image_root: str,
    *,
    karpathy_split: str | None = None,
    evaluator_type: str = "coco_caption",
    **metadata: Any,
) -> None:
    """Register images with captions, for captioning and retrieval.

    Args:
        name: for ``DatasetCatalog``.
        json_file: a file in COCO's captions format, or in Karpathy's format with ``karpathy_split``.
        image_root: the folder of the images.
        karpathy_split: "train", "val" or "test"; see :func:`load_karpathy_json`.
        evaluator_type: "coco_caption" to evaluate generated captions, "retrieval" to evaluate retrieval.
        metadata: further metadata.
    """

    def load() -> Records:
        if karpathy_split is None:
            return load_caption_json(json_file, image_root)
        return load_karpathy_json(json_file, image_root, karpathy_split)

    register_dataset(name, load, json_file=json_file, image_root=image_root, evaluator_type=evaluator_type, **metadata)


def load_caption_json(json_file: str, image_root: str) -> Records:
    """Records of COCO's captions format, in the order of image ids.

    Images may lack their sizes, and annotations their ids. These are then in the order of the file.

    Returns:
        {"file_name", "height", "width", "image_id", "captions": list[str] in the order of their ids}.

    Raises:
        UserError: a caption is not a string, or its image is not among the JSON's.
    """
    content = read_json(json_file)
    records = {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            **{key: image[key] for key in ("height", "width") if key in image},
            "image_id": image["id"],
            "captions": [],
        }
        for image in sorted(content["images"], key=lambda image: id_order(image["id"]))
    }
    for annotation in sorted(content["annotations"], key=lambda annotation: id_order(annotation.get("id", 0))):
        what = f"{json_file}: annotation {annotation.get('id', '')}".rstrip()
        if annotation["image_id"] not in records:
            raise UserError(f'{what} is of image {annotation["image_id"]}, which is not among "images"')
        caption = string(annotation["caption"], f"{what} of image {annotation['image_id']}: its caption")
        records[annotation["image_id"]]["captions"].append(caption)
    return list(records.values())


def load_karpathy_json(json_file: str, image_root: str, split: str) -> Records:
    """Records of a split by Karpathy and Fei-Fei, in the file's order.

    Args:
        json_file: their ``dataset_coco.json`` or ``dataset_flickr30k.json``.
        image_root: the folder of the images. The file's "filepath", if there is one, and "filename" are relative to it.
        split: "train", "val" or "test". As usual, "train" includes COCO's "restval".

    Returns:
        {"file_name", "image_id", "captions": list[str]}. "image_id" is COCO's id if there is one, otherwise "imgid".

    Raises:
        UserError: a caption is not a string.
    """
    splits = {"train", "restval"} if split == "train" else {split}
    return [
        {
            "file_name": os.path.join(image_root, image.get("filepath", ""), image["filename"]),
            "image_id": image.get("cocoid", image["imgid"]),
            "captions": [
                string(sentence["raw"], f"{json_file}: the caption with sentid {sentence['sentid']}")
                for sentence in image["sentences"]
            ],
        }
        for image in read_json(json_file)["images"]
        if image["split"] in splits
    ]


def register_proposals(name: str, json_file: str, image_root: str, **metadata: Any) -> None:
    """Register the objects of all categories as one, "object", to evaluate class-agnostic proposals.

    Args:
        name: for ``DatasetCatalog``.
        json_file: a file in COCO's instances format.
        image_root: the folder of the images.
        metadata: further metadata.
    """

    def load() -> Records:
        records = load_coco_json(json_file, image_root)
        for record in records:
            record["annotations"] = [{**annotation, "category_id": 0} for annotation in record["annotations"]]
        return records

    known = {"thing_classes": ["object"], "evaluator_type": "coco_proposals"}
    register_dataset(name, load, json_file=json_file, image_root=image_root, **known, **metadata)


def read_json(path: str) -> Any:
    """The content of a JSON of a registered dataset. Its errors are those of ``json``, which
    :func:`~uniperceiver_v2.reading.sources.explained` gives this file and the dataset's remedy."""
    with while_reading(path), open_text(path) as file:
        return json.load(file)


def string(value: object, what: str) -> str:
    """A string as it is.

    Raises:
        UserError: it is none; the message begins with ``what`` it is.
    """
    if not isinstance(value, str):
        raise UserError(f"{what} is {reprlib.repr(value)}, not a string")
    return value


def register_text_lines(name: str, path: str, **metadata: Any) -> None:
    """Register a text file for language modelling, with one text on each line. Empty lines are left out.

    Args:
        name: for ``DatasetCatalog``.
        path: the file, in UTF-8.
        metadata: further metadata.
    """
    register_dataset(name, lambda: load_text_lines(path), source=path, evaluator_type="corpus", **metadata)


def load_text_lines(path: str) -> Records:
    """Records {"text_id", "text"} of a file with one text on each line. Empty lines are left out."""
    with open_text(path) as file:
        texts = [line.strip() for line in file if line.strip()]
    return [{"text_id": index, "text": text} for index, text in enumerate(texts)]
