"""Events of training: a storage for scalars, pictures and histograms, and writers that read it."""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_LONGEST_HISTORY = 2000  # values of a scalar; a million, as fvcore's own limit, are 120 MB

_storages: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage of the innermost ``with EventStorage(...)`` that is running.

    Raises:
        AssertionError: there is none.
    """
    assert _storages, "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    return _storages[-1]


def has_event_storage() -> bool:
    """Whether there is a storage for ``get_event_storage``."""
    return len(_storages) > 0


class EventStorage:
    """Stores the history of every scalar by name. Stores pictures and histograms until a writer has written them.

    A history is the last 2,000 values, so that a long training takes no more memory than a short one;
    its ``global_avg`` is of all values. Upstream keeps a million.

    It is a context. Inside it ``get_event_storage()`` returns this object, so that any module can put scalars without
    having the storage as an argument.
    """

    def __init__(self, start_iter: int = 0):
        self._history: dict[str, HistoryBuffer] = defaultdict(partial(HistoryBuffer, _LONGEST_HISTORY))
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._prefix = ""
        # TensorboardXWriter writes and clears them.
        self._vis_data: list[tuple[str, Tensor | np.ndarray, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_scalar(
        self, name: str, value: float | Tensor, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Adds a number to the history of ``name``.

        Args:
            smoothing_hint: whether the scalar is noisy. Writers show the median of noisy scalars. It must be the same
                at every call.
            cur_iter: the iteration of the value, by default the current one.

        Raises:
            AssertionError: the hint differs from that of earlier calls.
        """
        name = self._prefix + name
        value = float(value)
        iteration = self._iter if cur_iter is None else cur_iter
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"
        self._history[name].update(value, iteration)
        self._latest_scalars[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs) -> None:
        """``put_scalar`` for each keyword argument: ``put_scalars(loss=..., accuracy=...)``."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Tensor | np.ndarray) -> None:
        """Adds an RGB picture [3,H,W] for TensorBoard, uint8 or float in 0..1."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Adds a histogram of a tensor's elements for TensorBoard: ``bins`` equal bins over their range."""
        values = hist_tensor.detach().flatten().float()
        low, high = values.min().item(), values.max().item()
        edges = torch.linspace(low, high, steps=bins + 1)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": len(values),
                "sum": values.sum().item(),
                "sum_squares": values.square().sum().item(),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(values, bins=bins).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """
        Raises:
            KeyError: there is no scalar with this name.
        """
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """All histories by name."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of each scalar and its iteration, by name."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As ``latest``, but for noisy scalars the median over the last ``window_size`` iterations."""
        smoothed = {}
        for name, (value, iteration) in self._latest_scalars.items():
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            smoothed[name] = (value, iteration)
        return smoothed

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """The number of values of ``name`` in the ``window_size`` iterations up to its last value."""
        samples = self._history[name].values()
        oldest = samples[-1][1] - window_size
        count = 0
        while count < len(samples) and samples[-1 - count][1] > oldest:
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """Whether each scalar is noisy, by name."""
        return self._smoothing_hints

    def step(self) -> None:
        """Goes on to the next iteration."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration; a trainer keeps it equal to its own."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    @property
    def iteration(self) -> int:
        """An older name of ``iter``."""
        return self._iter

    def __enter__(self) -> EventStorage:
        _storages.append(self)
        return self

    def __exit__(self, exc_type, exc_val, exc_tb) -> None:
        assert _storages[-1] is self
        _storages.pop()

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """A context in which scalars are stored under "name/..."."""
        outer = self._prefix
        self._prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def clear_images(self) -> None:
        """Remove all pictures, after they were written."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Remove all histograms, after they were written."""
        self._histograms = []


class EventWriter:
    """Writes the new events of the current storage whenever ``write`` is called."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class JSONWriter(EventWriter):
    """Appends scalars to a file with one JSON object in each line, which has its "iteration"."""

    def __init__(self, json_file: str, window_size: int = 20):
        """
        Args:
            json_file: the file. Lines are appended if it exists.
            window_size: the number of iterations for the medians of noisy scalars.
        """
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        for iteration, scalars in lines.items():
            self._file_handle.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._last_write = max(lines, default=self._last_write)
        self._file_handle.flush()
        with suppress(AttributeError):  # the file is not on this machine
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, pictures and histograms for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        """
        Args:
            log_dir: the folder of the event files.
            window_size: the number of iterations for the medians of noisy scalars.
            kwargs: arguments of ``torch.utils.tensorboard.SummaryWriter``.
        """
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self):
        # Made at first use, as the import takes long and the writer creates a file.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest

        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line: time left, iteration, losses, times of an iteration, learning rate, GPU memory.

    Losses are the scalars with "loss" in their names. Scalars with "[metric]" in their names follow. Both are medians.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        """
        Args:
            max_iter: the number of iterations of the run, for the time left. With None it is not shown.
            window_size: the number of iterations for medians.
        """
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # the run has ended
            return
        parts = [self._eta(storage), f"iter: {storage.iter}"]
        for marker in ("loss", "[metric]"):
            parts += [
                f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
                for name, history in storage.histories().items()
                if marker in name
            ]
        parts += self._times(storage)
        rate = f"{storage.history('lr').latest():.5g}" if "lr" in storage.histories() else "N/A"
        parts.append(f"lr: {rate}")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        self.logger.info(" " + "  ".join(part for part in parts if part))

    def _eta(self, storage: EventStorage) -> str:
        if self._max_iter is None:
            return ""
        if "time" in storage.histories():
            seconds_per_iter = storage.history("time").median(1000)
        else:  # less exact: from the time since the last call
            last, self._last_write = self._last_write, (storage.iter, time.perf_counter())
            if last is None or last[0] == storage.iter:
                return ""
            seconds_per_iter = (self._last_write[1] - last[1]) / (storage.iter - last[0])
        seconds = seconds_per_iter * (self._max_iter - storage.iter - 1)
        if "time" in storage.histories():
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return f"eta: {datetime.timedelta(seconds=int(seconds))}"

    def _times(self, storage: EventStorage) -> list[str]:
        """The mean and the last time of iterations, as far as they have been measured."""
        parts = []
        if "time" in storage.histories():
            history = storage.history("time")
            parts += [f"time: {history.global_avg():.4f}", f"last_time: {history.latest():.4f}"]
        if "data_time" in storage.histories():
            history = storage.history("data_time")
            recent = history.avg(storage.count_samples("data_time", self._window_size))
            parts += [f"data_time: {recent:.4f}", f"last_data_time: {history.latest():.4f}"]
        return parts
