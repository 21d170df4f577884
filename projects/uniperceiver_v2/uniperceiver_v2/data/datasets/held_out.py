"""Photographs of test sets are left out of training, whatever dataset they come from.

COCO, LVIS, RefCOCO, Visual Genome and Flickr30k share photographs. For example, most images of Karpathy's test split
are in ``coco_2017_train``, and all of RefCOCO's are. A photograph is known by its id at COCO or at Flickr. The id is
in the file's name, or the reader of a dataset gives it as "photos" of a record: ["coco:391895", "flickr:1000092795"].
"""

import functools
import logging
import os
import re
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from ...errors import UserError
from ...reading import explained, require_source, source_of
from .records import Records, check_known, load_dataset

logger = logging.getLogger(__name__)

# The test and validation splits of the field. Splits by objects instead of images, such as refcocog_google, are not
# among them, as their images are those of their own training split.
STANDARD = (
    *(f"coco_2014_captions_karpathy_{split}" for split in ("val", "test")),
    *(f"flickr30k_retrieval_karpathy_{split}" for split in ("val", "test")),
    *(f"{folder}_unc_{split}" for folder in ("refcoco", "refcoco+") for split in ("val", "testA", "testB")),
    *(f"refcocog_umd_{split}" for split in ("val", "test")),
    *(f"flickr30k_entities_{split}" for split in ("val", "test")),
)

# ".../COCO_val2014_000000391895.jpg" and ".../val2017/000000391895.jpg": the same id in every year
_COCO_FILE = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_|/(?:train|val|test|unlabeled)20\d\d/)(\d{12})\.\w+$")
_FLICKR30K_FILE = re.compile(r"/flickr30k[-_]images/(\d+)\.\w+$")


def photos_of(record: dict) -> frozenset[str]:
    """The ids of a record's photograph, "coco:<id>" or "flickr:<id>". Empty if none is known."""
    name = "/" + str(record.get("file_name", "")).replace(os.sep, "/")
    coco, flickr = _COCO_FILE.search(name), _FLICKR30K_FILE.search(name)
    found = [f"coco:{int(coco[1])}"] if coco else []
    found += [f"flickr:{int(flickr[1])}"] if flickr else []
    return frozenset((*found, *record.get("photos", ())))


def without_held_out(records: Records, names: Sequence[str], task: str) -> Records:
    """The records whose photographs are in none of the datasets ``names``. The log says how many are left out.

    Nothing is read where no record has a known photograph. A dataset of ``names`` whose files are not there holds out
    nothing; the log has a warning.

    Args:
        records: of images, to train on.
        names: registered datasets.
        task: the task's name, for messages.

    Raises:
        UserError: a dataset of ``names`` is damaged, or no record is left.
    """
    photos = [photos_of(record) for record in records]
    if not any(photos):
        return records
    held_out = {name: photos_in(name) for name in dict.fromkeys(names)}
    everything = frozenset().union(*(its for its in held_out.values() if its))
    left_out = [its for its in photos if its & everything]
    _warn_of_missing(tuple(name for name, its in held_out.items() if its is None))
    if not left_out:
        return records
    counts = {name: sum(bool(photo & its) for photo in left_out) for name, its in held_out.items() if its}
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    message = (
        f"task {task}: {len(left_out):,} of {len(records):,} images are left out, as they are of test sets: {shown}"
    )
    if len(left_out) == len(records):
        raise UserError(f"{message}; nothing is left to train on")
    logger.info("%s", message)
    return [record for record, its in zip(records, photos) if not its & everything]


def photos_in(name: str) -> frozenset[str] | None:
    """The photographs of a registered dataset. None if its files are not there."""
    check_known(name)
    try:
        require_source(name)
    except FileNotFoundError:
        return None
    source = source_of(name)
    return _read_photos(name, source, os.stat(source).st_mtime_ns if os.path.exists(source) else 0)


@functools.lru_cache(maxsize=64)  # all tasks of a run ask for the same
def _read_photos(name: str, source: str, modified: int) -> frozenset[str]:
    if (read := MetadataCatalog.get(name).get("photos")) is not None:
        with explained(name):
            return frozenset(read())
    return frozenset().union(*map(photos_of, load_dataset(name)))


@functools.lru_cache(maxsize=8)  # once in a run
def _warn_of_missing(names: tuple[str, ...]) -> None:
    if names:
        logger.warning(
            "the files of these test sets are not here, so training may use their images: %s", ", ".join(names)
        )
