"""Datasets as lists of records: loads them, or says clearly why one cannot be used."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError, nearest
from ...reading import check_annotations, check_json_of, explained, remedy_of, source_of
from .once_a_node import parsed_once

Records = list[dict]

logger = logging.getLogger(__name__)

_PANOPTIC_ENDING = re.compile(r"(-other|-stuff)?(-merged)?$")  # what COCO says of how its stuff was grouped


def load_dataset(name: str, most_bad: float = 0.0) -> Records:
    """The records of any registered dataset.

    Args:
        name: the dataset's.
        most_bad: the share of annotations that are left out if their box or shape cannot be used.

    Raises:
        UserError: the dataset is not registered, its files are missing, truncated or in another format, or an
            annotation is wrong. The message names the file. For the datasets that this project prepares, it has the
            command to prepare it.
    """
    check_known(name)
    try:
        records = load_checked(name, lambda: parsed_once(name, lambda: DatasetCatalog.get(name)))
    except UserError:
        with explained(name):
            check_json_of(name)  # raises a better message if an annotation is at fault
        raise
    with explained(name):
        check_annotations(name, records, most_bad)
    return records


def check_known(name: str) -> None:
    """Check that a dataset is registered.

    Raises:
        UserError: it is not. The message has the nearest name.
    """
    if name not in DatasetCatalog:
        raise UserError(f"unknown dataset '{name}'{nearest(name, DatasetCatalog.list())}")


def register_dataset(name: str, load: Callable[[], Records], **metadata) -> None:
    """Register a dataset. ``load`` reads its files when it is first used.

    Args:
        name: for ``DatasetCatalog``.
        load: returns the records. Its errors about files become :class:`UserError`.
        metadata: "evaluator_type", and "json_file" or "source" for messages.
    """
    DatasetCatalog.register(name, lambda: load_checked(name, load))
    MetadataCatalog.get(name).set(**metadata)


def load_checked(name: str, load: Callable[[], Records]) -> Records:
    """Call ``load()``. Errors about the files of dataset ``name`` become a :class:`UserError`."""
    with explained(name):
        records = load()
        if not records:
            raise UserError(f"dataset '{name}' is empty: {source_of(name)}")
        return records


def load_detection_training(
    names: Sequence[str], *, filter_empty: bool, with_masks: bool, most_bad: float = 0.0
) -> Records:
    """The records of detection datasets, joined for training.

    Args:
        names: registered datasets with the same categories.
        most_bad: as in :func:`load_dataset`.
        filter_empty: leave out images without annotations, or with crowds only.
        with_masks: whether every annotation must have a segmentation.

    Raises:
        UserError: as :func:`load_dataset`. Also if the categories of the datasets differ, a category has no images, no
            image is left, or an annotation has no segmentation.
    """
    seen: set[int] = set()
    kept = []
    for record in load_joined(names, "annotations", most_bad):
        annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        if with_masks and not all(a.get("segmentation") for a in annotations):
            raise UserError(
                f"dataset '{names[0]}': image {record['file_name']} has an annotation without segmentation; "
                "every object needs a polygon or RLE, as boxes and masks are learned together; MODEL.MASK_ON False "
                f"learns boxes alone{_remedies_of(names)}"
            )
        seen.update(a["category_id"] for a in annotations)
        if annotations or not filter_empty:
            kept.append(record)
    _check_all_present(names, seen)
    if not kept:
        raise UserError(
            f"no image of {', '.join(names)} has an object to learn: {_sources_of(names)}{_remedies_of(names)}"
        )
    return kept


class Federation(NamedTuple):
    """What is known of the categories of a dataset that annotates each in some images only, as LVIS does.

    Attributes:
        image_counts: [C], the number of images with each category.
        index_of: {a category's id in the file: its index}.
    """

    image_counts: tuple[int, ...]
    index_of: dict[int | str, int]

    def unsure(self, record: dict) -> tuple[int, ...]:
        """The categories of which an image may show more objects than it annotates."""
        return tuple(sorted(self.index_of[i] for i in record.get("not_exhaustive_category_ids", ())))


def federation_of(records: Records, name: str) -> Federation:
    """The federation of a loaded detection dataset. A dataset in COCO's format annotates all categories everywhere."""
    count = len(candidate_names(name))
    images = Counter(c for record in records for c in {a["category_id"] for a in record["annotations"]})
    # LVIS's own ids begin at 1 and have no gaps, so its readers need no table.
    known = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
    index_of = {index + 1: index for index in range(count)} if known is None else dict(known)
    return Federation(tuple(images[index] for index in range(count)), index_of)


def load_classification_training(names: Sequence[str]) -> Records:
    """The records of classification datasets, joined for training.

    Raises:
        UserError: as :func:`load_dataset`. Also if the classes of the datasets differ, or a class has no images.
    """
    records = load_joined(names, "label")
    _check_all_present(names, {record["label"] for record in records})
    return records


def load_joined(names: Sequence[str], target: str, most_bad: float = 0.0) -> Records:
    """The records of datasets for one task, one dataset behind the other.

    Args:
        names: registered datasets with the same classes.
        target: the key of a record without which the task cannot use it.
        most_bad: as in :func:`load_dataset`.

    Raises:
        UserError: as :func:`load_dataset`. Also if a record has no such key, or the classes of the datasets differ.
    """
    records = []
    for name in names:
        loaded = load_dataset(name, most_bad)
        if not all(target in record for record in loaded):
            raise UserError(f"dataset '{name}' is not for this kind of task: its records have no \"{target}\"")
        records += loaded
    for name in names[1:]:
        if candidate_names(name) != candidate_names(names[0]):
            raise UserError(f"datasets '{names[0]}' and '{name}' of one task have different classes")
    return records


def _check_all_present(names: Sequence[str], seen: set[int]) -> None:
    absent = [name for index, name in enumerate(candidate_names(names[0])) if index not in seen]
    if absent:
        listed = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        message = (
            f"no training image shows these categories of {', '.join(names)}: {listed}; "
            f"remove them from {_sources_of(names)}, or add images{_remedies_of(names)}"
        )
        # Files of users often have such categories: a program's list of all names, a heading of the others.
        if not all(MetadataCatalog.get(name).get("own_format") for name in names):
            raise UserError(message)
        logger.warning("%s", message)


def _sources_of(names: Sequence[str]) -> str:
    return ", ".join(map(source_of, names))


def _remedies_of(names: Sequence[str]) -> str:
    """The remedies of several datasets; a command that prepares all of them is said once."""
    return "".join(dict.fromkeys(map(remedy_of, names)))


def candidate_names(name: str) -> tuple[str, ...]:
    """The class names of a loaded dataset in the order of its labels: the candidates Y of equation (5).

    LVIS writes "bow_(decorative_ribbons)"; the candidate is "bow (decorative ribbons)". COCO's panoptic files write
    "wall-other-merged" and "wall-brick"; the candidates are "wall" and "wall brick".

    Raises:
        UserError: the dataset's metadata has no names.
    """
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes")
    if not classes:
        raise UserError(f"dataset '{name}' has no 'thing_classes' in its metadata")
    evaluator_type = "" if metadata.get("own_format") else metadata.get("evaluator_type")
    if evaluator_type == "lvis":
        return tuple(name.replace("_", " ") for name in classes)
    words = tuple(_PANOPTIC_ENDING.sub("", name).replace("-", " ") for name in classes)
    return words if evaluator_type == "panoptic" and len(set(words)) == len(words) else tuple(classes)


def own_category_ids(name: str) -> tuple[int | str, ...] | None:
    """The ids of a loaded dataset's classes in the user's files, in the order of its labels. None if the dataset is not
    one of a configuration, or its classes have names only."""
    metadata = MetadataCatalog.get(name)
    index_of = metadata.get("thing_dataset_id_to_contiguous_id") if metadata.get("own_format") else None
    return None if index_of is None else tuple(index_of)


def same_images(name: str, other: str) -> bool:
    """Whether two registered datasets have the same folder of images. Then equal image ids mean the same image."""
    roots = [MetadataCatalog.get(dataset).get("image_root") for dataset in (name, other)]
    return None not in roots and os.path.abspath(roots[0]) == os.path.abspath(roots[1])
