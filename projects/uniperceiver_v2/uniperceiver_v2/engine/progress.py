"""One readable line on how training goes, task by task."""

import datetime
import logging
import math
from collections.abc import Sequence

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

logger = logging.getLogger(__name__)


class TaskProgressPrinter(EventWriter):
    """Logs iteration, time left, speed and, for each task, its total loss and the parts of it.

    A loss is the mean over the task's last ``window`` iterations, however many of other tasks lie between;
    times are means over ten times as many iterations of all tasks, since tasks take turns and differ.

    Args:
        tasks: names, in the order of the line.
        max_iter: the last iteration plus one, for the time left.
        window: iterations of a task that are averaged.
    """

    def __init__(self, tasks: Sequence[str], max_iter: int, window: int = 20):
        self._tasks = tuple(tasks)
        self._max_iter = max_iter
        self._window = window

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter >= self._max_iter:
            return  # called once more after training, with nothing new
        parts = [self._progress(storage)]
        parts += [text for text in (self._losses(storage, task) for task in self._tasks) if text]
        logger.info(" | ".join(parts))

    def _progress(self, storage: EventStorage) -> str:
        done = storage.iter + 1
        text = f"{done}/{self._max_iter}"
        seconds = self._mean(storage, "time", 10 * self._window)
        if not math.isnan(seconds):
            left = seconds * (self._max_iter - done)
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
            text += f" eta {datetime.timedelta(seconds=round(left))} {seconds:.3f} s/it"
            text += f" (data {self._mean(storage, 'data_time', 10 * self._window):.3f})"
        if "lr" in storage.histories():
            text += f" lr {storage.history('lr').latest():.2e}"
        if torch.cuda.is_available():
            text += f" memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
        return text

    def _losses(self, storage: EventStorage, task: str) -> str:
        total = self._mean(storage, f"{task}/total_loss")
        if math.isnan(total):
            return ""  # not drawn yet
        prefix = f"{task}/loss_"
        names = [name for name in storage.histories() if name.startswith(prefix)]
        parts = " ".join(f"{name[len(prefix) :]} {self._mean(storage, name):.3g}" for name in names)
        return f"{task} {total:.4g} ({parts})"

    def _mean(self, storage: EventStorage, name: str, window: int | None = None) -> float:
        if name not in storage.histories():
            return math.nan
        history = storage.history(name)
        return history.avg(min(window or self._window, len(history.values())))
