"""Scalars of a run: metrics.json, TensorBoard's events, and scalars about the process."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import TensorboardXWriter
from torch import nn

from ..errors import UserError
from ..files import write_atomically
from ..reading.disk import require_file

logger = logging.getLogger(__name__)

# Scalars with these last parts of their names are measured on the machine and differ between equal runs.
MEASURED = frozenset(
    {"time", "data_time", "wait_time", "exchange_time", "eta_seconds", "images_per_second", "peak_memory_mib"}
)


def reproducible(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.json, or another dict by names of scalars, without the scalars that depend on the machine and
    the time."""
    return {name: value for name, value in row.items() if name.rsplit("/", 1)[-1] not in MEASURED}


class MetricsFile(HookBase):
    """Writes a row to metrics.json every ``period`` iterations, after an evaluation and at the end of training.

    A row is a line of JSON with "iteration" and the scalars that were put since the row before. A scalar's value is the
    mean since then, or the latest value if it was put with ``smoothing_hint=False``, as results of an evaluation are.
    Values that are not finite are written as Python writes them (NaN, Infinity).

    The file of an interrupted and resumed run equals the file of an uninterrupted run, apart from measured times:

    - a checkpoint contains the scalars that have not been written to a row yet;
    - a resumed run drops all rows that were written after the checkpoint;
    - if the run ended before it recorded the evaluation of the checkpoint's iteration, that evaluation is repeated;
    - a run that is interrupted writes no last row, as the resumed run will write it.

    A run that starts from the beginning moves an existing file to ``metrics.previous.json``.

    Register this hook on all ranks, after all hooks that put scalars. Only the main process writes. The scalars of a
    hook that stands between the checkpointer and this hook may be missing in one row of a resumed run; the ``EvalHook``
    is an exception. With an ``eval_period``, the trainer needs a method ``evaluate()`` that returns results in the form
    that the ``EvalHook`` wants.

    Args:
        path: the file.
        period: iterations between two rows.
        eval_period: the period of the ``EvalHook`` before this hook, or 0 without one.

    Raises:
        OSError: the file cannot be read or written. The error names the file.
        UserError: what is there is no regular file. A pipe would wait for a reader for ever.
    """

    def __init__(self, path: str, period: int, eval_period: int = 0):
        self._path = path
        self._period = period
        self._eval_period = eval_period
        self._is_open = False
        self._last_row = -1  # all scalars up to this iteration are in the file
        # Scalars of the iterations before this process, from a checkpoint: values to be averaged, and latest values.
        self._state: dict[str, Any] | None = None
        self._means: dict[str, list[float]] = {}
        self._latest: dict[str, float] = {}

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if comm.is_main_process():
            with _naming(self._path):
                try:
                    require_file(self._path)
                except ValueError as error:
                    raise UserError(f"{self._path} {error}: the rows of a run are to be written there") from error
                self._go_on(start) if start > 0 else self._begin()
        self._is_open = True
        if start > 0 and self._is_due(start - 1):
            self._catch_up(start - 1)

    def after_step(self) -> None:
        if comm.is_main_process() and self._is_due(self.trainer.iter):
            self._write_row(self.trainer.iter)

    def after_train(self) -> None:
        last = self.trainer.max_iter  # Detectron2's iteration is one higher if no iteration was left to do
        if self._is_open and self.trainer.iter >= last and comm.is_main_process():
            self._write_row(last)  # the last evaluation

    def state_dict(self) -> dict[str, Any]:
        """The scalars of the next row, as plain numbers in lists and dicts. Measured times are left out, so that
        equal runs have equal checkpoints."""
        if not self._is_open:
            return self._state or {}
        means, latest = map(reproducible, self._pending())
        return {"row": self._last_row, "max_iter": self.trainer.max_iter, "means": means, "latest": latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state

    def _evaluates(self, iteration: int) -> bool:
        done = iteration + 1
        return self._eval_period > 0 and done % self._eval_period == 0 and done != self.trainer.max_iter

    def _is_due(self, iteration: int) -> bool:
        done = iteration + 1
        return done % self._period == 0 or done == self.trainer.max_iter or self._evaluates(iteration)

    def _begin(self) -> None:
        os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
        if os.path.exists(self._path) and os.path.getsize(self._path) > 0:
            stem, extension = os.path.splitext(self._path)
            os.replace(self._path, f"{stem}.previous{extension}")
            logger.info("the metrics of an earlier run are now in %s.previous%s", stem, extension)

    def _go_on(self, start: int) -> None:
        """Restore the file's state at the checkpoint of iteration ``start - 1``."""
        state = self._state or {"row": start - 1, "max_iter": 0, "means": {}, "latest": {}}
        self._last_row = min(state["row"], start - 1)
        # A checkpoint is written before the evaluation and the row of its iteration. An existing row of that iteration
        # is complete, unless the iteration was the last of its run: then the evaluation came after training.
        newest = start - 1 if self._is_due(start - 1) and state["max_iter"] != start else self._last_row
        if os.path.exists(self._path):
            with open(self._path, "rb") as file:
                lines = file.readlines()
            iterations = [_iteration(line) for line in lines]
            kept = [number for number, row in enumerate(iterations) if row is not None and row <= newest]
            damaged = [number for number, row in enumerate(iterations) if row is None]
            if damaged:
                where = (self._path, len(damaged), damaged[0] + 1)
                logger.warning("%s: dropped %d rows that are damaged or cut short, the first in line %d", *where)
            if later := len(lines) - len(kept) - len(damaged):
                logger.info("%s: dropped %d rows after iteration %d", self._path, later, newest)
            if len(kept) < len(lines):
                write_atomically(self._path, lambda file: file.writelines(lines[number] for number in kept))
            self._last_row = max([self._last_row, *(iterations[number] for number in kept)])
        if self._last_row < start - 1:
            self._means = {name: list(values) for name, values in state["means"].items()}
            self._latest = dict(state["latest"])

    def _catch_up(self, iteration: int) -> None:
        """Write the row of the checkpoint's iteration if the run ended before it was written."""
        is_missing = self._last_row < iteration
        if self._evaluates(iteration) and comm.all_gather(is_missing)[0]:  # only the main process knows the file
            self._evaluate_again(iteration)
        if is_missing and comm.is_main_process():
            self._write_row(iteration)

    def _evaluate_again(self, iteration: int) -> None:
        storage = self.trainer.storage
        present, storage.iter = storage.iter, iteration
        results = self.trainer.evaluate()
        if results:
            storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        storage.iter = present
        comm.synchronize()

    def _pending(self) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Scalars since the last row: the values to be averaged, and the latest values of the others."""
        means = {name: list(values) for name, values in self._means.items()}
        latest = dict(self._latest)
        storage = self.trainer.storage
        hints = storage.smoothing_hints()
        for name, history in storage.histories().items():
            values = _since(history.values(), self._last_row)
            if values and hints[name]:
                means.setdefault(name, []).extend(values)
            elif values:
                latest[name] = values[-1]
        return means, latest

    def _write_row(self, iteration: int) -> None:
        means, latest = self._pending()
        self._means, self._latest = {}, {}
        self._last_row = iteration
        row = {**{name: _mean(values) for name, values in means.items()}, **latest}
        if not row:
            return
        line = json.dumps({**row, "iteration": iteration}, sort_keys=True) + "\n"
        with _naming(self._path), open(self._path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def _since(values: list[tuple[float, float]], iteration: int) -> list[float]:
    """The values that were put after an iteration. ``values`` are pairs (value, iteration) in the order of
    iterations."""
    first = len(values)
    while first > 0 and values[first - 1][1] > iteration:
        first -= 1
    return [float(value) for value, _ in values[first:]]


def _mean(values: list[float]) -> float:
    finite = all(map(math.isfinite, values))
    return (math.fsum(values) if finite else sum(values)) / len(values)  # fsum refuses inf - inf


def _iteration(line: bytes) -> int | None:
    """A row's iteration. None for a line that was not written completely, or is damaged."""
    try:
        iteration = json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return iteration if line.endswith(b"\n") and isinstance(iteration, int) else None


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Add the file's name to an OSError of writing, for example on a full disk, that does not have it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), path) from error


class TensorBoardEvents(HookBase):
    """Writes scalars and pictures by Detectron2's ``TensorboardXWriter``, and replaces events of earlier runs.

    TensorBoard drops the events in the same folder from the run's first iteration on. After a resume these are the
    events of the iterations that are repeated. For a run that starts from the beginning they are all events.

    Register this hook on the main process, after all hooks that put scalars or pictures.

    Args:
        folder: the folder of the event files.
        period: iterations between two writes.
    """

    def __init__(self, folder: str, period: int):
        self._folder = folder
        self._period = period
        self._writer: TensorboardXWriter | None = None

    def before_train(self) -> None:
        self._writer = TensorboardXWriter(self._folder, purge_step=self.trainer.start_iter)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._writer.write()

    def after_train(self) -> None:
        if self._writer is not None:
            self._writer.write()  # the last evaluation
            self._writer.close()


class RunScalars(HookBase):
    """Puts two scalars: ``temperature``, the model's τ, and ``peak_memory_mib``, the process's peak memory so far.

    On a GPU the memory is that of tensors. On a CPU it is the memory of the whole process without its data workers.

    Register this hook on the main process, before the hooks that write, checkpoints included.

    Args:
        model: the model. Without a ``likelihood``, no ``temperature`` is put.
        period: iterations between two values.
    """

    def __init__(self, model: nn.Module, period: int):
        self._likelihood = getattr(model, "likelihood", None)
        self._device = next(model.parameters()).device
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period and done != self.trainer.max_iter:
            return
        storage = self.trainer.storage
        if self._likelihood is not None:
            # Likelihood.temperature would clamp the parameter at its floor, which changes the weights that are
            # averaged.
            temperature = max(math.exp(-self._likelihood.log_scale.item()), self._likelihood.MIN_TEMPERATURE)
            storage.put_scalar("temperature", temperature, smoothing_hint=False)
        storage.put_scalar("peak_memory_mib", peak_memory(self._device), smoothing_hint=False)


def peak_memory(device: torch.device) -> float:
    """Peak memory of the process so far, in MiB: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes in a unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
