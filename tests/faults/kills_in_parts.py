"""A campaign of kills of runs whose processes write checkpoints in parts in the background. No checkpoint may be lost.

    python tests/faults/kills_in_parts.py --kills 40 --output output/kills_in_parts

All processes of a run are killed together, most of them while they write. After each kill the last checkpoint has to
be whole, and not older than before. Every other run goes on with two processes, and has to end in the bytes of a run
that nobody killed. The others go on with another number of processes each time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, NamedTuple

from kills import AtomicCheckpointer, asked, differences, fork, metrics, prepared, train_net
from small_run import SMALL, content

ITERATIONS, PERIOD = 12, 3
OPTIONS = {
    "SOLVER.MAX_ITER": ITERATIONS,
    "SOLVER.CHECKPOINT_PERIOD": PERIOD,
    "SOLVER.SHARDING": "full",
    "SOLVER.CHECKPOINT_FORMAT": "parts",
    "SOLVER.CHECKPOINTS_IN_BACKGROUND": True,
    "PROCESSES.SILENCE": 60,
    **{f"TASKS.{task}.IMS_PER_BATCH": 6 for task in (*SMALL["TASKS"], "scene_phrases")},
}
CHECKPOINTS = [f"model_{last:07d}" for last in range(PERIOD - 1, ITERATIONS, PERIOD)] + ["model_final"]
RANKS = (1, 2, 3)
AIMED = 3 / 4  # of the kills strike after a checkpoint's writing has begun


class Moment(NamedTuple):
    """When to kill: so many seconds after the start, or after the first process has begun to write so many times."""

    seconds: float
    writings: int = 0


class Durations(NamedTuple):
    """Seconds of the run that nobody killed, and of its longest writing of a checkpoint."""

    run: float
    writing: float


class Course:
    """A run in ``folder``, in processes that may be killed."""

    def __init__(self, config: Path, folder: Path):
        options = [str(part) for pair in OPTIONS.items() for part in pair]
        self.folder = folder
        self._arguments = ["train_net.py", "--config-file", str(config), "--resume", *options]
        self._arguments += ["OUTPUT_DIR", str(folder)]
        # Of the first process: how often it has begun to write, whether it writes, the seconds of its longest writing.
        self._writes = RawArray("d", 3)

    def part(self, ranks: int, moment: Moment | None = None) -> str | None:
        """Start or resume the run. Returns where it was killed, "writing" or "elsewhere"; None if it lived to the end.

        Raises:
            SystemExit: a process ended with an error.
        """
        self._writes[:] = (0, 0, 0)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        logs = [Path(f"{self.folder}.{rank}.log") for rank in range(ranks)]
        alive = {fork(lambda rank=rank: self._be(rank, ranks, port), log): log for rank, log in enumerate(logs)}
        return self._watch(alive, moment)

    def _be(self, rank: int, ranks: int, port: int) -> int:
        """In the forked process."""
        if ranks > 1:
            told = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in told.items()})
        sys.argv = self._arguments
        train_net.write_page = lambda folder: None  # it comes after all that is compared
        if rank == 0:
            self._mark_writing()
        return train_net.run()

    def _mark_writing(self) -> None:
        write = AtomicCheckpointer._write_checkpoint

        def marked(*args: Any) -> None:
            began, self._writes[0], self._writes[1] = time.monotonic(), self._writes[0] + 1, True
            write(*args)
            self._writes[1:] = (False, max(self._writes[2], time.monotonic() - began))

        AtomicCheckpointer._write_checkpoint = marked

    def _watch(self, alive: dict[int, Path], moment: Moment | None) -> str | None:
        due = time.monotonic() + moment.seconds if moment and not moment.writings else None
        while alive:
            if moment and due is None and self._writes[0] >= moment.writings:
                due = time.monotonic() + moment.seconds
            if due is not None and time.monotonic() >= due:
                return self._kill(alive)
            for pid in list(alive):
                if (ended := os.waitpid(pid, os.WNOHANG)) != (0, 0):
                    self._require(os.waitstatus_to_exitcode(ended[1]) == 0, f"a process failed: {alive.pop(pid)}")
            time.sleep(0.0005)
        return None

    def _kill(self, alive: Mapping[int, Path]) -> str:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        in_writing = bool(self._writes[1])
        for pid in alive:
            os.waitpid(pid, 0)
        return "writing" if in_writing else "elsewhere"

    @property
    def longest_writing(self) -> float:
        """Seconds, of the part before."""
        return self._writes[2]

    def last(self) -> int:
        """The iteration of the last checkpoint, after it was read. -1 before the first one."""
        file = self.folder / "last_checkpoint"
        return content(self.folder, file.read_text().removesuffix(".pth"))["iteration"] if file.exists() else -1

    def check_end(self) -> None:
        """All checkpoints can be read, and nothing else is left."""
        names = sorted(path.name.removesuffix(".pth") for path in self.folder.glob("model_*"))
        self._require(names == CHECKPOINTS, f"checkpoints are lost, there are only {names}")
        for name in names:
            content(self.folder, name)
        left = [path.name for path in self.folder.glob(".*")]
        self._require(not left, f"left in {self.folder}: {left}")
        steps = [row["iteration"] for row in metrics(self.folder)]
        self._require(steps == sorted(set(steps)), f"metrics of iterations {steps}")

    def _require(self, right: bool, message: str) -> None:
        if not right:
            raise SystemExit(f"error: {message}")


def campaign(kills: int, output: Path, seed: int) -> list[dict[str, Any]]:
    """Kill until so many kills have struck and their runs are at their ends. Returns a row for each run.

    Raises:
        SystemExit: a run ended with an error or in other bytes, or a checkpoint was lost.
    """
    config = prepared(output)
    spared = Course(config, output / "spared")
    shutil.rmtree(spared.folder, ignore_errors=True)
    began = time.monotonic()
    spared.part(2)
    usual = Durations(time.monotonic() - began, spared.longest_writing)
    rows: list[dict[str, Any]] = []
    while sum(len(row["killed"]) for row in rows) < kills:
        chance, same = random.Random(f"{seed}/{len(rows)}"), len(rows) % 2 == 0
        course = Course(config, output / "killed")
        shutil.rmtree(course.folder, ignore_errors=True)
        rows.append(_to_the_end(course, chance, same, usual))
        unequal = differences(course.folder, spared.folder) if same else []
        if unequal or (same and metrics(course.folder) != metrics(spared.folder)):
            raise SystemExit(f"error: run {len(rows)} ended with other metrics or another {', '.join(unequal[:5])}")
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _to_the_end(course: Course, chance: random.Random, same: bool, usual: Durations) -> dict[str, Any]:
    """Kill and resume until a part lives to the end. Returns the numbers of processes and the kills."""
    row: dict[str, Any] = {"ranks": [2], "killed": []}
    last = -1
    while killed := course.part(row["ranks"][-1], _moment(chance, usual)):
        row["killed"].append(killed)
        before, last = last, course.last()
        if last < before:
            raise SystemExit(f"error: the last checkpoint is that of iteration {last}, and was that of {before}")
        row["ranks"].append(2 if same else chance.choice([ranks for ranks in RANKS if ranks != row["ranks"][-1]]))
    course.check_end()
    return row


def _moment(chance: random.Random, usual: Durations) -> Moment:
    if chance.random() < AIMED:
        return Moment(chance.uniform(0, 1.2 * usual.writing), chance.choice((1, 1, 2)))
    return Moment(chance.uniform(0, usual.run))


def main() -> None:
    args = asked(__doc__, kills=40, output="output/kills_in_parts")
    try:
        rows = campaign(args.kills, args.output.resolve(), args.seed)
    finally:
        shutil.rmtree(os.environ["DETECTRON2_DATASETS"])
    killed = [where for row in rows for where in row["killed"]]
    changes = sum(before != after for row in rows for before, after in zip(row["ranks"], row["ranks"][1:]))
    print(
        f"{len(killed)} kills of {len(rows)} runs in parts, {killed.count('writing')} of them while a checkpoint was "
        f"written; {changes} resumptions with another number of processes; 0 checkpoints lost"
    )


if __name__ == "__main__":
    main()
