"""Schedules of tasks, for unmixed and for mixed sampling, as pure functions of the seed and the iteration."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from ..data.order import CountFrom, entropy_of

_BLOCK = 4096  # tasks are drawn in blocks, so that a draw does not need all the draws before it
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the fractional part of the golden ratio, times 2^64


class TaskSchedule:
    """Draws one task for every iteration and task group: unmixed sampling with the ratios s_k of the paper's equation
    (7).

    With G groups, draw t·G + g is the draw of group g in iteration t. A seed has the same draws for any G. For example,
    with two groups an iteration has the draws that are those of two iterations with one group. The n-th draw of a task
    takes the task's batch number n, so no two groups take the same batch.

    A draw takes the task whose part of [0, 1), of length s_k, holds a number u. The paper's draws have independent
    uniform numbers. Even draws have u_n = u_0 + n·φ mod 1, with a random u_0 and the golden ratio φ. Each draw still
    has the probabilities s_k, but a task comes at nearly equal intervals: among any N draws in a row, the number of its
    draws differs from N·s_k by O(log N), not O(√N).

    Args:
        ratios: s_k by name of the task, in any order and scale.
        seed: 0 or more.
        groups: G, the number of task groups.
        even: whether draws are spread evenly, and not independent.

    Raises:
        ValueError: there is no task, or a ratio is not above 0.
    """

    def __init__(self, ratios: Mapping[str, float], seed: int, groups: int = 1, even: bool = False):
        if not ratios or min(ratios.values()) <= 0:
            raise ValueError(f"sampling ratios must be above 0, got {dict(ratios)}")
        self._groups = groups
        self._even = even
        self._names = sorted(ratios)  # so that the order of the list of tasks does not matter
        shares = np.array([ratios[name] for name in self._names], dtype=np.float64)
        self._bounds = np.cumsum(shares / shares.sum())[:-1]
        self._seed = seed
        self._cached_block: tuple[int, np.ndarray] | None = None

    def tasks_at(self, iteration: int, group: int = 0) -> dict[str, float]:
        """The task of a group in an iteration with the weight of its loss, which is 1."""
        return {self.task_at(iteration, group): 1.0}

    def task_at(self, iteration: int, group: int = 0) -> str:
        """The task of a group in an iteration. Both count from 0."""
        block, offset = divmod(iteration * self._groups + group, _BLOCK)
        if self._cached_block is None or self._cached_block[0] != block:
            self._cached_block = (block, self._draw(block))
        return self._names[self._cached_block[1][offset]]

    def draws_before(self, iteration: int) -> dict[str, int]:
        """How often each task is drawn in iterations 0 .. ``iteration`` - 1, by all groups together."""
        whole, rest = divmod(iteration * self._groups, _BLOCK)
        counts = np.zeros(len(self._names), dtype=np.int64)
        for block in range(whole):
            counts += np.bincount(self._draw(block), minlength=len(counts))
        counts += np.bincount(self._draw(whole)[:rest], minlength=len(counts))
        return dict(zip(self._names, counts.tolist()))

    def batch_numbers(self, task: str, iteration: int, groups: range) -> Iterable[int]:
        """The numbers of the batches of a task that some groups take from an iteration on, in the order of draws.

        They have no end, and begin anew in every iteration over them.
        """
        if len(groups) == self._groups:
            return CountFrom(self.draws_before(iteration)[task])
        return _NumbersOfGroups(lambda: self._numbers(task, iteration, groups))

    def _numbers(self, task: str, iteration: int, groups: range) -> Iterator[int]:
        index = self._names.index(task)
        number = self.draws_before(iteration)[task]
        draw = iteration * self._groups
        while True:
            block, offset = divmod(draw, _BLOCK)
            for place in np.flatnonzero(self._draw(block)[offset:] == index).tolist():
                if (draw + place) % self._groups in groups:
                    yield number
                number += 1
            draw += _BLOCK - offset

    def _draw(self, block: int) -> np.ndarray:
        """Indices into the sorted names for all draws of a block."""
        if self._even:
            start = np.random.default_rng([self._seed, entropy_of("tasks")]).integers(2**64, dtype=np.uint64)
            draws = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint64)
            places = (start + draws * _GOLDEN) / 2.0**64  # unsigned numbers wrap around, so this is exact
        else:
            places = np.random.default_rng([self._seed, entropy_of("tasks"), block]).random(_BLOCK)
        return np.searchsorted(self._bounds, places, side="right")


class _NumbersOfGroups:
    """What a function yields, from the beginning in every iteration."""

    def __init__(self, numbers: Callable[[], Iterator[int]]):
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return self._numbers()


class MixedSchedule:
    """All tasks in every iteration: mixed sampling. Losses are weighted by s_k, as in equation (7).

    Args:
        ratios: s_k by name of the task, in any scale.

    Raises:
        ValueError: there is no task, or a ratio is not above 0.
    """

    def __init__(self, ratios: Mapping[str, float]):
        if not ratios or min(ratios.values()) <= 0:
            raise ValueError(f"sampling ratios must be above 0, got {dict(ratios)}")
        total = math.fsum(ratios.values())
        self._weights = {name: ratios[name] / total for name in sorted(ratios)}

    def tasks_at(self, iteration: int, group: int = 0) -> dict[str, float]:
        """Every task with the weight of its loss, s_k. The weights sum to 1."""
        return self._weights

    def batch_numbers(self, task: str, iteration: int, groups: range) -> Iterable[int]:
        """The numbers of the batches of a task from an iteration on: one in each iteration."""
        return CountFrom(iteration)
