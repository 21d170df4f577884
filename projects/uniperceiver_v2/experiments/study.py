"""The common part of the studies: arms, runs that are kept and resumed, and the table of the finished runs.

A study trains the small generalist in several arms and compares their metrics:

    STUDY = Study(__file__, arms={"whole": Arm(), ...}, tests=..., metrics=..., tables=..., document=...)

    if __name__ == "__main__":
        STUDY.main()

All arms run with one seed before the next seed begins. So an interrupted study has complete tables for fewer seeds.
Finished runs are not repeated, and interrupted runs continue from their last checkpoint. Several processes of a study
divide the runs among them. At the end, the table of the finished runs is written between two marks in the study's
document. With --jobs 0 this is all that is done.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.files import TINY_CONFIG, write_atomically

CONFIG = TINY_CONFIG
REPORT = "run.json"  # in the folder of a finished run: its results, its date and its duration


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """A context that tells whether this process may do the run in a folder. The claim ends with the context or the
    process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def keep_report(folder: Path, report: dict[str, Any]) -> None:
    """Marks the run in ``folder`` as finished today, and writes its report."""
    text = json.dumps({**report, "date": time.strftime("%Y-%m-%d")}, indent=1)
    write_atomically(str(folder / REPORT), lambda file: file.write(text.encode()))


def report_of(folder: Path) -> dict[str, Any] | None:
    """The report of the run in ``folder``, or None if it is not finished."""
    path = folder / REPORT
    return json.loads(path.read_text()) if path.exists() else None


def spread_of(values: Sequence[float]) -> float:
    """The sample's standard deviation. It is 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float]) -> str:
    """A cell of a table: the mean, and for several values ± their spread."""
    spread = f" ± {spread_of(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else "-"


def marks_of(program: str) -> tuple[str, str]:
    """The lines before and after the table that a program of this folder writes into a document."""
    return f"<!-- table: written by experiments/{program}.py -->\n", "<!-- end of table -->\n"


def write_between_marks(document: Path, program: str, table: str) -> None:
    """Replace the table that a program has written into a document."""
    first, last = marks_of(program)
    before, rest = document.read_text().split(first)
    text = before + first + table + last + rest.split(last, 1)[1]
    write_atomically(str(document), lambda file: file.write(text.encode()))


def settings_of(pairs: dict[str, Any]) -> list[str]:
    """KEY VALUE pairs in the form that ``load_config`` takes."""
    return [str(text) for pair in pairs.items() for text in pair]


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        tasks: the tasks that are trained and tested. Empty means all tasks of the study.
        settings: KEY VALUE pairs that override the configuration.
        replaced: a context that replaces parts of the code during training and testing.
    """

    tasks: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    replaced: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


@dataclass
class Study:
    """Arms of training and the tables that compare them.

    Attributes:
        program: the study's file. A run executes it in a separate process.
        arms: {name: arm}.
        tests: {task: test dataset}.
        metrics: {column of the table: (task, kind of result, key)}.
        tables: {heading: {row: the arms that provide the row's metrics}}.
        document: the file with the table between its marks.
        first_column: the heading of the column of rows.
        prefix: put before the names of the training datasets, to train on another tree of data.
        lengths: (arm, configuration of all tasks, number of iterations on the command line) -> the settings that depend
            on the arm's length. By default every arm has this number of iterations.
        seeds: the number of seeds, if the command line does not give one.
        output: the folder of the runs.
    """

    program: str
    arms: dict[str, Arm]
    tests: dict[str, str]
    metrics: dict[str, tuple[str, str, str]]
    tables: dict[str, dict[str, tuple[str, ...]]]
    document: Path
    first_column: str = ""
    prefix: str = ""
    lengths: Callable[[Arm, CfgNode, int], dict[str, Any]] | None = None
    seeds: int = 1
    output: Path = field(init=False)

    def __post_init__(self) -> None:
        self.output = Path("output") / self.name

    @property
    def name(self) -> str:
        return Path(self.program).stem

    def folder_of(self, name: str, seed: int, iterations: int) -> Path:
        return self.output / f"{name.replace(' ', '_')}_{iterations}_{seed}"

    def tasks_of(self, name: str) -> tuple[str, ...]:
        return self.arms[name].tasks or tuple(self.tests)

    def configuration(self, name: str, seed: int, iterations: int) -> CfgNode:
        """The settings of an arm's run."""
        arm, whole = self.arms[name], load_config(str(CONFIG))
        lengths = {"SOLVER.MAX_ITER": iterations}
        if self.lengths is not None:
            lengths = self.lengths(arm, whole, iterations)
        shortened = lengths["SOLVER.MAX_ITER"] / whole.SOLVER.MAX_ITER
        settings = {
            "SEED": seed,
            "TASKS.NAMES": list(self.tasks_of(name)),
            **self._training_data(whole),
            "DATASETS.TEST": (),
            "TASKS.scene_pairs.RERANK": 0,  # retrieval by itself, also in arms without captioning
            "SOLVER.STEPS": tuple(round(step * shortened) for step in whole.SOLVER.STEPS),
            "SOLVER.CHECKPOINT_PERIOD": 200,
            "VIS_PERIOD": 0,
            "OUTPUT_DIR": self.folder_of(name, seed, iterations),
            **lengths,
            **arm.settings,
        }
        return load_config(str(CONFIG), settings_of(settings))

    def _training_data(self, whole: CfgNode) -> dict[str, list[str]]:
        names = {task: [self.prefix + name for name in whole.TASKS[task].DATASETS] for task in self.tests}
        return {f"TASKS.{task}.DATASETS": datasets for task, datasets in names.items()}

    def train(self, name: str, seed: int, iterations: int) -> None:
        """Do a run, unless it is finished or another process does it."""
        folder = self.folder_of(name, seed, iterations)
        with claimed(folder) as ours:
            if not ours or report_of(folder) is not None:
                return
            start = time.perf_counter()
            cfg = self.configuration(name, seed, iterations)
            default_setup(cfg, argparse.Namespace(config_file="", eval_only=False))
            with self.arms[name].replaced():
                trainer = UniPerceiverTrainer(cfg)
                trainer.resume_or_load(resume=True)
                trainer.train()
                with trainer.averaged_weights():
                    results = self._test(trainer, self.tasks_of(name))
            keep_report(folder, {"minutes": (time.perf_counter() - start) / 60, "results": results})
            for checkpoint in folder.glob("model_*.pth"):
                checkpoint.unlink()

    def _test(self, trainer: UniPerceiverTrainer, tasks: tuple[str, ...]) -> dict[str, Any]:
        """Results by dataset. Batch sizes are those of the unchanged configuration."""
        names = tuple(self.tests[task] for task in tasks)
        settings = {"DATASETS.TEST": names, "OUTPUT_DIR": trainer.cfg.OUTPUT_DIR}
        cfg = load_config(str(CONFIG), settings_of(settings), training=False)
        return trainer.test(cfg, trainer.model, [trainer.build_evaluator(cfg, name) for name in names])

    def train_in_process(self, name: str, seed: int, iterations: int, threads: int) -> bool:
        """Do a run in a separate process, with its own log, threads and memory. Returns whether it succeeded."""
        command = [sys.executable, self.program, "--iterations", str(iterations), "--output", str(self.output)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        return subprocess.call([*command, "--run", name, str(seed)], env=environment, stdout=subprocess.DEVNULL) == 0

    def reports(self, arms: Sequence[str], seeds: int, iterations: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The seed and the report of each finished run of some arms."""
        for name in arms:
            for seed in range(seeds):
                report = report_of(self.folder_of(name, seed, iterations))
                if report is not None:
                    yield seed, report

    def values_of(self, arms: Sequence[str], metric: str, seeds: int, iterations: int) -> list[float]:
        """The values of a metric, one for each seed that has it, from those of the arms that were tested for it."""
        task, kind, key = self.metrics[metric]
        tested = [name for name in arms if task in self.tasks_of(name)]
        runs = [run["results"][self.tests[task]][kind] for _, run in self.reports(tested, seeds, iterations)]
        return [results[key] for results in runs if key in results]

    def markdown(self, seeds: int, iterations: int) -> str:
        """The table of the finished runs, and a sentence about their number, settings and dates."""
        lines = [f"| {self.first_column} | seeds | {' | '.join(self.metrics)} |"]
        lines.append("|---|---:|" + "---:|" * len(self.metrics))
        for heading, rows in self.tables.items():
            if heading:
                lines.append(f"| **{heading}** |" + " |" * (1 + len(self.metrics)))
            for row, arms in rows.items():
                values = [self.values_of(arms, metric, seeds, iterations) for metric in self.metrics]
                counts = sorted({len(of_metric) for of_metric in values} - {0})
                cells = map(mean_and_spread, values)
                lines.append(f"| {row} | {'/'.join(map(str, counts))} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n\n" + self._provenance(seeds, iterations)

    def _provenance(self, seeds: int, iterations: int) -> str:
        finished = list(self.reports(list(self.arms), seeds, iterations))
        if not finished:
            return "No run is finished.\n"
        used, runs = sorted({seed for seed, _ in finished}), [report for _, report in finished]
        dates = sorted({run["date"] for run in runs})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        hours = sum(run["minutes"] for run in runs) / 60
        return (
            f"{len(runs)} runs with --iterations {iterations} and seed {', '.join(map(str, used))}, finished {when}; "
            f"{hours:.1f} hours together.\n"
        )

    def write_document(self, seeds: int, iterations: int) -> None:
        """Write the table between its marks in the document, and print it."""
        table = self.markdown(seeds, iterations)
        write_between_marks(self.document, self.name, table)
        print(table)

    def main(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The program: do the runs and write the table. If runs fail, the last line names them and the exit code is 1.

        Args:
            arguments: the arguments of the program, by default those of the command line.

        Returns:
            the options.
        """
        args = self._options(arguments)
        self.output = args.output
        if args.run:
            self.train(args.run[0], int(args.run[1]), args.iterations)
            return args
        if args.jobs:
            threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // args.jobs))
            runs = [(name, seed) for seed in range(args.seeds) for name in args.only]
            with ThreadPoolExecutor(args.jobs) as pool:
                done = list(pool.map(lambda run: self.train_in_process(*run, args.iterations, threads), runs))
        self.write_document(args.seeds, args.iterations)
        if args.jobs and not all(done):
            sys.exit(f"failed: {', '.join(f'{name} {seed}' for (name, seed), well in zip(runs, done) if not well)}")
        return args

    def _options(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=f"{self.name}: trains, tests and writes {self.document.name}")
        parser.add_argument("--iterations", type=int, default=700, help="of a run of all tasks")
        parser.add_argument("--seeds", type=int, default=self.seeds)
        parser.add_argument("--only", nargs="+", choices=list(self.arms), default=list(self.arms), metavar="ARM")
        parser.add_argument("--jobs", type=int, default=2, help="runs at a time; 0 only writes the document")
        parser.add_argument("--output", type=Path, default=self.output, help="folder of the runs")
        parser.add_argument("--run", nargs=2, metavar=("ARM", "SEED"), help="this run alone, in this process")
        return parser.parse_args(arguments)
