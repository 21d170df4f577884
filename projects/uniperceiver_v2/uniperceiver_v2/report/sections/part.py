"""A part of a section, which fails alone."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..blocks import Block, Card, Cell, Gallery, Note
from ..run import Missing

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

EXAMPLES = 8  # of the best and of the worst
MOST_IN_MATRIX = 20  # categories of a confusion matrix that is drawn
_MOST_OPEN = 25  # rows of a table that need not be opened


@dataclass(frozen=True)
class Part:
    """A smaller heading, and what makes the blocks below it."""

    title: str
    make: Callable[[], list[Block]]

    def blocks(self) -> list[Block]:
        """Its blocks. If it fails, a note that says why: the rest of the page does not depend on it."""
        try:
            return self.make()
        except Missing as error:
            return [Note(f"Not shown: {error}.", is_gap=True)]
        except Exception as error:
            logger.warning("report: %s", self.title, exc_info=True)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return [Note(f"Not shown: a file of the run may have another form ({reason}).", is_gap=True)]


def extremes(items: Iterable[Item], key: Callable[[Item], Any], count: int = EXAMPLES) -> tuple[list[Item], list[Item]]:
    """The worst and the best by a key that grows with quality, without an item in both."""
    ordered = sorted(items, key=key)
    half = min(count, -(-len(ordered) // 2))
    return ordered[:half], ordered[::-1][: min(count, len(ordered) - half)]


def galleries(
    worst: Sequence[Item], best: Sequence[Item], card: Callable[[Item], Card], size: str = "medium"
) -> list[Block]:
    """What :func:`extremes` found, each end as a gallery. An end without items has none."""
    ends = (("Worst", worst), ("Best", best))
    return [Gallery([card(item) for item in items], title, size) for title, items in ends if items]


def folded(rows: Sequence[Any], of: str) -> str:
    """What a table that is too long to be open is called, such as "80 categories". Empty for a shorter one."""
    return f"{len(rows)} {of}" if len(rows) > _MOST_OPEN else ""


def nan_last(value: float) -> float:
    """A key of sorting that grows with the value."""
    return math.inf if math.isnan(value) else value


def at_most(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` items at equal distances, the first among them."""
    step = max(len(items) / count, 1)
    return [items[int(place * step)] for place in range(min(count, len(items)))]


def most_confused(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], count: int = 10) -> list[list[Cell]]:
    """(row, column, how often) of the largest counts off the diagonal."""
    pairs = itertools.product(range(len(rows)), range(len(columns)))
    wrong = [(int(matrix[r][c]), r, c) for r, c in pairs if r != c and matrix[r][c] > 0]
    return [[rows[r], columns[c], n] for n, r, c in sorted(wrong, key=lambda item: (-item[0], *item[1:]))[:count]]
