"""Splits a dataset that comes in one piece into a part for training and a part for testing."""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from .records import Records

PARTS = ("", "train", "test")


def part_of(records: Records, part: str, test_share: float) -> Records:
    """The records of a part, in their order.

    Which record is tested follows from its own name, and not from the order of the records or from a seed. So the two
    parts of a dataset never share a record. Each class gives ``test_share`` of its images to the test. Every class and
    category that has a record keeps one for training.

    Args:
        records: of images or texts.
        part: "train", "test", or "" for all records.
        test_share: the share of the test, in 0..1.
    """
    if not part:
        return records
    tested = _tested(records, test_share)
    return [record for place, record in enumerate(records) if (place in tested) == (part == "test")]


def _tested(records: Sequence[dict], share: float) -> set[int]:
    groups: dict[Any, list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault(record.get("label"), []).append(place)
    left = Counter(c for record in records for c in _shown(record))  # images of each category that are not tested
    tested: set[int] = set()
    for places in groups.values():
        # At least one of two: without a test there are no figures.
        count = min(max(round(share * len(places)), 1), len(places) - 1)
        for place in sorted(places, key=lambda place: _rank(records[place])):
            shown = _shown(records[place])
            if count > 0 and all(left[c] > 1 for c in shown):
                tested.add(place)
                left.subtract(shown)
                count -= 1
    return tested


def _shown(record: dict) -> Collection[int]:
    """The categories of a record's objects that can be learned."""
    return {a["category_id"] for a in record.get("annotations", ()) if not a.get("iscrowd", 0)}


def _rank(record: dict) -> bytes:
    """A random number that depends on the image's id, its folder and name, or the text alone."""
    name = record["text"] if "text" in record else record["image_id"]
    if "label" in record:  # images of classes are numbered in the order of their files
        name = "/".join(Path(record["file_name"]).parts[-2:])
    return hashlib.blake2b(str(name).encode("utf-8", "backslashreplace"), digest_size=16).digest()
