"""Reads pickles of others. They make what a reader allows, and take memory in proportion to their size."""

import pickle
from typing import Any

from .extent import require_bounded

MOST_VALUES, DEEPEST = 10_000_000, 100  # RefCOCO's have three million values


class Unpickler(pickle._Unpickler):
    """Makes dicts, lists and plain values. A subclass allows more by its ``find_class``.

    It is the standard library's in Python. That in C takes a table of 16 bytes times whatever number a damaged file
    gives a value, up to 64 GiB.
    """

    def load(self) -> Any:
        """As in the standard library.

        Raises:
            ValueError: it stands for more than ``MOST_VALUES``, or is deeper than ``DEEPEST``.
        """
        value = super().load()
        require_bounded(value, MOST_VALUES, DEEPEST)
        return value

    def find_class(self, module: str, name: str) -> Any:
        """Whoever wrote a pickle chooses what it names and calls. Plain data names nothing."""
        raise pickle.UnpicklingError(f"it names {module}.{name}, which might run code")
