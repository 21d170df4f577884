"""Datasets in CSV files: images with classes, images with captions, texts."""

import os
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from ...errors import UserError
from ...reading import read_table
from .records import Records


def read_class_table(path: str, image_root: str, columns: Sequence[str], dataset_name: str) -> Records:
    """Records {"file_name", "image_id", "label"} of a table with an image and a class in each row, in its order.

    Labels follow the order of the classes: numbers by size, texts by the alphabet. The dataset's metadata gets
    ``thing_classes``.

    Args:
        path: the CSV file.
        image_root: the folder of the images.
        columns: the names of the column of images and of the column of classes.
        dataset_name: whose metadata to set.

    Raises:
        UserError: the file is not a CSV with these columns, or a field is empty.
    """
    rows = _rows(path, columns)
    names = {name for _, name in rows}
    are_numbers = all(name.isdecimal() for name in names)
    classes = sorted(names, key=lambda name: (int(name), name) if are_numbers else (0, name))
    MetadataCatalog.get(dataset_name).thing_classes = classes
    label_of = {name: label for label, name in enumerate(classes)}
    return [
        {"file_name": os.path.join(image_root, image), "image_id": place, "label": label_of[name]}
        for place, (image, name) in enumerate(rows)
    ]


def read_caption_table(path: str, image_root: str, columns: Sequence[str]) -> Records:
    """Records {"file_name", "image_id", "captions"} of a table with an image and a caption in each row.

    Images are in the order of their first rows. An image's id is its path in the table.

    Args:
        path: the CSV file.
        image_root: the folder of the images.
        columns: the names of the column of images and of the column of captions.

    Raises:
        UserError: the file is not a CSV with these columns, or a field is empty.
    """
    captions: dict[str, list[str]] = {}
    for image, caption in _rows(path, columns):
        captions.setdefault(image, []).append(caption)
    return [
        {"file_name": os.path.join(image_root, image), "image_id": image, "captions": its}
        for image, its in captions.items()
    ]


def read_text_table(path: str, columns: Sequence[str]) -> Records:
    """Records {"text_id", "text"} of a table with a text in each row. Empty texts are left out."""
    texts = [row[columns[0]] for row in read_table(path, (columns[0],))]
    return [{"text_id": place, "text": text} for place, text in enumerate(texts) if text]


def _rows(path: str, columns: Sequence[str]) -> list[tuple[str, str]]:
    first, second = columns
    rows = [(row[first], row[second]) for row in read_table(path, (first, second))]
    for number, (image, value) in enumerate(rows, 1):
        if not image or not value:
            raise UserError(f"{os.path.abspath(path)}: row {number} has no {first if not image else second}")
    return rows
