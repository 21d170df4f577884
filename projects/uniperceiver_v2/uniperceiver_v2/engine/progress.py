"""The progress of training by task: log lines, and a bar on a terminal."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from tqdm import tqdm

logger = logging.getLogger(__name__)

WINDOW = 20  # a loss is shown as the mean over this number of its task's iterations
BAR_PERIOD = 0.2  # seconds between two updates of the bar


class TaskProgressPrinter(EventWriter):
    """Logs the iteration, the time left, the speed and each task's total loss with its parts.

    A loss is the mean over the last ``WINDOW`` iterations of its own task, even if iterations of other tasks lie
    between them. Times are means over the last 10 · ``WINDOW`` iterations of all tasks, as the time of an iteration
    differs from task to task.

    Args:
        tasks: names of the tasks, in the order of the line.
        max_iter: the number of iterations, for the time left.
    """

    def __init__(self, tasks: Sequence[str], max_iter: int):
        self._tasks = tuple(tasks)
        self._max_iter = max_iter

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter >= self._max_iter:
            return  # a call after training, with no new iteration
        parts = [self._progress(storage)]
        parts += [text for text in (self._losses(storage, task) for task in self._tasks) if text]
        logger.info(" | ".join(parts))

    def _progress(self, storage: EventStorage) -> str:
        done = storage.iter + 1
        text = f"{done}/{self._max_iter}"
        left = _seconds_left(storage, self._max_iter)
        if not math.isnan(left):
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
            text += f" eta {_clock(left)} {_seconds(storage, 'time'):.3f} s/it"
            text += f" (data {_seconds(storage, 'data_time'):.3f})"
        if "lr" in storage.histories():
            text += f" lr {storage.history('lr').latest():.2e}"
        if torch.cuda.is_available():
            text += f" memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
        return text

    def _losses(self, storage: EventStorage, task: str) -> str:
        total = _mean(storage, f"{task}/total_loss", WINDOW)
        if math.isnan(total):
            return ""  # not drawn yet
        prefix = f"{task}/loss_"
        names = [name for name in storage.histories() if name.startswith(prefix)]
        parts = " ".join(f"{name[len(prefix) :]} {_mean(storage, name, WINDOW):.3g}" for name in names)
        return f"{task} {total:.4g} ({parts})"


def _mean(storage: EventStorage, name: str, window: int) -> float:
    if name not in storage.histories():
        return math.nan
    history = storage.history(name)
    return history.avg(min(window, len(history.values())))


def _seconds(storage: EventStorage, name: str) -> float:
    return _mean(storage, name, 10 * WINDOW)


def _seconds_left(storage: EventStorage, max_iter: int) -> float:
    return _seconds(storage, "time") * (max_iter - storage.iter - 1)


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


class ProgressBar(HookBase):
    """Shows the iteration, the time left, the speed and each task's total loss in a bar at the bottom of the terminal.

    Without a terminal it does nothing. With one, the lines of :class:`TaskProgressPrinter` go to log files only. All
    other log lines and prints appear above the bar.

    Register this hook on the main process, before all hooks that log after training.

    Args:
        tasks: names of the tasks, in the order of the bar.
        stream: where the bar is drawn, if it is a terminal. The default is stderr, or stdout if only that is a
            terminal.
    """

    def __init__(self, tasks: Sequence[str], stream: TextIO | None = None):
        self._tasks = tuple(tasks)
        self._stream = stream
        self._bar: tqdm | None = None
        self._around = contextlib.ExitStack()
        self._next_text = 0.0

    def before_train(self) -> None:
        streams = (sys.stderr, sys.stdout) if self._stream is None else (self._stream,)
        terminal = next((stream for stream in streams if _is_terminal(stream)), None)
        if terminal is None:
            return
        self._bar = _Bar(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            file=terminal,
            position=0,  # whatever other bars of the process are open
            dynamic_ncols=True,
            mininterval=BAR_PERIOD,
            bar_format="{percentage:3.0f}% {bar:20} {n_fmt}/{total_fmt}{postfix}",
        )
        self._around.enter_context(_everything_above_the_bar(terminal))

    def after_step(self) -> None:
        if self._bar is None:
            return
        now, is_last = time.monotonic(), self.trainer.iter + 1 == self.trainer.max_iter
        if now >= self._next_text or is_last:
            self._next_text = now + BAR_PERIOD
            self._bar.set_postfix_str(self._text(), refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._around.close()

    def _text(self) -> str:
        storage = self.trainer.storage
        parts = []
        left = _seconds_left(storage, self.trainer.max_iter)
        if not math.isnan(left):
            parts += [f"eta {_clock(left)}", f"{_seconds(storage, 'time'):.3f} s/it"]
        losses = ((task, _mean(storage, f"{task}/total_loss", WINDOW)) for task in self._tasks)
        return " ".join([*parts, *(f"{task} {loss:.3g}" for task, loss in losses if not math.isnan(loss))])


class _Bar(tqdm):
    # tqdm's watcher thread and its lock between processes are not needed for a single bar that is updated often.
    monitor_interval = 0


_Bar.set_lock(threading.RLock())


def _is_terminal(stream: Any) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # the stream is None, or closed
        return False


@contextlib.contextmanager
def _everything_above_the_bar(terminal: TextIO) -> Iterator[None]:
    """While it is active, prints and log lines on a terminal appear above the bar, and progress lines are left out
    there."""
    with contextlib.ExitStack() as stack:
        above = {stream: _AboveBar(stream, terminal) for stream in (sys.stdout, sys.stderr) if _is_terminal(stream)}
        above.setdefault(terminal, _AboveBar(terminal, terminal))
        for handler in _terminal_handlers():
            stream = handler.setStream(above.setdefault(handler.stream, _AboveBar(handler.stream, terminal)))
            stack.callback(handler.setStream, stream)
            handler.addFilter(_is_no_progress_line)
            stack.callback(handler.removeFilter, _is_no_progress_line)
        if sys.stdout in above:
            stack.enter_context(contextlib.redirect_stdout(above[sys.stdout]))
        if sys.stderr in above:
            stack.enter_context(contextlib.redirect_stderr(above[sys.stderr]))
        try:
            yield
        finally:
            for stream in above.values():
                stream.finish()


def _terminal_handlers() -> list[logging.StreamHandler]:
    """All handlers that write to a terminal. A handler that looks up sys.stderr for each line, as torch's does from
    2.14 on, needs no change."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler: None for log in loggers for handler in getattr(log, "handlers", ())}
    return [h for h in handlers if isinstance(h, logging.StreamHandler) and _is_terminal(h.stream)]


def _is_no_progress_line(record: logging.LogRecord) -> bool:
    return record.name != __name__


class _AboveBar:
    """A stream that writes whole lines above the bar. All its other attributes are those of the wrapped stream."""

    def __init__(self, stream: TextIO, terminal: TextIO):
        self._stream, self._terminal = stream, terminal
        self._rest = ""
        self._process = os.getpid()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if os.getpid() != self._process:  # in a data loader's worker there is no bar
            return self._stream.write(text)
        lines, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            with _Bar.external_write_mode(file=self._terminal):
                self._stream.write(lines + newline)
                self._stream.flush()
        return len(text)

    def finish(self) -> None:
        """Write the rest of the text, which has no line end."""
        self._stream.write(self._rest)
        self._rest = ""
        self._stream.flush()
