"""A soak: training and the web page run for hours, and their memory, file handles and threads stay level.

    python tests/faults/soak.py --hours 3 --output output/soak

The training is the tiny configuration's on real data, with checkpoints, pictures and evaluations. The page answers two
visitors at a time, who ask every tab, leave, come back, and send broken files. A soak that was stopped goes on with a
new part: the training resumes, and the rows of all parts count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs" / "digit_scenes" / "uniperceiver_v2_tiny.yaml"
TRAIN = REPOSITORY / "projects" / "uniperceiver_v2" / "train_net.py"
TRAINING, PAGE = "training", "web page"

MOST_GROWTH = 0.02  # of the memory, in an hour
BETWEEN_ROWS = 30.0  # seconds
WINDOW = 30  # rows: a quarter of an hour, which is longer than a program's way from one evaluation to the next
SHORTEST_PART = 4 * WINDOW  # rows; a shorter part says nothing about a slope
VISITORS, QUESTIONS, PAUSE = 2, 25, 1.0  # visitors at a time, what each asks, seconds between two questions


class Row(NamedTuple):
    """What a program and the processes below it hold at a moment.

    Attributes:
        part: the number of the part of the soak.
        program: TRAINING or PAGE.
        seconds: since the part began.
        memory: MiB of their own, which excludes libraries and other mapped files.
        handles: open files, sockets and pipes.
        threads: in all processes.
        done: iterations or answered questions since the part began.
    """

    part: int
    program: str
    seconds: float
    memory: float
    handles: int
    threads: int
    done: int


class Verdict(NamedTuple):
    """Of a program. ``least`` and ``most`` memory grow by MiB an hour; numbers of handles and threads are (before, at
    the end)."""

    least: float
    most: float
    handles: tuple[float, float]
    threads: tuple[float, float]
    level: bool


def judge(rows: list[Row]) -> Verdict:
    """The verdict on a program's rows.

    Memory rises in an evaluation and falls after it, so the least and the most of a window are compared with those of
    other windows. Their growth is the median slope between any two windows of the second half of a part. Handles and
    threads are the medians of a part's second and last quarter, added up over the parts.
    """
    parts = [part for part in _parts(rows) if len(part) >= SHORTEST_PART]
    if not parts:
        raise SystemExit(f"error: no part has {SHORTEST_PART} rows, which a verdict takes")
    windows = [_windows(part[len(part) // 2 :]) for part in parts]
    least, most = (_growth(windows, extreme) for extreme in (min, max))
    held = median(row.memory for part in windows for window in part for row in window)
    handles, threads = (
        tuple(
            sum(
                median(getattr(row, name) for row in part[begin * len(part) // 4 :][: len(part) // 4]) for part in parts
            )
            for begin in (1, 3)
        )
        for name in ("handles", "threads")
    )
    level = max(least, most) <= MOST_GROWTH * held and all(end <= before for before, end in (handles, threads))
    return Verdict(least, most, handles, threads, level)


def _windows(rows: list[Row]) -> list[list[Row]]:
    """Whole windows, the last one up to the end."""
    return [rows[end - WINDOW : end] for end in range(len(rows), WINDOW - 1, -WINDOW)][::-1]


def _growth(windows: list[list[list[Row]]], extreme: Callable[[Iterable[float]], float]) -> float:
    """In MiB an hour, of the least or the most memory of the windows of each part."""
    slopes = []
    for part in windows:
        points = [(window[0].seconds, extreme(row.memory for row in window)) for window in part]
        slopes += [(memory - before) / (at - since) for (since, before), (at, memory) in combinations(points, 2)]
    return 3600 * median(slopes)


def _parts(rows: list[Row]) -> list[list[Row]]:
    return [[row for row in rows if row.part == part] for part in sorted({row.part for row in rows})]


def table(rows: list[Row]) -> tuple[str, bool]:
    """A table for people, and whether all programs are level."""
    lines = [
        "| program | hours | parts | done | memory, MiB | least / most grow, MiB/h | handles | threads | verdict |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    level = True
    for program, unit in ((TRAINING, "iterations"), (PAGE, "answers")):
        if not (its := [row for row in rows if row.program == program]):
            continue
        verdict, ends = judge(its), [part[-1] for part in _parts(its)]
        level = level and verdict.level
        values = (
            program,
            f"{sum(end.seconds for end in ends) / 3600:.2f}",
            len(ends),
            f"{sum(end.done for end in ends):,} {unit}",
            f"{median(row.memory for row in its[len(its) // 2 :]):.0f}",
            f"{verdict.least:+.1f} / {verdict.most:+.1f}",
            "{:g} → {:g}".format(*verdict.handles),
            "{:g} → {:g}".format(*verdict.threads),
            "level" if verdict.level else "NOT LEVEL",
        )
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines), level


def held_by(pid: int) -> tuple[float, int, int]:
    """Memory in MiB, handles and threads of a process and of all below it."""
    memory, handles, threads = 0.0, 0, 0
    for each in _family(pid):
        try:
            # What a process shares with the one that it was forked from counts once.
            pages = re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB", Path(f"/proc/{each}/smaps_rollup").read_text(), re.M)
            handles += len(os.listdir(f"/proc/{each}/fd"))
            threads += len(os.listdir(f"/proc/{each}/task"))
        except OSError:  # it has just ended
            continue
        memory += sum(map(int, pages)) / 1024
    return memory, handles, threads


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:
            continue
        for child in pids:
            yield from _family(int(child))


class Training:
    """train_net.py, which goes on from where it was."""

    name = TRAINING
    failures = ()  # each ends it

    def __init__(self, output: Path):
        self._metrics = output / "training" / "metrics.json"
        options = {
            "MODEL.DEVICE": "cpu",
            "DATALOADER.NUM_WORKERS": 1,
            "SOLVER.MAX_ITER": 10**6,
            "SOLVER.CHECKPOINT_PERIOD": 100,
            "SOLVER.CHECKPOINTS_KEPT": 2,
            "TEST.EVAL_PERIOD": 300,
            "VIS_PERIOD": 300,
            "OUTPUT_DIR": self._metrics.parent,
        }
        arguments = [str(part) for pair in options.items() for part in pair]
        self.process = _start(output, [str(TRAIN), "--config-file", str(CONFIG), "--resume", *arguments])
        self._first = self._iteration()

    def done(self) -> int:
        return max(self._iteration() - self._first, 0)

    def _iteration(self) -> int:
        """Of the last whole line of metrics.json."""
        if not self._metrics.exists():
            return 0
        with open(self._metrics, "rb") as file:
            file.seek(max(self._metrics.stat().st_size - 2**16, 0))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1])["iteration"] if lines else 0

    def stop(self) -> int:
        """It finishes its iteration or evaluation, and writes a checkpoint."""
        return _stop(self.process, signal.SIGTERM, (143,))


class WebPage:
    """The page's program, and its visitors."""

    name = PAGE

    def __init__(self, output: Path, pictures: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = {"--examples": pictures, "--search": pictures, "--port": port, "--time-limit": 600}
        arguments = [str(part) for pair in options.items() for part in pair]
        self.process = _start(output, ["-m", "uniperceiver_v2.web", *arguments])
        self._address, self._pictures = f"http://127.0.0.1:{port}/", sorted(pictures.glob("*.png"))
        self._broken = output / "broken.png"
        self._broken.write_bytes(self._pictures[0].read_bytes()[:500])
        self._answers, self.failures, self._over = [0] * VISITORS, [], threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(n,), daemon=True) for n in range(VISITORS)]
        for thread in self._threads:
            thread.start()

    def done(self) -> int:
        return sum(self._answers)

    def stop(self) -> int:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        return _stop(self.process, signal.SIGINT, (0, 130, -signal.SIGINT))

    def _visit(self, number: int) -> None:
        """One visitor after the other, in a thread."""
        chance = random.Random(number)
        while not self._over.is_set():
            try:
                for _ in self._questions(chance):
                    self._answers[number] += 1
                    if self._over.wait(PAUSE):
                        return
            except Exception as error:
                if not self._over.is_set() and self._answers[number]:  # before the first answer the program starts
                    self.failures.append(repr(error))
                self._over.wait(5)

    def _questions(self, chance: random.Random) -> Iterator[None]:
        from gradio_client import Client, handle_file
        from gradio_client.exceptions import AppError

        client = Client(self._address, verbose=False, download_files=False, analytics_enabled=False)
        try:
            for _ in range(QUESTIONS):
                path = chance.choice(self._pictures)
                picture = handle_file(path)
                question, *inputs = chance.choice(
                    (
                        ("/detect", picture, "", 0.3),
                        ("/detect", picture, f"{chance.randrange(100)}, a red seven, anything else", 0.3),
                        ("/ground", picture, f"the digit {chance.randrange(10)}, a blue two", 0.3),
                        ("/classify", picture, ""),
                        ("/caption", picture),
                        ("/search_by_text", f"a red {chance.randrange(1000)}"),
                        ("/search_by_picture", picture),
                        ("/detect", handle_file(self._broken), "", 0.3),
                    )
                )
                try:
                    client.predict(*inputs, api_name=question)
                except AppError as error:
                    if "broken" not in str(error).lower():
                        raise
                yield
        finally:
            client.close()


def _start(output: Path, arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with open(output / "programs.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=REPOSITORY
        )


def _stop(process: subprocess.Popen, number: int, good: tuple[int, ...]) -> int:
    """0 if it ends as it should after a signal."""
    process.send_signal(number)
    try:
        code = process.wait(900)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return 0 if code in good else code


def soak(hours: float, programs: list[Training | WebPage], part: int) -> Iterator[Row]:
    """A part of the soak, of programs that have just started.

    Raises:
        SystemExit: a program ended, or a question was not answered.
    """
    began = time.monotonic()
    try:
        while (seconds := time.monotonic() - began) < hours * 3600:
            time.sleep(min(BETWEEN_ROWS, hours * 3600 - seconds))
            for program in programs:
                if program.process.poll() is not None:
                    raise SystemExit(f"error: the {program.name} ended, exit code {program.process.poll()}")
                row = (*held_by(program.process.pid), program.done())
                yield Row(part, program.name, round(time.monotonic() - began, 1), *row)
    finally:
        codes = {program.name: program.stop() for program in programs}
    if any(codes.values()):
        raise SystemExit(f"error: exit codes {codes} after the signal to end")
    if failures := [failure for program in programs for failure in program.failures]:
        raise SystemExit(f"error: {len(failures)} questions without an answer, such as {failures[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=3.0, help="of all parts together")
    parser.add_argument("--output", type=Path, default=Path("output/soak"))
    parser.add_argument("--only", choices=(TRAINING, PAGE), help="one of the two programs in this part")
    args = parser.parse_args()
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT):  # which a shell lets its background ignore, and all that it starts
        signal.signal(number, signal.default_int_handler)
    log = output / "rows.jsonl"
    rows = [Row(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []
    part = max((row.part for row in rows), default=-1) + 1
    left = args.hours - sum(its[-1].seconds for its in _parts(rows)) / 3600
    data = Path(os.environ.get("DETECTRON2_DATASETS", REPOSITORY / "datasets")) / "digit_scenes" / "images" / "test"
    if left > 0:
        programs = [] if args.only == PAGE else [Training(output)]
        programs += [] if args.only == TRAINING else [WebPage(output, data)]
        try:
            with open(log, "a") as file:
                for row in soak(left, programs, part):
                    rows.append(row)
                    file.write(json.dumps(_written(row)) + "\n")
                    file.flush()
        except KeyboardInterrupt:
            print("stopped; the same command goes on")
    text, level = table(rows)
    print(text, flush=True)
    os._exit(not level)  # a visitor whose answer never came would hold the program back


def _written(row: Row) -> dict[str, Any]:
    return {**row._asdict(), "memory": round(row.memory, 2)}


if __name__ == "__main__":
    main()
