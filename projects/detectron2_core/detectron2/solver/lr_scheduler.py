from __future__ import annotations

import logging
import math
from bisect import bisect_right

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)


class WarmupParamScheduler(CompositeParamScheduler):
    """A scheduler with a warm-up before it."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        """
        Args:
            scheduler: the scheduler after the warm-up.
            warmup_factor: the warm-up's first value, as a share of the scheduler's first value.
            warmup_length: the length of the warm-up, as a share of the whole training, in [0,1].
            warmup_method: "linear" rises to the scheduler's value at the end of the warm-up, "constant" keeps the first
                value.
            rescale_interval: whether the whole schedule is compressed into the time after the warm-up. Otherwise the
                warm-up replaces the first part of the schedule.
        """
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            warmup = LinearParamScheduler(start, scheduler(0.0 if rescale_interval else warmup_length))
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method}")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """The rate of every parameter group is its initial rate times the value of fvcore's scheduler.

    So the ratios of the groups' rates stay the same.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ):
        """
        Args:
            optimizer: the optimizer. The rates of its groups are set.
            multiplier: the factor, a function of progress in [0,1).
            max_iter: the number of iterations of the whole training.
            last_iter: the last finished iteration, as ``last_epoch`` in PyTorch's schedulers.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be an fvcore ParamScheduler, got {multiplier}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self):
        # The multiplier comes from the config, and cannot always be pickled.
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


class _WarmupLR(LRScheduler):
    """A decay by iteration, multiplied by a warm-up factor. :class:`LRMultiplier` replaces it in upstream."""

    def __init__(self, optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch):
        logger.warning("%s is deprecated: use LRMultiplier with an fvcore ParamScheduler", type(self).__name__)
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"Unknown warmup method: {warmup_method}")
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        factor = self._decay(self.last_epoch)
        if self.last_epoch < self.warmup_iters:
            progress = self.last_epoch / self.warmup_iters if self.warmup_method == "linear" else 0.0
            factor *= self.warmup_factor * (1 - progress) + progress
        return [base_lr * factor for base_lr in self.base_lrs]


class WarmupMultiStepLR(_WarmupLR):
    """Multiply the rate by ``gamma`` at every milestone (an iteration), after a warm-up."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: list[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        if list(milestones) != sorted(milestones):
            raise ValueError(f"Milestones must increase, got {milestones}")
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, iteration: int) -> float:
        return self.gamma ** bisect_right(self.milestones, iteration)


class WarmupCosineLR(_WarmupLR):
    """Half a cosine from the initial rate to zero at ``max_iters``, multiplied by a warm-up."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        self.max_iters = max_iters
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, iteration: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * iteration / self.max_iters))
