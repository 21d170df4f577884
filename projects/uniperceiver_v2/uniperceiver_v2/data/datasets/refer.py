"""RefCOCO, RefCOCO+ and RefCOCOg in refer's files (Kazemzadeh et al., 2014; Yu et al., 2016; Mao et al., 2016)."""

import functools
import os
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from ...errors import UserError
from ...reading import Unpickler, open_file, while_reading
from .formats import string
from .phrases import objects_by_image, place_of, record_of, register_grounding
from .records import Records

S = TypeVar("S")

_KEYS = {"ref_id", "ann_id", "image_id", "split", "sentences"}


def register_refer(
    name: str, refs_file: str, instances_json: str, image_root: str, split: str, **metadata: Any
) -> None:
    """Register a split of refer's datasets for grounding.

    Args:
        name: for ``DatasetCatalog``.
        refs_file, instances_json, image_root, split: see :func:`load_refer`.
        metadata: more of it.
    """
    register_grounding(
        name,
        lambda: load_refer(refs_file, instances_json, image_root, split),
        json_file=instances_json,
        image_root=image_root,
        photos=lambda: _of_split(_photos_by_split(refs_file, os.stat(refs_file).st_mtime_ns), split, refs_file),
        **metadata,
    )


def load_refer(refs_file: str, instances_json: str, image_root: str, split: str) -> Records:
    """Records of the images that a split has references in. Each sentence is a phrase; it means one object.

    Args:
        refs_file: such as ``refs(unc).p``, a pickle, read by :func:`load_plain_pickle`.
        instances_json: the annotations, in COCO's instances format; all of an image's become objects.
        image_root: the folder of COCO's ``train2014`` images.
        split: "train", "val", and "test" or "testA" and "testB".

    Raises:
        UserError: a reference is of an image or an annotation that is not there, or is not as refer writes them.
    """
    chosen = _of_split(_references_by_split(refs_file), split, refs_file)
    records = objects_by_image(instances_json, image_root)
    with while_reading(refs_file):
        for reference in chosen:
            what = f"{refs_file}: ref_id {reference['ref_id']}"
            record = record_of(records, reference["image_id"], what, instances_json)
            place = place_of(record, reference["ann_id"], what, instances_json)
            for sentence in reference["sentences"]:
                phrase = string(sentence["sent"], f"{what}: its sentence {sentence.get('sent_id')}")
                record["phrases"].append({"phrase": phrase, "objects": [place]})
    described = [record for record in records.values() if record["phrases"]]
    if not described:
        raise UserError(f"{refs_file}: no reference of split '{split}' has a sentence")
    return described


@functools.lru_cache(maxsize=8)  # several splits of a file are held out, and the ids alone take little memory
def _photos_by_split(refs_file: str, modified: int) -> dict[str, frozenset[str]]:
    by_split = _references_by_split(refs_file)
    return {split: frozenset(f"coco:{r['image_id']}" for r in its) for split, its in by_split.items()}


def _references_by_split(refs_file: str) -> dict[str, list[dict]]:
    by_split: dict[str, list[dict]] = {}
    for number, entry in enumerate(_list_of(refs_file)):
        reference = _checked(entry, number, refs_file)
        by_split.setdefault(str(reference["split"]), []).append(reference)
    return by_split


def _of_split(by_split: Mapping[str, S], split: str, refs_file: str) -> S:
    if split not in by_split:
        raise UserError(f"{refs_file} has no references of split '{split}'; there are: {', '.join(sorted(by_split))}")
    return by_split[split]


def _list_of(refs_file: str) -> list:
    content = load_plain_pickle(refs_file)
    if not isinstance(content, list):
        raise UserError(f"{refs_file} holds a {type(content).__name__}, not refer's list of references")
    return content


def _checked(entry: Any, number: int, refs_file: str) -> dict:
    if not isinstance(entry, dict) or not entry.keys() >= _KEYS:
        raise UserError(
            f"{refs_file}: reference number {number} is no dict with {', '.join(sorted(_KEYS))}: {reprlib.repr(entry)}"
        )
    sentences = entry["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(s, dict) and "sent" in s for s in sentences):
        raise UserError(f'{refs_file}: ref_id {entry["ref_id"]}: "sentences" are not dicts with a "sent"')
    return entry


def load_plain_pickle(path: str) -> Any:
    """What a pickle holds of dicts, lists, tuples, strings, numbers and booleans, and nothing else.

    Anything else is refused before it is made, so that no code of the file runs. Python 2's strings are read as UTF-8.

    Raises:
        UserError: the pickle holds anything else, or is damaged.
    """
    with while_reading(path), open_file(path) as file:
        try:
            return Unpickler(file, encoding="utf-8", errors="replace").load()
        except Exception as error:  # a damaged pickle ends in whatever its first wrong byte leads to
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{os.path.abspath(path)} cannot be read as a pickle of dicts, lists, strings and numbers: {reason}"
            ) from error
