"""Random numbers on which all ranks agree without communication.

The forward pass draws from torch's generator, which the trainer seeds differently for each rank and each micro-batch.
A choice that the whole step has to share, such as a Conditional MoE's choice of experts, needs numbers that depend on
neither. They are a pure function of the run's seed, the iteration and a key, so that the recomputation of activation
checkpointing and a resumed run find them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

_step = (0, 0)  # (seed, iteration), the same everywhere without a trainer, too


@contextmanager
def noise_of_step(seed: int, iteration: int) -> Iterator[None]:
    """In this context :func:`shared_normal` is a function of this seed and iteration, both at least 0.

    It belongs around the forward and the backward pass, because activation checkpointing repeats the former in the
    latter.
    """
    global _step
    before, _step = _step, (seed, iteration)
    try:
        yield
    finally:
        _step = before


def step_of_noise() -> tuple[int, int]:
    """The seed and the iteration of which :func:`shared_normal` is a function here."""
    return _step


def shared_normal(count: int, *key: int) -> list[float]:
    """Independent normal numbers of mean 0 and standard deviation 1.

    Args:
        count: how many.
        key: says what they are for, each number at least 0. Equal keys have equal numbers in an iteration.
    """
    return list(_normal(count, (*_step, *key)))


@lru_cache(maxsize=1024)  # a step asks for its numbers in each of its passes
def _normal(count: int, key: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(np.random.default_rng(key).standard_normal(count).tolist())
