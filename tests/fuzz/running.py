"""Runs cases in processes of their own, with limits, and says what became of them.

The processes are forked from one that has imported everything, and a few cases share one. So a case costs milliseconds.
"""

import json
import math
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from uniperceiver_v2.errors import LONGEST_MESSAGE, UnreadableImage, UserError

MOST_MEMORY = 2 * 2**30  # bytes that a case may take, with all that is imported
MOST_SECONDS = 10  # of the processor
MOST_WAITING = 120  # seconds in which a case neither runs nor is ready to, as it waits without end
MOST_CHARACTERS = LONGEST_MESSAGE + 100  # with the note of what was left out

_STOPPED = 77  # exit code of a process that has taken too much memory for further cases

HANDLED, REFUSED, FINDING = "handled", "refused", "finding"


class SilentDamage(Exception):
    """A damaged file was read, without a message, as something else than what was saved."""


class Damaged(NamedTuple):
    """A file for a case.

    Attributes:
        name: of the file.
        content: its bytes.
        only_bytes: whether only bytes were damaged, so that whatever is read has to be what was saved.
    """

    name: str
    content: bytes
    only_bytes: bool = False


class Kind(Protocol):
    """A kind of input: how its files are damaged, and how the project reads them. Each is a class ``Kind`` in a file of
    kinds/, made with a folder for its good files.

    Attributes:
        together: the number of cases that may share a process.
    """

    together: int

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


def run(kind: Kind, cases: Sequence[Damaged]) -> list[Outcome]:
    """Read the files of cases, ``kind.together`` in a process. If one ends its process, the others get a new one."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(cases):
        outcomes += _run_some(kind, cases[len(outcomes) :][: kind.together])
    return outcomes


def _run_some(kind: Kind, cases: Sequence[Damaged]) -> list[Outcome]:
    """The outcomes of the first cases, at least one."""
    folder = tempfile.mkdtemp(prefix="case_")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_cases(kind, cases, Path(folder), writer)
    os.close(writer)
    written, waiting, taken = b"", False, -1.0
    try:
        while not waiting:
            ready, _, _ = select.select([reader], [], [], MOST_WAITING)
            if not ready:  # on a busy machine it may wait for nothing but the processor
                before, (taken, is_ready) = taken, _processor_of(child)
                waiting = taken == before and not is_ready
            elif part := os.read(reader, 2**16):
                written += part
            else:
                break
    finally:
        if waiting:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reader)
        shutil.rmtree(folder, ignore_errors=True)
    outcomes = [Outcome(*json.loads(line)) for line in written.splitlines()]
    if len(outcomes) < len(cases) and os.waitstatus_to_exitcode(status) != _STOPPED:
        reason = f"more than {MOST_WAITING} s of waiting" if waiting else _end_of(os.waitstatus_to_exitcode(status))
        outcomes.append(Outcome(FINDING, reason))
    return outcomes


def _processor_of(pid: int) -> tuple[float, bool]:
    """The processor's seconds that a process has taken, and whether one of its threads runs or is ready to."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    ticks = sum(int(number) for fields in stats for number in fields[11:13])
    return ticks / os.sysconf("SC_CLK_TCK"), any(fields[0] == "R" for fields in stats)


def _end_of(code: int) -> str:
    if code >= 0:
        return f"no outcome, exit code {code}"
    return f"more than {MOST_SECONDS} s" if -code == signal.SIGXCPU else f"signal {signal.Signals(-code).name}"


def _be_the_cases(kind: Kind, cases: Sequence[Damaged], folder: Path, writer: int) -> None:
    code = 0
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        # More than MOST_MEMORY, so that a library's own MemoryError does not look like a refusal.
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MOST_MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, case in enumerate(cases):
            place = folder / str(number)
            place.mkdir()
            os.chdir(place)
            resource.setrlimit(
                resource.RLIMIT_CPU, (math.ceil(time.process_time()) + MOST_SECONDS, resource.RLIM_INFINITY)
            )
            outcome = _outcome(kind, case, place)
            if (taken := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) > MOST_MEMORY:
                outcome, code = Outcome(FINDING, f"{taken // 2**20} MiB of memory"), _STOPPED
            os.write(writer, json.dumps(outcome).encode() + b"\n")
            if code:
                break
    finally:
        os._exit(code)


def _outcome(kind: Kind, case: Damaged, folder: Path) -> Outcome:
    path = folder / case.name
    path.write_bytes(case.content)
    try:
        kind.read(path, case.only_bytes)
    except (UserError, UnreadableImage) as error:
        message = str(error)
        if not kind.is_named(path, message):
            return Outcome(FINDING, f"a refusal that does not name the file: {message:.300}")
        if len(message) > MOST_CHARACTERS:
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
