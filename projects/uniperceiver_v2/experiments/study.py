"""The common part of the studies: arms, runs that are kept and resumed, and the table of the finished runs.

A study trains the small generalist in several arms and compares their metrics:

    STUDY = Study(__file__, arms={"whole": Arm(), ...}, tests=..., metrics=..., tables=..., document=...)

    if __name__ == "__main__":
        STUDY.main()

All arms run with one seed before the next seed begins. So an interrupted study has complete tables for fewer seeds.
Finished runs are not repeated, and interrupted runs continue from their last checkpoint. Several processes of a study
divide the runs among them. Reports and logs of finished runs are files to commit (run_records.py), so that any machine
goes on where the last one was. At the end, the table of the finished runs is written between two marks in the study's
document. With --jobs 0 this is all that is done, and no data is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_setup
from run_records import (
    claimed,
    course,
    keep_log,
    keep_report,
    minutes_of,
    records_of,
    report_of,
    rows_of,
    split_of_data,
)
from study_tables import HELP_OF_OUTPUT, Plateau, StudyTables, document_of, write_between_marks

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import flat_settings, load_config
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.files import TINY_CONFIG

CONFIG = TINY_CONFIG


def settings_of(pairs: dict[str, Any]) -> list[str]:
    """KEY VALUE pairs in the form that ``load_config`` takes."""
    return [str(text) for pair in pairs.items() for text in pair]


def refuse_other_settings(folder: Path, cfg: CfgNode, but: Collection[str]) -> None:
    """A run that was begun with other settings cannot go on, except for those that may change.

    Raises:
        SystemExit: names the folder and a setting.
    """
    begun = folder / "config.yaml"
    if not begun.exists():
        return
    before, now = (flat_settings(yaml.safe_load(text)) for text in (begun.read_text(), cfg.dump()))
    changed = sorted(key for key in (before.keys() | now.keys()) - set(but) if before.get(key) != now.get(key))
    if changed:
        raise SystemExit(f"error: {folder} was begun with another {changed[0]}; remove the folder to begin anew")


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        tasks: the tasks that are trained and tested. Empty means all tasks of the study.
        settings: KEY VALUE pairs that override the configuration.
        replaced: a context that replaces parts of the code during training and testing.
        levels: the accuracy on the plateau of tasks for which it is another than the study's.
        chooses: whether it is there to choose a setting. Such arms run on the development tree alone.
    """

    tasks: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    replaced: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    levels: dict[str, float] = field(default_factory=dict)
    chooses: bool = False


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
        seeds, iterations: the number of seeds and that of iterations, if the command line does not give them.
        split: "test" or "development", what the tests are made of. By default the prepared data says it.
        reference: the arm with which each row is compared by paired tests, if any.
        comparisons: {row: (arms, arms with which they are compared)}, further paired tests.
        plateaus: {task: the plateau that it should have left at the end}, for tasks that are judged.
        prepare: makes data known that the runs need, called before them.
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
    iterations: int = 700
    split: str = ""
    reference: str = ""
    comparisons: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    plateaus: dict[str, Plateau] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None
    output: Path = field(init=False)
    _started: list[subprocess.Popen] = field(init=False, default_factory=list)
    may_change: ClassVar[tuple[str, ...]] = ()  # settings of a run that goes on

    def __post_init__(self) -> None:
        self.output = records_of(self.program)

    @property
    def name(self) -> str:
        return Path(self.program).stem

    def folder_of(self, name: str, seed: int, iterations: int, split: str = "") -> Path:
        """The folder of a run, by default of one with the prepared data."""
        return self.output / (split or self.split_of_tests()) / f"{name.replace(' ', '_')}_{iterations}_{seed}"

    def split_of_tests(self) -> str:
        return self.split or split_of_data()

    def _is_development(self) -> bool:
        return self.split_of_tests() == "development"

    def tasks_of(self, name: str) -> tuple[str, ...]:
        return self.arms[name].tasks or tuple(self.tests)

    def plateau(self, name: str, task: str) -> Plateau:
        """The plateau of a task in an arm."""
        usual = self.plateaus[task]
        return Plateau(usual.scalar, self.arms[name].levels.get(task, usual.level))

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
            "TASKS.scene_pairs.RERANK": 0,  # each task by itself, also in arms without the other
            "TASKS.scene_captions.RERANK": False,
            "SOLVER.SAMPLING": "unmixed",  # the paper's
            "SOLVER.STEPS": tuple(round(step * shortened) for step in whole.SOLVER.STEPS),
            "SOLVER.CHECKPOINT_PERIOD": 200,
            "SOLVER.CHECKPOINTS_KEPT": 1,
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
            if not ours or self.is_finished(name, seed, iterations):
                return
            cfg = self.configuration(name, seed, iterations)
            refuse_other_settings(folder, cfg, but=self.may_change)
            default_setup(cfg, argparse.Namespace(config_file="", eval_only=False))
            with self.arms[name].replaced():
                trainer = UniPerceiverTrainer(cfg)
                trainer.register_hooks(self.hooks_of(name, seed, iterations))
                trainer.resume_or_load(resume=True)
                trainer.train()
                with trainer.averaged_weights():
                    results = self._test(trainer, self.tasks_of(name))
            rows = rows_of(folder / "metrics.json")
            keep_log(folder, course(rows))
            keep_report(folder, {"minutes": minutes_of(rows), "split": self.split_of_tests(), "results": results})
            for checkpoint in (*folder.glob("model_*.pth"), folder / "last_checkpoint"):
                checkpoint.unlink(missing_ok=True)

    def is_finished(self, name: str, seed: int, iterations: int) -> bool:
        return report_of(self.folder_of(name, seed, iterations)) is not None

    def hooks_of(self, name: str, seed: int, iterations: int) -> list[HookBase]:
        """What a run does on the way, beside its training."""
        return []

    def _test(self, trainer: UniPerceiverTrainer, tasks: tuple[str, ...]) -> dict[str, Any]:
        """Results by dataset. Batch sizes are those of the unchanged configuration."""
        names = tuple(self.tests[task] for task in tasks)
        settings = {"DATASETS.TEST": names, "OUTPUT_DIR": trainer.cfg.OUTPUT_DIR}
        cfg = load_config(str(CONFIG), settings_of(settings), training=False)
        return trainer.test(cfg, trainer.model, [trainer.build_evaluator(cfg, name) for name in names])

    def train_in_process(self, name: str, seed: int, iterations: int, threads: int) -> bool:
        """Do a run in a separate process, with its own log, threads and memory. Returns whether it succeeded."""
        command = [sys.executable, self.program, "--iterations", str(iterations), "--output", str(self.output)]
        command += ["--run", name, str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
            self._started.append(run)
            return run.wait() == 0

    def train_in_processes(self, runs: Sequence[tuple[str, int]], iterations: int, jobs: int) -> list[bool]:
        """Do runs, several at a time. Returns which of them succeeded.

        SIGTERM is passed on to the runs, which write a checkpoint and end; the others are not begun. The terminal sends
        SIGINT to the runs itself.
        """

        def stop(number: int, frame: object) -> None:
            for run in self._started:
                run.terminate()
            raise SystemExit(128 + number)

        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // jobs))
        usual = signal.signal(signal.SIGTERM, stop)
        try:
            with ThreadPoolExecutor(jobs) as pool:
                return list(pool.map(lambda run: self.train_in_process(*run, iterations, threads), runs))
        finally:
            signal.signal(signal.SIGTERM, usual)

    def markdown(self, seeds: int, iterations: int) -> str:
        """What is written into the document: the tables of the finished runs."""
        return StudyTables(self, seeds, iterations).markdown()

    def write_document(self, seeds: int, iterations: int) -> None:
        """Write the tables between their marks in the document, and print them."""
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
        self.output, self.document = args.output, document_of(args.output, self.document, self.output)
        if self.prepare is not None and (args.run or args.jobs):
            self.prepare()
        if args.run:
            self.train(args.run[0], int(args.run[1]), args.iterations)
            return args
        if args.jobs:
            chosen = [name for name in args.only if not self.arms[name].chooses or self._is_development()]
            runs = [(name, seed) for seed in range(args.seeds) for name in chosen]
            done = self.train_in_processes(runs, args.iterations, args.jobs)
        self.write_document(args.seeds, args.iterations)
        if args.jobs and not all(done):
            sys.exit(f"failed: {', '.join(f'{name} {seed}' for (name, seed), well in zip(runs, done) if not well)}")
        return args

    def _options(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=f"{self.name}: trains, tests and writes {self.document.name}")
        parser.add_argument("--iterations", type=int, default=self.iterations, help="of a run of all tasks")
        parser.add_argument("--seeds", type=int, default=self.seeds)
        parser.add_argument("--only", nargs="+", choices=list(self.arms), default=list(self.arms), metavar="ARM")
        parser.add_argument("--jobs", type=int, default=2, help="runs at a time; 0 only writes the document")
        parser.add_argument("--output", type=Path, default=self.output, help=HELP_OF_OUTPUT)
        parser.add_argument("--run", nargs=2, metavar=("ARM", "SEED"), help="this run alone, in this process")
        return parser.parse_args(arguments)
