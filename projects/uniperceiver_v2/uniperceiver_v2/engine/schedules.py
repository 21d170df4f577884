"""Schedules of tasks, for unmixed and for mixed sampling, as pure functions of the seed and the iteration."""

import math
from collections.abc import Mapping

import numpy as np

from ..data.order import entropy_of

_BLOCK = 4096  # tasks are drawn in blocks of iterations, so that a draw does not need all the draws before it


class TaskSchedule:
    """Draws one task for every iteration: unmixed sampling with the ratios s_k of the paper's equation (7).

    Args:
        ratios: s_k by name of the task, in any order and scale.
        seed: 0 or more.

    Raises:
        ValueError: there is no task, or a ratio is not above 0.
    """

    def __init__(self, ratios: Mapping[str, float], seed: int):
        if not ratios or min(ratios.values()) <= 0:
            raise ValueError(f"sampling ratios must be above 0, got {dict(ratios)}")
        self._names = sorted(ratios)  # so that the order of the list of tasks does not matter
        shares = np.array([ratios[name] for name in self._names], dtype=np.float64)
        self._bounds = np.cumsum(shares / shares.sum())[:-1]
        self._seed = seed
        self._cached_block: tuple[int, np.ndarray] | None = None

    def tasks_at(self, iteration: int) -> dict[str, float]:
        """The task of an iteration with the weight of its loss, which is 1."""
        return {self.task_at(iteration): 1.0}

    def task_at(self, iteration: int) -> str:
        """The task of an iteration. Iterations count from 0."""
        block, offset = divmod(iteration, _BLOCK)
        if self._cached_block is None or self._cached_block[0] != block:
            self._cached_block = (block, self._draw(block))
        return self._names[self._cached_block[1][offset]]

    def draws_before(self, iteration: int) -> dict[str, int]:
        """How often each task is drawn in iterations 0 .. ``iteration`` - 1."""
        whole, rest = divmod(iteration, _BLOCK)
        counts = np.zeros(len(self._names), dtype=np.int64)
        for block in range(whole):
            counts += np.bincount(self._draw(block), minlength=len(counts))
        counts += np.bincount(self._draw(whole)[:rest], minlength=len(counts))
        return dict(zip(self._names, counts.tolist()))

    def _draw(self, block: int) -> np.ndarray:
        """Indices into the sorted names for all iterations of a block."""
        rng = np.random.default_rng([self._seed, entropy_of("tasks"), block])
        return np.searchsorted(self._bounds, rng.random(_BLOCK), side="right")


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

    def tasks_at(self, iteration: int) -> dict[str, float]:
        """Every task with the weight of its loss, s_k. The weights sum to 1."""
        return self._weights

    def draws_before(self, iteration: int) -> dict[str, int]:
        """The number of batches of each task in iterations 0 .. ``iteration`` - 1."""
        return dict.fromkeys(self._weights, iteration)
