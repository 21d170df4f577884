"""Random numbers on which all ranks agree without communication.

The forward pass draws from torch's generator, which the trainer seeds differently for each rank and each micro-batch.
A choice that the whole step has to share, such as a Conditional MoE's choice of experts, needs numbers that depend on
neither. They are a pure function of the run's seed, the iteration and a key, so that the recomputation of activation
checkpointing and a resumed run find them again.
"""

from __future__ import annotations

import numpy as np

_step = (0, 0)  # (seed, iteration); without a trainer it stays so


def begin_step(seed: int, iteration: int) -> None:
    """Makes :func:`shared_normal` a function of this seed and iteration, both at least 0."""
    global _step
    _step = (seed, iteration)


def shared_normal(count: int, *key: int) -> list[float]:
    """Independent normal numbers of mean 0 and standard deviation 1.

    Args:
        count: how many.
        key: says what they are for, each number at least 0. Equal keys have equal numbers in an iteration.
    """
    return np.random.default_rng((*_step, *key)).standard_normal(count).tolist()
