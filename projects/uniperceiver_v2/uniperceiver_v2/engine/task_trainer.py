"""The inner loop of training: from a task's batch to a step of the optimizer."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..solver import TaskBalancedAdamW, gradient_norm
from .gradients import GradientAverager

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]
LoaderBuilder = Callable[[str, int], Iterable[Batch]]

# Above this scale, an overflow of float16 gradients is due to the scaler, which then lowers its scale. At this scale
# or below, the model itself is at fault.
SMALLEST_SCALE = 1.0


class TaskTrainer(SimpleTrainer):
    """Takes the next batch of the iteration's task or tasks, and steps by the gradient of their weighted losses.

    The tasks of iteration t, their batches and the random numbers of the forward pass depend on the seed and t only. A
    resumed run therefore continues exactly where it was, without any saved state for them.

    If a loss or the gradient is not finite, all ranks skip the step. Skipped steps are counted by task.

    Args:
        model: batch -> dict of scalar losses, each with its weight inside the task. ``loss_count(batch)`` is the number
            of things over which the losses are means; gradient accumulation needs it. All ranks have the same
            parameters.
        optimizer: :class:`TaskBalancedAdamW`, which takes one task in a step, or any other optimizer.
        schedule: has ``tasks_at(t) -> {name: weight}`` and ``draws_before(t) -> {name: count}``.
        build_loader: (task name, number of its first batch) -> iterable of batches.
        loss_weights: w_k of equation (7) by task.
        seed: the seed of the random numbers in the forward pass.
        autocast: dtype of the forward pass in operations where it is safe, or None for the dtype of the parameters.
            With float16, gradients are scaled.
        accumulation_steps: the number of micro-batches of a batch, which are processed one after the other.
        max_skipped_steps: training stops after this number of consecutive skipped steps of a task.
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
        accumulation_steps: int = 1,
        max_skipped_steps: int = 10,
    ):
        super().__init__(model, data_loader=None, optimizer=optimizer)
        self._schedule = schedule
        self._build_loader = build_loader
        self._loss_weights = dict(loss_weights)
        self._seed = seed
        self._autocast = autocast
        self._accumulation_steps = accumulation_steps
        self._max_skipped_steps = max_skipped_steps
        self._batches: dict[str, Iterator[Batch]] = {}
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device_type = self._parameters[0].device.type
        self._averager = GradientAverager(self._parameters)
        self._scaler = torch.amp.GradScaler(self._device_type) if autocast == torch.float16 else None
        self._skipped: Counter[str] = Counter()
        self._skipped_in_row: Counter[str] = Counter()
        # A signal sets stop_requested on its rank. At the end of an iteration all ranks agree on stop_agreed.
        self.stop_requested = False
        self.stop_agreed = False

    def open_loaders(self, start_iter: int) -> None:
        """Open every task's data at the first batch from ``start_iter`` on. Call it before training.

        Raises:
            UserError: the data cannot be used.
        """
        first_batches = self._schedule.draws_before(start_iter)
        self.data_loader = {task: self._build_loader(task, first_batches[task]) for task in self._loss_weights}
        self._batches = {task: iter(loader) for task, loader in self.data_loader.items()}

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: too many consecutive steps of a task were skipped, this one included.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        shares = self._schedule.tasks_at(self.iter)
        batches = {task: next(self._batches[task]) for task in shares}
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        names, values = [], []
        part = 0
        for task, share in shares.items():
            for micro_batch, weight in self._micro_batches(batches[task]):
                self._seed_part(part)
                part += 1
                for name, value in self._backward(task, micro_batch, share, weight).items():
                    names.append(name)
                    values.append(value)
        self.after_backward()
        *values, data_time, stop = self._averager.average([*values, data_time, float(self.stop_requested)])
        self.stop_agreed = stop > 0
        losses: dict[str, float] = {}
        for name, value in zip(names, values, strict=True):
            losses[name] = losses.get(name, 0.0) + value  # a batch's loss is the weighted sum over its micro-batches
        norm = self._step(batches, losses)
        images = comm.get_world_size() * sum(map(len, batches.values()))
        self._write(shares, losses, norm, images, data_time, time.perf_counter() - start)

    def _micro_batches(self, batch: Batch) -> list[tuple[Batch, float]]:
        """The micro-batches of a batch with their weights. A weight is the micro-batch's share of the batch's loss
        count, summed over all ranks."""
        if self._accumulation_steps == 1:
            return [(batch, 1.0)]
        bounds = np.linspace(0, len(batch), self._accumulation_steps + 1).astype(int)
        parts = [batch[first:last] for first, last in itertools.pairwise(bounds)]
        counts = torch.tensor([float(self.model.loss_count(part)) for part in parts], dtype=torch.float64)
        if comm.get_world_size() > 1:
            counts = counts.to(self._parameters[0].device)
            torch.distributed.all_reduce(counts)
        # The losses of a micro-batch with a count of 0 are divided by 1.
        return list(zip(parts, (counts.clamp(min=1) / counts.sum().clamp(min=1)).tolist()))

    def _seed_part(self, part: int) -> None:
        entropy = np.random.SeedSequence((self._seed, self.iter, comm.get_rank(), part))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def _backward(self, task: str, batch: Batch, share: float, weight: float) -> dict[str, Tensor]:
        """Adds the gradient of a micro-batch. Returns its part of the batch's losses by their names in the storage."""
        with self._precision(), get_event_storage().name_scope(task):
            losses = self.model(batch)
        total = self._loss_weights[task] * sum(losses.values())
        gradient_of = total * (share * weight) if share * weight != 1 else total
        (gradient_of if self._scaler is None else self._scaler.scale(gradient_of)).backward()
        return {f"{task}/{name}": weight * loss.detach() for name, loss in {**losses, "total_loss": total}.items()}

    def _precision(self) -> contextlib.AbstractContextManager:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, dtype=self._autocast)

    def _step(self, batches: Mapping[str, Batch], losses: Mapping[str, float]) -> float:
        """Update the parameters or skip the step. Returns the gradient's norm before normalisation.

        The losses are means over all ranks and the gradient is the same on all of them, so that all ranks decide alike.
        """
        finite = all(math.isfinite(value) for value in losses.values())
        scale_at_fault = False
        if self._scaler is not None:
            scale_at_fault = finite and self._scaler.get_scale() > SMALLEST_SCALE
            self._scaler.unscale_(self.optimizer)
        norm = self._update(next(iter(batches))) if finite else math.nan
        if self._scaler is not None:
            self._scaler.update()
            get_event_storage().put_scalar("loss_scale", self._scaler.get_scale(), smoothing_hint=False)
        if math.isfinite(norm):
            for task in batches:
                self._skipped_in_row[task] = 0
        elif not scale_at_fault:
            self._count_skipped(batches, losses)
        return norm

    def _update(self, task: str) -> float:
        """Step if the gradient is finite. Returns the gradient's norm."""
        if isinstance(self.optimizer, TaskBalancedAdamW):
            with contextlib.suppress(FloatingPointError):
                self.optimizer.step(task=task)
            return self.optimizer.last_gradient_norm
        norm = gradient_norm(self._parameters)
        if math.isfinite(norm):
            self.optimizer.step()
        return norm

    def _count_skipped(self, batches: Mapping[str, Batch], losses: Mapping[str, float]) -> None:
        """Count a skipped step for the tasks with losses that are not finite. If all losses are finite and only the
        gradient is not, count it for all tasks."""
        guilty = {task for task in batches if not math.isfinite(losses[f"{task}/total_loss"])} or set(batches)
        values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        fatal = ""
        for task, batch in batches.items():
            if task not in guilty:
                continue
            self._skipped[task] += 1
            self._skipped_in_row[task] += 1
            ids = [number for of_rank in comm.all_gather([_id_of(sample) for sample in batch]) for number in of_rank]
            message = (
                f"task '{task}' has a loss or a gradient that is not finite in iteration {self.iter} ({values}), "
                f"with the images {', '.join(map(str, ids))}"
            )
            logger.warning("%s; the step is skipped, the task's %s. so far", message, self._skipped[task])
            if self._skipped_in_row[task] >= self._max_skipped_steps:
                fatal = message
        if fatal:
            raise FloatingPointError(
                f"{fatal}; SOLVER.MAX_SKIPPED_STEPS ({self._max_skipped_steps}) in a row are reached. A lower "
                "SOLVER.BASE_LR or a longer SOLVER.WARMUP_ITERS may help"
            )

    def _write(
        self,
        shares: Mapping[str, float],
        losses: Mapping[str, float],
        norm: float,
        images: int,
        data_time: float,
        seconds: float,
    ) -> None:
        if not comm.is_main_process():
            return
        scalars = {"data_time": data_time, "images_per_second": images / seconds, **losses}
        scalars["total_loss"] = sum(share * losses[f"{task}/total_loss"] for task, share in shares.items())
        if len(shares) == 1:  # otherwise the norm and the times belong to all tasks together
            (task,) = shares
            scalars[f"{task}/grad_norm"] = norm
            scalars[f"{task}/data_time"] = data_time
            scalars[f"{task}/time"] = seconds
            scalars[f"{task}/images_per_second"] = images / seconds
        else:
            scalars["grad_norm"] = norm
        storage = get_event_storage()
        storage.put_scalars(**{name: value for name, value in scalars.items() if math.isfinite(value)})
        for task in shares:
            if self._skipped[task]:
                storage.put_scalar(f"{task}/skipped_steps", self._skipped[task], smoothing_hint=False)
            unreadable = getattr(self.data_loader[task], "num_unreadable", 0)
            if unreadable:
                storage.put_scalar(f"{task}/unreadable_images", unreadable, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's state, the counts of skipped steps and the scaler of float16 gradients."""
        state = super().state_dict()
        state["skipped"] = {"all": dict(self._skipped), "in_row": dict(self._skipped_in_row)}
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "skipped" in state_dict:
            self._skipped = Counter(state_dict["skipped"]["all"])
            self._skipped_in_row = Counter(state_dict["skipped"]["in_row"])
        if self._scaler is not None and "scaler" in state_dict:
            self._scaler.load_state_dict(state_dict["scaler"])


def _id_of(sample: Mapping[str, Any]) -> Any:
    """Identifies a sample for the user: the id or file of its image, or the id of its text."""
    return next((sample[key] for key in ("image_id", "text_id", "file_name") if key in sample), "?")
