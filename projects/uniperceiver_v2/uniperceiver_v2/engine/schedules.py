"""Which task is drawn when: the schedules of unmixed and of mixed sampling, as pure functions of the seed."""

import math
from collections.abc import Mapping

import numpy as np

from ..data.order import entropy_of

_BLOCK = 4096  # tasks are drawn a block at a time, so that any iteration is found without the ones before


class TaskSchedule:
    """Draws the task of every iteration: unmixed sampling with ratios s_k (the paper's equation (7)).

    Args:
        ratios: s_k by task name, in any order and scale.
        seed: not negative.

    Raises:
        ValueError: no task, or a ratio that is not above 0.
    """

    def __init__(self, ratios: Mapping[str, float], seed: int):
        if not ratios or min(ratios.values()) <= 0:
            raise ValueError(f"sampling ratios must be above 0, got {dict(ratios)}")
        self._names = sorted(ratios)  # so that the order in which tasks are listed changes nothing
        shares = np.array([ratios[name] for name in self._names], dtype=np.float64)
        self._bounds = np.cumsum(shares / shares.sum())[:-1]
        self._seed = seed
        self._cached_block: tuple[int, np.ndarray] | None = None

    def tasks_at(self, iteration: int) -> dict[str, float]:
        """The one task of an iteration, and the weight of its loss beside the others' of the iteration: 1."""
        return {self.task_at(iteration): 1.0}

    def task_at(self, iteration: int) -> str:
        """The task of an iteration, counted from 0."""
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
        """Indices into the names, for the iterations of a block."""
        rng = np.random.default_rng([self._seed, entropy_of("tasks"), block])
        return np.searchsorted(self._bounds, rng.random(_BLOCK), side="right")


class MixedSchedule:
    """All tasks in every iteration: mixed sampling, with losses weighed by s_k as equation (7) has them.

    Args:
        ratios: s_k by task name, in any scale.

    Raises:
        ValueError: no task, or a ratio that is not above 0.
    """

    def __init__(self, ratios: Mapping[str, float]):
        if not ratios or min(ratios.values()) <= 0:
            raise ValueError(f"sampling ratios must be above 0, got {dict(ratios)}")
        total = math.fsum(ratios.values())
        self._weights = {name: ratios[name] / total for name in sorted(ratios)}

    def tasks_at(self, iteration: int) -> dict[str, float]:
        """Every task with the weight of its loss, s_k."""
        return self._weights

    def draws_before(self, iteration: int) -> dict[str, int]:
        """How many batches of each task iterations 0 .. ``iteration`` - 1 take."""
        return dict.fromkeys(self._weights, iteration)
