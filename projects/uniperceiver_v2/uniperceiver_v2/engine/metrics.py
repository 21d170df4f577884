"""metrics.json: one row of scalars every so many iterations, the same however often a run was interrupted."""

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

from ..files import write_atomically

logger = logging.getLogger(__name__)

# The last parts of the names of scalars that are measured on the machine: no two runs have the same.
MEASURED = frozenset({"time", "data_time", "eta_seconds", "images_per_second", "peak_memory_mib"})


def reproducible(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.json, or anything else by scalars' names, without what depends on machine and hour."""
    return {name: value for name, value in row.items() if name.rsplit("/", 1)[-1] not in MEASURED}


class MetricsFile(HookBase):
    """Writes a row, a line of JSON with its "iteration", every ``period`` iterations, after an evaluation, and in the
    end.

    A row has the scalars that were put since the row before: the mean of each, or the latest value of those put with
    ``smoothing_hint=False``, such as results of an evaluation. What is not finite is written as Python does (NaN,
    Infinity).

    What is pending at a checkpoint is kept in it. A resumed run drops all that was written after the checkpoint, so
    that in the end the file is that of a run that was never interrupted, measured times aside. An evaluation of the
    very iteration of the checkpoint that the run did not come to record is done anew. A run that starts from the
    beginning moves a file that it finds to ``metrics.previous.json``; a run that is cut short writes no last row, as
    the resumed one will.

    To be registered on all ranks, after all hooks that put scalars; the main process alone writes. Scalars that are put
    by a hook between the checkpoint's and this one, other than the ``EvalHook``, may be lost from one row of a resumed
    run. The trainer needs an ``evaluate()``, which returns results as the ``EvalHook`` wants them, if there is an
    ``eval_period``.

    Args:
        path: of the file.
        period: iterations between two rows.
        eval_period: of the ``EvalHook`` before this one, 0 where there is none.

    Raises:
        OSError: the file cannot be read or written; it names the file.
    """

    def __init__(self, path: str, period: int, eval_period: int = 0):
        self._path = path
        self._period = period
        self._eval_period = eval_period
        self._is_open = False
        self._last_row = -1  # the iteration up to which all scalars are in the file
        # From a checkpoint, of iterations before this process: values by name, and the latest ones.
        self._state: dict[str, Any] | None = None
        self._means: dict[str, list[float]] = {}
        self._latest: dict[str, float] = {}

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if comm.is_main_process():
            with _naming(self._path):
                self._go_on(start) if start > 0 else self._begin()
        self._is_open = True
        if start > 0 and self._is_due(start - 1):
            self._catch_up(start - 1)

    def after_step(self) -> None:
        if comm.is_main_process() and self._is_due(self.trainer.iter):
            self._write_row(self.trainer.iter)

    def after_train(self) -> None:
        last = self.trainer.max_iter  # Detectron2 counts one further where there was nothing left to do
        if self._is_open and self.trainer.iter >= last and comm.is_main_process():
            self._write_row(last)  # the last evaluation

    def state_dict(self) -> dict[str, Any]:
        """What the next row will be made of, plain numbers in lists and dicts; what is measured would make checkpoints
        of the same training differ."""
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
        """Bring the file to where it was at the checkpoint of iteration ``start - 1``."""
        state = self._state or {"row": start - 1, "max_iter": 0, "means": {}, "latest": {}}
        self._last_row = min(state["row"], start - 1)
        # The checkpoint is written before an evaluation and a row of its iteration. A row that is there is whole,
        # unless that iteration was the last one of its run, which evaluates only after training.
        newest = start - 1 if self._is_due(start - 1) and state["max_iter"] != start else self._last_row
        if os.path.exists(self._path):
            with open(self._path, "rb") as file:
                lines = file.readlines()
            kept = [line for line in lines if _iteration(line) is not None and _iteration(line) <= newest]
            if len(kept) < len(lines):
                logger.info("%s: dropped %d rows after iteration %d", self._path, len(lines) - len(kept), newest)
                write_atomically(self._path, lambda file: file.writelines(kept))
            self._last_row = max([self._last_row, *(_iteration(line) for line in kept)])
        if self._last_row < start - 1:
            self._means = {name: list(values) for name, values in state["means"].items()}
            self._latest = dict(state["latest"])

    def _catch_up(self, iteration: int) -> None:
        """Write the row of the checkpoint's iteration, if the run did not come to it."""
        is_missing = self._last_row < iteration
        if self._evaluates(iteration) and comm.all_gather(is_missing)[0]:  # the main process knows
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
        """Values since the last row: all of those to be averaged, the latest of the others."""
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
    """The values, pairs of value and iteration in order, that were put after an iteration."""
    first = len(values)
    while first > 0 and values[first - 1][1] > iteration:
        first -= 1
    return [float(value) for value, _ in values[first:]]


def _mean(values: list[float]) -> float:
    finite = all(map(math.isfinite, values))
    return (math.fsum(values) if finite else sum(values)) / len(values)  # fsum refuses inf - inf


def _iteration(line: bytes) -> int | None:
    """A row's iteration, or None of a line that was not written to its end."""
    try:
        iteration = json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return None
    return iteration if line.endswith(b"\n") and isinstance(iteration, int) else None


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """An OSError of writing, as on a full disk, says nothing of the file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), path) from error


class TensorBoardEvents(HookBase):
    """Lets Detectron2's ``TensorboardXWriter`` write scalars and pictures, and replace what earlier runs left.

    TensorBoard drops the events of the same folder that are of the run's first iteration or later: those that a resumed
    run comes to once more, or all of them where a run starts from the beginning.

    To be registered on the main process, after all hooks that put something.

    Args:
        folder: of the event files.
        period: iterations between two times of writing.
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
    """Puts ``temperature``, the model's τ, and ``peak_memory_mib``, of this process so far, where they will be written.

    On a GPU the memory is that of tensors; on a CPU it is the whole process', in its workers nothing.

    To be registered on the main process, before the hooks that write, checkpoints included.

    Args:
        model: with or without a ``likelihood``; with none, there is no τ.
        period: iterations between two times.
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
            # Likelihood.temperature would also move the parameter to its floor, and so change what is averaged.
            temperature = max(math.exp(-self._likelihood.log_scale.item()), self._likelihood.MIN_TEMPERATURE)
            storage.put_scalar("temperature", temperature, smoothing_hint=False)
        storage.put_scalar("peak_memory_mib", peak_memory(self._device), smoothing_hint=False)


def peak_memory(device: torch.device) -> float:
    """MiB: of tensors on a GPU since the process began, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # of ru_maxrss in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
