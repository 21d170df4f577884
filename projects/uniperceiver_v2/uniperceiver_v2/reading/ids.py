"""Ids of images, categories and annotations as people have them: whole numbers with gaps, or strings."""

from collections.abc import Iterable
from typing import Any

Id = int | str


def is_id(value: Any) -> bool:
    """Whether a value can be an id: a whole number or a string."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def id_order(value: Id) -> tuple[bool, Id]:
    """A key to sort by: numbers by size, then strings by the alphabet."""
    return isinstance(value, str), value


def sorted_ids(ids: Iterable[Id]) -> list[Id]:
    """Ids by :func:`id_order`."""
    return sorted(ids, key=id_order)
