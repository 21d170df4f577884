"""Training iterations with the same batch again and again, by the trainer's own inner loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from uniperceiver_v2.engine.task_trainer import TaskTrainer

Batch = list[dict]


class Repeating:
    """A trainer whose tasks have one batch each.

    Args:
        model, optimizer: as for :class:`TaskTrainer`.
        batches: task -> its batch.
        autocast: see :class:`TaskTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: dict[str, Batch],
        autocast: torch.dtype | None = None,
    ):
        self._task = ""
        self._trainer = TaskTrainer(
            model,
            optimizer,
            schedule=self,
            build_loader=lambda task, numbers: itertools.repeat(batches[task]),
            loss_weights=dict.fromkeys(batches, 1.0),
            autocast=autocast,
        )
        self._trainer.open_loaders(0)
        self._trainer.iter = 0

    def tasks_at(self, iteration: int, group: int) -> dict[str, float]:
        return {self._task: 1.0}

    def batch_numbers(self, task: str, start: int, groups: Iterable[int]) -> Iterable[int]:
        return itertools.count(start)

    def run(self, task: str) -> None:
        """One iteration of a task."""
        self._task = task
        with EventStorage(self._trainer.iter) as self._trainer.storage:
            self._trainer.run_step()
        self._trainer.iter += 1
