"""The inner loop of training: from a task's batch to a step of the optimizer."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from .. import ranks
from ..data.loading.ahead import BatchesAhead
from ..data.loading.transport import send_batch
from ..errors import UserError
from ..measured import measured, write
from ..shards import is_divided
from ..shared_noise import noise_of_step
from ..solver import TaskBalancedAdamW, TaskGradient, gradient_norm, gradient_square
from .gradients import GradientAverager
from .optimizer_state import take_over_state
from .sharding import reach_all
from .task_groups import Draw, Gradients, adapt_scale, put_mean_gradient, share_gradients, tell_all

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]
LoaderBuilder = Callable[[str, Iterable[int]], Iterable[Batch]]

# Above this scale, an overflow of float16 gradients is due to the scaler, which then lowers its scale. At this scale
# or below, the model itself is at fault.
SMALLEST_SCALE = 1.0


class TaskTrainer(SimpleTrainer):
    """Takes the next batch of the iteration's task or tasks, and steps by the gradient of their weighted losses.

    The tasks of iteration t, their batches and the random numbers of the forward pass depend on the seed and t only. A
    resumed run therefore continues exactly where it was, without any saved state for them.

    If a loss or the gradient is not finite, all ranks skip the step. Skipped steps are counted by task.

    With several task groups (:func:`uniperceiver_v2.ranks.set_task_groups`, called before the constructor), each group
    has a draw of its own in an iteration. All ranks step by the gradients of all draws. A draw with a loss or a
    gradient that is not finite counts as skipped and is left out. The step is skipped if no draw is left.

    Args:
        model: batch -> dict of scalar losses, each with its weight inside the task. ``loss_count(batch)`` is the number
            of things over which the losses are means; gradient accumulation needs it. All ranks have the same
            parameters.
        optimizer: :class:`TaskBalancedAdamW`, which takes one task in a step, or any other optimizer.
        schedule: has ``tasks_at(t, group) -> {name: weight}`` and ``batch_numbers(name, t, groups) -> numbers``.
        build_loader: (task name, numbers of batches) -> iterable of batches.
        loss_weights: w_k of equation (7) by task.
        seed: the seed of the random numbers in the forward pass.
        autocast: dtype of the forward pass in operations where it is safe, or None for the dtype of the parameters.
            With float16, gradients are scaled.
        accumulation_steps: the number of micro-batches of a batch, which are processed one after the other.
        reduce_in_bfloat16: whether ranks add their gradients in bfloat16.
        max_skipped_steps: training stops after this number of consecutive skipped steps of a task.

    Raises:
        UserError: there are several task groups, and parameters are split over ranks.
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
        reduce_in_bfloat16: bool = False,
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
        self._end: int | None = None
        self._batches: BatchesAhead | None = None
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device_type = self._parameters[0].device.type
        self._averager = GradientAverager(self._parameters, in_bfloat16=reduce_in_bfloat16)
        self._in_groups = ranks.num_groups() > 1
        self._is_sharded = any(map(is_divided, self._parameters))
        if self._in_groups and self._is_sharded:
            raise UserError("SOLVER.TASK_GROUPS: parameters that are split over processes allow a single group")
        self._scaler = torch.amp.GradScaler(self._device_type) if autocast == torch.float16 else None
        self._skipped: Counter[str] = Counter()
        self._skipped_in_row: Counter[str] = Counter()
        # A signal sets stop_requested on its rank. At the end of an iteration all ranks agree on stop_agreed.
        self.stop_requested = False
        self.stop_agreed = False

    def open_loaders(self, start_iter: int, end: int | None = None) -> None:
        """Open every task's data at the first batch from ``start_iter`` on. Call it before training.

        Args:
            end: the number of iterations of the run, if it is known. No batch beyond is loaded.

        Raises:
            UserError: the data cannot be used.
        """
        self.data_loader = {
            task: self._build_loader(task, self._schedule.batch_numbers(task, start_iter, ranks.own_groups()))
            for task in self._loss_weights
        }
        self._end = end
        self._batches = BatchesAhead(self.data_loader, self._sent)

    def close_loaders(self) -> None:
        """Load no more. Call it after training."""
        if self._batches is not None:
            self._batches.close()

    def _sent(self, batch: Batch) -> Batch:
        return send_batch(batch, self._parameters[0].device)

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: too many consecutive steps of a task were skipped, this one included.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        draws: list[Draw] = []
        batches: dict[int, dict[str, Batch]] = {}
        gradients: dict[int, Gradients] = {}
        for group in ranks.own_groups():
            draw, batches[group] = self._draw(group)
            draws.append(draw)
            if self._in_groups:
                gradients[group] = self._take_gradient(draw)
        if self._in_groups:
            computed = time.perf_counter()
            draws = tell_all(draws)
            get_event_storage().put_scalar("wait_time", time.perf_counter() - computed)
        self.stop_agreed = any(draw.stop for draw in draws)
        self._step(draws, batches, gradients)
        self._write(draws, time.perf_counter() - start)

    def _draw(self, group: int) -> tuple[Draw, dict[str, Batch]]:
        """Compute the gradient of a group's draw, averaged over the group. Also returns this rank's share of the
        batches."""
        start = time.perf_counter()
        shares = self._schedule.tasks_at(self.iter, group)
        batches = self._batches.take(list(shares), self._tasks_after(group))
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        names, values, measures = [], [], []
        parts = [(task, share, *part) for task, share in shares.items() for part in self._micro_batches(batches[task])]
        # Only the first rank writes scalars. With task groups, those of other groups' forward passes have to reach it.
        storage = EventStorage(self.iter) if self._in_groups else contextlib.nullcontext()
        with noise_of_step(self._seed, self.iter), storage as own_storage:
            for number, (task, share, micro_batch, weight) in enumerate(parts):
                self._seed_part(group, number)
                if number == len(parts) - 1:
                    self._averager.expect_last_backward(tuple(shares))
                found, measures_of_part = self._backward(task, micro_batch, share, weight)
                names += found
                values += found.values()
                measures += measures_of_part
        self.after_backward()
        # One rank has the gradient already, and its norm travels with the losses.
        whole = ranks.group_size() == 1 and self._scaler is None
        square = gradient_square(self._parameters) if whole else math.nan
        numbers = [*values, *(value for _, value in measures), square, data_time, float(self.stop_requested)]
        *values, square, data_time, stop = self._averager.average(numbers)
        with storage:
            for (name, _), value in zip(measures, values[len(names) :], strict=True):
                write(name, value)
        losses: dict[str, float] = {}
        for name, value in zip(names, values):
            losses[name] = losses.get(name, 0.0) + value  # a batch's loss is the weighted sum over its micro-batches
        draw = Draw(
            group=group,
            shares=shares,
            losses=losses,
            norm=math.sqrt(square),
            images=ranks.group_size() * sum(map(len, batches.values())),
            data_time=data_time,
            seconds=time.perf_counter() - start,
            stop=stop > 0,
            logged=_values_in(own_storage) if self._in_groups else [],
            reached=b"",
        )
        return draw, batches

    def _tasks_after(self, group: int) -> list[str]:
        """The tasks of this rank's draw after that of a group; none after the last."""
        groups = ranks.own_groups()
        iteration, group = (self.iter, group + 1) if group + 1 in groups else (self.iter + 1, groups[0])
        return [] if iteration == self._end else list(self._schedule.tasks_at(iteration, group))

    def _take_gradient(self, draw: Draw) -> Gradients:
        """The gradient that the parameters have, without the scaler's scale. Sets ``norm`` and ``reached``."""
        gradients = {p: p.grad for p in self._parameters if p.grad is not None}
        if self._scaler is not None:
            torch._foreach_mul_([*gradients.values()], 1 / self._scaler.get_scale())
        if math.isnan(draw.norm):
            draw.norm = gradient_norm(self._parameters)
        draw.reached = bytes(p in gradients for p in self._parameters)
        return gradients

    def _micro_batches(self, batch: Batch) -> list[tuple[Batch, float]]:
        """The micro-batches of a batch with their weights. A weight is the micro-batch's share of the batch's loss
        count, summed over the ranks of the group."""
        if self._accumulation_steps == 1:
            return [(batch, 1.0)]
        bounds = np.linspace(0, len(batch), self._accumulation_steps + 1).astype(int)
        parts = [batch[first:last] for first, last in itertools.pairwise(bounds)]
        counts = torch.tensor([float(self.model.loss_count(part)) for part in parts], dtype=torch.float64)
        if ranks.group_size() > 1:
            counts = counts.to(self._parameters[0].device)
            torch.distributed.all_reduce(counts, group=ranks.process_group())
        # The losses of a micro-batch with a count of 0 are divided by 1.
        return list(zip(parts, (counts.clamp(min=1) / counts.sum().clamp(min=1)).tolist()))

    def _seed_part(self, group: int, part: int) -> None:
        # Without the number of processes: two groups have the same numbers on one rank as on two.
        place = group * ranks.group_size() + ranks.rank_in_group()
        entropy = np.random.SeedSequence((self._seed, self.iter, place, part))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def _backward(
        self, task: str, batch: Batch, share: float, weight: float
    ) -> tuple[dict[str, Tensor], list[tuple[str, Tensor]]]:
        """Adds the gradient of a micro-batch. Returns its part of the batch's losses, and what else it measured, by
        their names in the storage."""
        with self._precision(), get_event_storage().name_scope(task), measured() as found:
            losses = self.model(batch)
        total = self._loss_weights[task] * sum(losses.values())
        gradient_of = total * (share * weight) if share * weight != 1 else total
        if self._is_sharded:
            gradient_of = reach_all(gradient_of, self.model)
        (gradient_of if self._scaler is None else self._scaler.scale(gradient_of)).backward()
        parts = {f"{task}/{name}": weight * loss.detach() for name, loss in {**losses, "total_loss": total}.items()}
        return parts, [(f"{task}/{name}", value) for name, value in found]

    def _precision(self) -> contextlib.AbstractContextManager:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, dtype=self._autocast)

    def _step(
        self,
        draws: Sequence[Draw],
        batches: Mapping[int, Mapping[str, Batch]],
        gradients: Mapping[int, Gradients],
    ) -> None:
        """Update the parameters or skip the step. Sets each draw's norm: NaN if its losses are not finite.

        All ranks have the same draws. Within a group the gradient is the same, too. So all ranks decide alike.
        """
        scale_may_be_at_fault = self._scaler is not None and self._scaler.get_scale() > SMALLEST_SCALE
        if self._in_groups:
            self._step_by_draws(draws, gradients)
        else:
            draws[0].norm = self._step_by_gradient(draws[0])
        if self._scaler is not None:
            get_event_storage().put_scalar("loss_scale", self._scaler.get_scale(), smoothing_hint=False)
        for draw in draws:
            if math.isfinite(draw.norm):
                for task in draw.shares:
                    self._skipped_in_row[task] = 0
            elif not (scale_may_be_at_fault and draw.has_finite_losses):
                self._count_skipped(draw, batches.get(draw.group, {}))

    def _step_by_gradient(self, draw: Draw) -> float:
        """Step by the gradient in the parameters, if it is finite. Returns the gradient's norm."""
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        norm = None if math.isnan(draw.norm) else draw.norm
        norm = self._update(next(iter(draw.shares)), norm) if draw.has_finite_losses else math.nan
        if self._scaler is not None:
            self._scaler.update()
        return norm

    def _update(self, task: str, norm: float | None) -> float:
        if isinstance(self.optimizer, TaskBalancedAdamW):
            with contextlib.suppress(FloatingPointError):
                self.optimizer.step(task=task, norm=norm)
            return self.optimizer.last_gradient_norm
        norm = gradient_norm(self._parameters) if norm is None else norm
        if math.isfinite(norm):
            self.optimizer.step()
        return norm

    def _step_by_draws(self, draws: Sequence[Draw], gradients: Mapping[int, Gradients]) -> None:
        """Step by the gradients of all draws that are finite."""
        if self._scaler is not None:
            adapt_scale(self._scaler, overflow=not all(math.isfinite(draw.norm) for draw in draws))
        for draw in draws:
            if not draw.has_finite_losses:
                draw.norm = math.nan
        draws = [draw for draw in draws if math.isfinite(draw.norm)]
        if not draws:
            return
        start = time.perf_counter()
        of_draws = share_gradients(self._parameters, draws, gradients)
        get_event_storage().put_scalar("exchange_time", time.perf_counter() - start)
        if isinstance(self.optimizer, TaskBalancedAdamW):
            tasks = (next(iter(draw.shares)) for draw in draws)
            norms = (draw.norm for draw in draws)
            self.optimizer.step(draws=[*map(TaskGradient, tasks, of_draws, norms)])
        else:
            put_mean_gradient(self._parameters, of_draws)
            self.optimizer.step()

    def _count_skipped(self, draw: Draw, batches: Mapping[str, Batch]) -> None:
        """Count a skipped draw for the tasks with losses that are not finite. If all losses are finite and only the
        gradient is not, count it for all its tasks. ``batches`` are this rank's share, empty on ranks of other
        groups."""
        guilty = {task for task in draw.shares if not math.isfinite(draw.losses[f"{task}/total_loss"])}
        values = ", ".join(f"{name} {value:.4g}" for name, value in draw.losses.items())
        fatal = ""
        for task in draw.shares:
            if guilty and task not in guilty:
                continue
            self._skipped[task] += 1
            self._skipped_in_row[task] += 1
            own_ids = [_id_of(sample) for sample in batches.get(task, ())]
            ids = [number for of_rank in comm.all_gather(own_ids) for number in of_rank]
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

    def _write(self, draws: Sequence[Draw], seconds: float) -> None:
        if not comm.is_main_process():
            return
        scalars = [
            ("data_time", sum(draw.data_time for draw in draws) / len(draws)),
            ("images_per_second", sum(draw.images for draw in draws) / seconds),
        ]
        for draw in draws:
            scalars += [*draw.logged, *draw.losses.items()]
        scalars.append(("total_loss", sum(draw.total_loss for draw in draws) / len(draws)))
        for draw in draws:
            scalars += _measured(draw, draw.seconds if self._in_groups else seconds)
        storage = get_event_storage()
        for name, value in scalars:
            if math.isfinite(value):
                storage.put_scalar(name, value)
        for task in dict.fromkeys(task for draw in draws for task in draw.shares):
            if self._skipped[task]:
                storage.put_scalar(f"{task}/skipped_steps", self._skipped[task], smoothing_hint=False)
            if unreadable := self._batches.num_unreadable[task]:
                storage.put_scalar(f"{task}/unreadable_images", unreadable, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's state, the counts of skipped steps and the scaler of float16 gradients."""
        state = super().state_dict()
        state["skipped"] = {"all": dict(self._skipped), "in_row": dict(self._skipped_in_row)}
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the optimizer's state does not fit its parameters, which PyTorch does not notice.
        """
        settings = [dict(group) for group in self.optimizer.param_groups]
        super().load_state_dict(state_dict)
        take_over_state(self.optimizer, settings)
        if "skipped" in state_dict:
            self._skipped = Counter(state_dict["skipped"]["all"])
            self._skipped_in_row = Counter(state_dict["skipped"]["in_row"])
        if self._scaler is not None and "scaler" in state_dict:
            self._scaler.load_state_dict(state_dict["scaler"])


def _id_of(sample: Mapping[str, Any]) -> Any:
    """Identifies a sample for the user: the id or file of its image, or the id of its text."""
    return next((sample[key] for key in ("image_id", "text_id", "file_name") if key in sample), "?")


def _values_in(storage: EventStorage) -> list[tuple[str, float]]:
    return [(name, value) for name, history in storage.histories().items() for value, _ in history.values()]


def _measured(draw: Draw, seconds: float) -> list[tuple[str, float]]:
    """The gradient's norm and the times of a draw, by the name of its task."""
    if len(draw.shares) > 1:  # the norm and the times belong to all tasks together
        return [("grad_norm", draw.norm)]
    (task,) = draw.shares
    return [
        (f"{task}/grad_norm", draw.norm),
        (f"{task}/data_time", draw.data_time),
        (f"{task}/time", seconds),
        (f"{task}/images_per_second", draw.images / seconds),
    ]
