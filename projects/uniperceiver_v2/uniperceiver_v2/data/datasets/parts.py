"""Splits a dataset that comes in one piece into a part for training and a part for testing."""

import hashlib
from collections import Counter
from pathlib import Path

from .records import Records

PARTS = ("", "train", "test")


def part_of(records: Records, part: str, test_share: float) -> Records:
    """The records of a part, in their order.

    About ``test_share`` of the records are tested, and at least one if there are two. Which they are follows from the
    names of the images' files, or from the texts, and not from the order of the records or from a seed. So the parts
    never share a record, and an image that is tested in one dataset is not trained on in another one of the same
    images. The exception is an image that alone shows a class or category: it is always trained on.

    Args:
        records: of images or texts.
        part: "train", "test", or "" for all records.
        test_share: the share of the test, in 0..1.
    """
    if not part:
        return records
    tested = _tested(records, test_share)
    return [record for place, record in enumerate(records) if (place in tested) == (part == "test")]


def _tested(records: Records, share: float) -> set[int]:
    left = Counter(c for record in records for c in _shown(record))  # images of each class that are not tested
    draws = [_draw(record) for record in records]
    tested: set[int] = set()
    for place in sorted(range(len(records)), key=lambda place: draws[place]):
        if tested and draws[place] >= share:
            break
        shown = _shown(records[place])
        if len(tested) + 1 < len(records) and all(left[c] > 1 for c in shown):
            tested.add(place)
            left.subtract(shown)
    return tested


def _shown(record: dict) -> set[int]:
    """The class of an image, or the categories of its objects that can be learned."""
    if "label" in record:
        return {record["label"]}
    return {a["category_id"] for a in record.get("annotations", ()) if not a.get("iscrowd", 0)}


def _draw(record: dict) -> float:
    """A number in 0..1 that depends on the image's folder and name, or on the text, alone."""
    name = record["text"] if "text" in record else "/".join(Path(record["file_name"]).parts[-2:])
    digest = hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
