"""The inner loop: one task per iteration ("unmixed sampling" in the paper)."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..solver import TaskBalancedAdamW, gradient_norm

LoaderBuilder = Callable[[str, int], Iterable[list[dict[str, Any]]]]


class TaskTrainer(SimpleTrainer):
    """Draws a task, takes its next batch, and steps by the gradient of its weighted loss.

    Which task iteration t draws and which batch is its next follow from the seed and t alone, and so do the
    random numbers of the forward pass. A resumed run therefore goes on exactly where it was, with nothing
    saved about either.

    Args:
        model: batch -> dict of scalar losses, each weighted inside its task.
        optimizer: :class:`TaskBalancedAdamW` or any other.
        schedule: ``task_at(t) -> name`` and ``draws_before(t) -> {name: count}``.
        build_loader: (task name, number of its first batch) -> iterable of batches.
        loss_weights: w_k of equation (7) by task.
        seed: of the random numbers in the forward pass.
        autocast: dtype of the forward pass where it is safe, or None for the parameters' own.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        schedule: Any,
        build_loader: LoaderBuilder,
        loss_weights: Mapping[str, float],
        seed: int = 0,
        autocast: torch.dtype | None = None,
    ):
        super().__init__(model, data_loader=None, optimizer=optimizer)
        self._schedule = schedule
        self._build_loader = build_loader
        self._loss_weights = dict(loss_weights)
        self._seed = seed
        self._autocast = autocast
        self._batches: dict[str, Iterator[list[dict[str, Any]]]] = {}
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def open_loaders(self, start_iter: int) -> None:
        """Open every task's data at the batch that ``start_iter`` needs; to be called before training.

        Raises:
            UserError: data that cannot be used.
        """
        first_batches = self._schedule.draws_before(start_iter)
        self.data_loader = {task: self._build_loader(task, first_batches[task]) for task in self._loss_weights}
        self._batches = {task: iter(loader) for task, loader in self.data_loader.items()}

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        task = self._schedule.task_at(self.iter)
        start = time.perf_counter()
        batch = next(self._batches[task])
        data_time = time.perf_counter() - start

        self._seed_iteration()
        with self._precision(), get_event_storage().name_scope(task):
            losses = self.model(batch)
        total = self._loss_weights[task] * sum(losses.values())
        self.optimizer.zero_grad()
        total.backward()
        self.after_backward()
        norm = self._step(task, losses)
        self._write_task_metrics(task, {**losses, "total_loss": total}, norm, data_time)

    def _seed_iteration(self) -> None:
        entropy = np.random.SeedSequence((self._seed, self.iter, comm.get_rank()))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def _precision(self) -> contextlib.AbstractContextManager:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._parameters[0].device.type, dtype=self._autocast)

    def _step(self, task: str, losses: Mapping[str, Tensor]) -> float:
        """Update the parameters; the gradient's norm before normalisation.

        A loss that is not finite has a gradient that is not finite, on all ranks alike once it is averaged
        over them: so all of them stop here together, before any harm is done.
        """
        balanced = isinstance(self.optimizer, TaskBalancedAdamW)
        try:
            if balanced:
                self.optimizer.step(task=task)
                return self.optimizer.last_gradient_norm
            norm = gradient_norm(self._parameters)
            if not math.isfinite(norm):
                raise FloatingPointError
            self.optimizer.step()
            return norm
        except FloatingPointError:
            values = ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items())
            raise FloatingPointError(
                f"task '{task}' has a loss or a gradient that is not finite in iteration {self.iter} "
                f"({values}); a lower SOLVER.BASE_LR or a longer SOLVER.WARMUP_ITERS may help"
            ) from None

    def _write_task_metrics(self, task: str, losses: Mapping[str, Tensor], norm: float, data_time: float) -> None:
        # One transfer for all values; the slowest rank's wait is what the others wait for too.
        values = torch.stack([loss.detach().double().cpu() for loss in losses.values()]).tolist()
        gathered = comm.gather((values, data_time))
        if not comm.is_main_process():
            return
        means = dict(zip(losses, np.mean([rank_values for rank_values, _ in gathered], axis=0)))
        storage = get_event_storage()
        storage.put_scalar("data_time", max(seconds for _, seconds in gathered))
        storage.put_scalar("total_loss", means["total_loss"])
        storage.put_scalar(f"{task}/grad_norm", norm)
        storage.put_scalars(**{f"{task}/{name}": value for name, value in means.items()})
