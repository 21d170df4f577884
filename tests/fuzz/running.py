"""Runs a case in a process of its own, with limits, and says what became of it.

The process is forked from one that has imported everything. So a case costs milliseconds.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple, Protocol

from uniperceiver_v2.errors import UnreadableImage, UserError

MOST_MEMORY = 2 * 2**30  # bytes that a case may take, with all that is imported
MOST_SECONDS = 10  # of the processor
MOST_WAITING = 120  # seconds, for a case that waits without end
LONGEST_MESSAGE = 4000  # characters

HANDLED, REFUSED, FINDING = "handled", "refused", "finding"


class SilentDamage(Exception):
    """A damaged file was read, without a message, as something else than what was saved."""


class Damaged(NamedTuple):
    """A file for a case.

    Attributes:
        name: of the file.
        content: its bytes.
        changed: whether only bytes were damaged, so that whatever is read has to be what was saved.
    """

    name: str
    content: bytes
    only_bytes: bool = False


class Kind(Protocol):
    """A kind of input: how its files are damaged, and how the project reads them. Each is a class ``Kind`` in a file of
    kinds/, made with a folder for its good files."""

    def damaged(self, rng: random.Random) -> Damaged:
        """A file for a case. It follows from ``rng``."""

    def read(self, path: Path, only_bytes: bool) -> None:
        """Read the file as the project does.

        Raises:
            UserError, UnreadableImage: a refusal.
            SilentDamage: it was read as something else.
        """

    def is_named(self, path: Path, message: str) -> bool:
        """Whether a refusal names the file."""


class Outcome(NamedTuple):
    """What became of a case: HANDLED, REFUSED or FINDING, and for a finding what it was."""

    result: str
    reason: str = ""


def run(kind: Kind, case: Damaged) -> Outcome:
    """Read a case's file in a process of its own."""
    folder = tempfile.mkdtemp(prefix="case_")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_case(kind, case, Path(folder), writer)
    os.close(writer)
    try:
        return _wait(child, reader)
    finally:
        os.close(reader)
        shutil.rmtree(folder, ignore_errors=True)


def _be_the_case(kind: Kind, case: Damaged, folder: Path, writer: int) -> None:
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        # More than MOST_MEMORY, so that a library's own MemoryError does not look like a refusal.
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MOST_MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        outcome = _outcome(kind, case, folder)
        os.write(writer, json.dumps(outcome).encode())
    finally:
        os._exit(0)


def _outcome(kind: Kind, case: Damaged, folder: Path) -> Outcome:
    path = folder / case.name
    path.write_bytes(case.content)
    try:
        kind.read(path, case.only_bytes)
    except (UserError, UnreadableImage) as error:
        message = str(error)
        if not kind.is_named(path, message):
            return Outcome(FINDING, f"a refusal that does not name the file: {message:.300}")
        if len(message) > LONGEST_MESSAGE:
            return Outcome(FINDING, f"a refusal of {len(message)} characters: {message:.300}")
        return Outcome(REFUSED)
    except SilentDamage as error:
        return Outcome(FINDING, f"silent damage: {error}")
    except BaseException as error:  # pyo3's panics are no Exception
        frames = traceback.extract_tb(sys.exc_info()[2])
        where = next((f for f in reversed(frames) if "uniperceiver_v2" in f.filename), frames[-1])
        place = f"{Path(where.filename).name}:{where.lineno}"
        return Outcome(FINDING, f"{type(error).__name__} at {place}: {error!s:.200}")
    return Outcome(HANDLED)


def _wait(child: int, reader: int) -> Outcome:
    deadline = time.monotonic() + MOST_WAITING
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return Outcome(FINDING, f"more than {MOST_WAITING} s of waiting")
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return Outcome(FINDING, f"more than {MOST_SECONDS} s")
        return Outcome(FINDING, f"signal {signal.Signals(number).name}")
    if usage.ru_maxrss * 1024 > MOST_MEMORY:
        return Outcome(FINDING, f"{usage.ru_maxrss // 1024} MiB of memory")
    with contextlib.suppress(ValueError):
        return Outcome(*json.loads(os.read(reader, 2**16)))
    return Outcome(FINDING, f"no outcome, exit status {status}")
