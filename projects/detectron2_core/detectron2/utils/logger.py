"""Loggers that write to the terminal and to a file, and log calls that limit repetitions."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from termcolor import colored

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_TIME_FORMAT = "%m/%d %H:%M:%S"
_counter: Counter = Counter()
_last_logged: dict[tuple, float] = {}


class _ColorfulFormatter(logging.Formatter):
    """Green prefix, abbreviated logger names, and a red word before warnings and errors."""

    def __init__(self, root_name: str, abbreviation: str):
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt=_TIME_FORMAT)
        self._root = root_name + "."
        self._abbreviation = abbreviation + "." if abbreviation else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        # On a copy, as other handlers need the whole name.
        shown = logging.makeLogRecord(record.__dict__)
        shown.name = record.name.replace(self._root, self._abbreviation)
        line = super().formatMessage(shown)
        if record.levelno == logging.WARNING:
            return colored("WARNING", "red", attrs=["blink"]) + " " + line
        if record.levelno >= logging.ERROR:
            return colored("ERROR", "red", attrs=["blink", "underline"]) + " " + line
        return line


@functools.lru_cache  # a second call with the same arguments must not add the handlers again
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Adds handlers to a logger and sets its level to DEBUG.

    Args:
        output: a file with the suffix .txt or .log, or a folder for a log.txt. Lines are appended. With None there is
            no file.
        distributed_rank: only rank 0 writes to stdout. The files of the others end in ".rank<number>".
        color: whether lines on stdout are coloured.
        name: the name of the logger. The handlers also get the records of loggers below it.
        abbrev_name: replaces ``name`` in coloured lines. The default is "d2" for detectron2, otherwise ``name``.
        enable_propagation: whether records also go to the handlers of the loggers above.
        configure_stdout: whether to write to stdout at all.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_TIME_FORMAT)

    if configure_stdout and distributed_rank == 0:
        if abbrev_name is None:
            abbrev_name = "d2" if name == "detectron2" else name
        terminal = logging.StreamHandler(stream=sys.stdout)
        terminal.setFormatter(_ColorfulFormatter(name, abbrev_name) if color else plain)
        logger.addHandler(terminal)

    if output is not None:
        path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            path += f".rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(path))
        file = logging.StreamHandler(_open_log(path))
        file.setFormatter(plain)
        logger.addHandler(file)
    return logger


@functools.cache  # loggers with different names share a stream to the same file
def _open_log(path: str):
    stream = PathManager.open(path, "a")
    atexit.register(stream.close)
    return stream


def _find_caller() -> tuple[str, tuple]:
    """The caller from outside this file: its module, for the logger's name, and its line, to identify the call."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    module = frame.f_globals["__name__"]
    key = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
    return ("detectron2" if module == "__main__" else module), key


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | Sequence[str] = "caller"
) -> None:
    """Logs the first ``n`` times only.

    Args:
        lvl: a level of ``logging``.
        name: the name of the logger, by default the calling module's.
        key: how repetitions are recognised: by the calling line ("caller"), by the text ("message"), or by a tuple of
            both.
    """
    keys = (key,) if isinstance(key, str) else key
    assert len(keys) > 0
    module, caller = _find_caller()
    identity = (caller if "caller" in keys else ()) + ((msg,) if "message" in keys else ())
    _counter[identity] += 1
    if _counter[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Logs the first, the (n+1)-th, the (2n+1)-th, ... call from each line."""
    module, caller = _find_caller()
    _counter[caller] += 1
    if (_counter[caller] - 1) % n == 0:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Logs a call from a line if at least ``n`` seconds have passed since the last one that was logged."""
    module, caller = _find_caller()
    now = time.time()
    if caller not in _last_logged or now - _last_logged[caller] >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _last_logged[caller] = now


def create_small_table(small_dict: dict) -> str:
    """A table of one row with the dict's keys as headers."""
    headers, values = list(small_dict), list(small_dict.values())
    return tabulate([values], headers=headers, tablefmt="pipe", floatfmt=".3f", stralign="center", numalign="center")
