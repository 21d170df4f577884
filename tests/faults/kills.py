"""A campaign of kills: a small run is killed at random moments, resumed and killed again. Each ends in the same bytes.

    python tests/faults/kills.py --kills 1000 --output output/kills

A course is a run that is resumed after each kill until one part lives to the end. Then its weights, moments and metrics
have to equal those of a run that nobody killed. The processes are forked from one that has imported everything, so a
kill costs what the run had done since its last checkpoint. A campaign that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1")
os.environ["DETECTRON2_DATASETS"] = tempfile.mkdtemp(prefix="kills_")  # it is read at the import
sys.path.extend(
    str(Path(__file__).parents[2] / folder) for folder in ("tests/faults", "datasets", "projects/uniperceiver_v2")
)
import torch
from detectron2.engine import default_argument_parser
from prepare_digit_scenes import prepare
from small_run import differences, write_config

import train_net
from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.config import load_config
from uniperceiver_v2.engine import UniPerceiverTrainer, add_process_arguments
from uniperceiver_v2.engine.metrics import reproducible
from uniperceiver_v2.engine.task_trainer import TaskTrainer

del sys.path[-3:]

OPTIONS = {
    "SOLVER.MAX_ITER": 8,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "TEST.EVAL_PERIOD": 4,
    "DATASETS.TEST": ["digit_scenes_test"],
    "VIS_PERIOD": 0,
}
STARTING, TRAINING, EVALUATING, WRITING = range(4)
PHASES = ("start or resumption", "training", "evaluation", "writing of a checkpoint")
AIMED = 1 / 4  # of the kills strike while a checkpoint is written, or just after
LONGEST_WRITING = 0.1  # seconds, a little more than it takes


class Course:
    """A run of the small configuration in ``folder``, in processes that may be killed."""

    def __init__(self, config: Path, folder: Path):
        parser = add_process_arguments(default_argument_parser())
        options = [str(part) for pair in OPTIONS.items() for part in pair]
        self.folder = folder
        self._arguments = parser.parse_args(
            ["--config-file", str(config), "--resume", *options, "OUTPUT_DIR", str(folder)]
        )
        self._phase = mmap.mmap(-1, 1)

    def part(
        self, in_background: bool = False, seconds: float | None = None, in_writing: float | None = None
    ) -> tuple[str | None, float]:
        """Start or resume the run.

        Args:
            in_background: whether checkpoints are written while training goes on.
            seconds: of the processor until it is killed.
            in_writing: seconds from the beginning of a checkpoint's file until it is killed.

        Returns:
            what it did when it was killed, or None if it lived to the end; the processor's seconds that it took.

        Raises:
            SystemExit: it ended with an error.
        """
        self._phase[0] = STARTING
        child = fork(lambda: self._be_the_run(in_background, seconds, in_writing), Path(f"{self.folder}.log"))
        _, status, usage = os.wait4(child, 0)
        code, taken = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if code in (-signal.SIGPROF, -signal.SIGALRM):
            return PHASES[self._phase[0]], taken
        if code:
            raise SystemExit(f"error: a run ended with {code}; {self.folder}.log tells why")
        return None, taken

    def _be_the_run(self, in_background: bool, seconds: float | None, in_writing: float | None) -> None:
        """In the forked process. Both timers' signals end a process as SIGKILL does: nothing catches them."""
        self._arguments.opts += ["SOLVER.CHECKPOINTS_IN_BACKGROUND", str(in_background)]
        train_net.write_page = lambda folder: None  # it comes after all that is compared
        self._mark(TaskTrainer, "run_step", TRAINING)
        self._mark(UniPerceiverTrainer, "evaluate", EVALUATING)
        self._mark(AtomicCheckpointer, "_write", WRITING, in_writing)
        if seconds is not None:
            signal.setitimer(signal.ITIMER_PROF, seconds)
        train_net.main(self._arguments)

    def _mark(self, owner: type, name: str, phase: int, alarm: float | None = None) -> None:
        """Tell the parent's process when a method runs, and set the alarm then."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def marked(*args: Any, **kwargs: Any) -> Any:
            before, self._phase[0] = self._phase[0], phase
            if alarm is not None:
                signal.setitimer(signal.ITIMER_REAL, alarm)
            try:
                return method(*args, **kwargs)
            finally:
                self._phase[0] = before

        setattr(owner, name, marked)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Those of a run that depend on nothing but what it has computed."""
    return [reproducible(json.loads(line)) for line in (folder / "metrics.json").read_text().splitlines()]


def fork(work: Callable[[], int | None], log: Path) -> int:
    """The pid of a process that does the work, writes what it says to a file, and ends with the work's code."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def prepared(output: Path) -> Path:
    """The settings of the runs, after their data is there and what they import is imported."""
    prepare(Path(os.environ["DETECTRON2_DATASETS"]) / "digit_scenes", train_scenes=24, test_scenes=6)
    config = write_config(output)
    UniPerceiverTrainer.build_model(load_config(str(config)))
    return config


def campaign(kills: int, output: Path, seed: int) -> list[dict[str, Any]]:
    """Kill until so many kills have struck, those of earlier calls included. Returns a row for each course.

    Raises:
        SystemExit: a run ended with an error, or in other bytes.
    """
    config = prepared(output)
    log = output / "courses.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    spared = Course(config, output / "spared")
    shutil.rmtree(spared.folder, ignore_errors=True)
    _, whole = spared.part()
    while sum(sum(row["kills"].values()) for row in rows) < kills:
        chance = random.Random(f"{seed}/{len(rows)}")
        course = Course(config, output / "killed")
        shutil.rmtree(course.folder, ignore_errors=True)
        began, phases = time.monotonic(), Counter(dict.fromkeys(PHASES, 0))
        while phase := course.part(**_moment(chance, whole))[0]:
            phases[phase] += 1
        if unequal := differences(course.folder, spared.folder):
            raise SystemExit(f"error: course {len(rows)} ended with another {', '.join(unequal[:5])}")
        if metrics(course.folder) != metrics(spared.folder):
            raise SystemExit(f"error: course {len(rows)} ended with other metrics")
        rows.append({"seed": seed, "kills": dict(phases), "seconds": round(time.monotonic() - began, 1)})
        with open(log, "a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def _moment(chance: random.Random, whole: float) -> dict[str, Any]:
    """Of the next kill: anywhere in a run, or in the writing of a checkpoint, at once or in the background."""
    if chance.random() < AIMED:
        return {"in_background": chance.random() < 0.5, "in_writing": chance.uniform(1e-4, LONGEST_WRITING)}
    return {"in_background": chance.random() < 0.5, "seconds": chance.uniform(1e-3, whole)}


def asked(document: str, kills: int, output: str) -> argparse.Namespace:
    """The arguments of a campaign, with these defaults. Makes its folder."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=output)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = asked(__doc__, kills=1000, output="output/kills")
    torch.set_num_threads(1)
    try:
        rows = campaign(args.kills, args.output.resolve(), args.seed)
    finally:
        shutil.rmtree(os.environ["DETECTRON2_DATASETS"])
    struck = {phase: sum(row["kills"][phase] for row in rows) for phase in PHASES}
    print("| killed during | kills |\n|---|---:|")
    print("\n".join(f"| {phase} | {number:,} |" for phase, number in struck.items()))
    print(
        f"\n{sum(struck.values()):,} kills of {len(rows):,} runs, each with the final bytes of the run that was spared"
    )


if __name__ == "__main__":
    main()
