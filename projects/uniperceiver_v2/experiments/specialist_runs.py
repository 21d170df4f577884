"""The generalist beside its specialists: models for one task alone, with a given time of one thread.

    python projects/uniperceiver_v2/experiments/specialist_runs.py [--only NAME ...] [--seconds 180 1100] [--seeds 3]
    DETECTRON2_DATASETS=datasets/development python projects/uniperceiver_v2/experiments/specialist_runs.py
        --only ResNet --seconds 60 --rates 5e-4 1e-3 2e-3

The first command trains each specialist and compares it with the generalist. The second one chooses a rate, on the
development tree. specialists/ has a file for each model.

- A specialist trains with this project's loader on the training data of one of the small generalist's tasks, and is
  evaluated by that task's evaluators.
- Its time is that of one thread of the machine on which the generalist's was measured. A specialist's `pace` says how
  many iterations that is, reading of data included, so that all machines do the same run. The rate rises for a
  twentieth of the time and then falls as half a cosine.
- Every run has its own folder below records/specialist_runs/<split>/ with its report (run.json) and its log
  (log.jsonl.gz), which are committed. Finished runs are not repeated, interrupted ones continue from their last
  checkpoint, and several processes divide the runs among them.
- At the end, or with --table alone, the table of all finished runs is written into docs/specialists.md. The
  generalist's figures are those of the records of `make train` (keep_run.py) and of the zoo, or of --generalist.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from run_records import claimed, keep_log, keep_report, records_of, report_of, split_of_data
from specialists import SPECIALISTS, Specialist
from study import settings_of
from study_tables import HELP_OF_OUTPUT, document_of, mean_and_spread, write_between_marks
from torch import nn

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, build_test_loader
from uniperceiver_v2.data.order import CountFrom
from uniperceiver_v2.evaluation import build_evaluator
from uniperceiver_v2.files import REPOSITORY, TINY_CONFIG, write_atomically
from uniperceiver_v2.reading.weights import read_tensors

CONFIG = TINY_CONFIG
DOCUMENT = REPOSITORY / "docs" / "specialists.md"
OUTPUT = records_of(__file__)
GENERALISTS = {
    "`make train`": str(records_of(__file__).with_name("make_train") / "test" / "*" / "run.json"),
    "zoo": str(REPOSITORY / "zoo" / "digit_scenes_small" / "results.json"),
}
# A sixth of the generalist's time, and all of it. docs/specialists.md says how it was measured.
SECONDS = (180.0, 1100.0)
WARM_UP = 0.05  # of the time
SAVE_PERIOD = 30.0  # seconds between checkpoints
LOG_LINES = 50  # of a run


@dataclass(frozen=True)
class Run:
    """A specialist with a time, a peak rate and a seed. ``output`` is the folder of the runs of its split."""

    name: str
    seconds: float
    rate: float
    seed: int
    output: Path

    @property
    def specialist(self) -> Specialist:
        return SPECIALISTS[self.name]

    @property
    def iterations(self) -> int:
        return max(1, round(self.seconds * self.specialist.pace))

    @property
    def folder(self) -> Path:
        return self.output / f"{self.name.replace(' ', '_')}_{self.seconds:g}_{self.rate:g}_{self.seed}"

    def configuration(self, larger: bool = False) -> CfgNode:
        """The settings of the run. Scenes of tests have the size of training, or the generalist's larger one."""
        sizes = load_config(str(CONFIG)).INPUT
        size = sizes.MIN_SIZE_TEST if larger else sizes.MIN_SIZE_TRAIN[0]
        settings = {"SEED": self.seed, "INPUT.MIN_SIZE_TEST": size, **self.specialist.settings}
        return load_config(str(CONFIG), settings_of(settings))


def do(run: Run) -> None:
    """Train, evaluate and report, unless the run is finished or another process does it."""
    with claimed(run.folder) as ours:
        if not ours or report_of(run.folder) is not None:
            return
        print(run.folder, flush=True)
        cfg = run.configuration()
        torch.manual_seed(run.seed)
        model = run.specialist.build(cfg)
        log = train(model, run, cfg)
        tested = {"results": evaluate(model, cfg, run.specialist.tests, run.folder / "inference")}
        if run.specialist.any_size:
            cfg = run.configuration(larger=True)
            results = evaluate(model, cfg, run.specialist.tests, run.folder / "inference_larger")
            tested["larger"] = {"size": cfg.INPUT.MIN_SIZE_TEST, "results": results}
        keep_log(run.folder, log)
        keep_report(
            run.folder,
            {
                "specialist": run.name,
                "seconds": run.seconds,
                "rate": run.rate,
                "seed": run.seed,
                "split": split_of_data(),
                "iterations": run.iterations,
                "parameters": sum(p.numel() for p in model.parameters()),
                **tested,
            },
        )
        (run.folder / "checkpoint.pth").unlink()


def train(model: nn.Module, run: Run, cfg: CfgNode) -> list[dict[str, float]]:
    """Train for the run's iterations, from its checkpoint if there is one. Returns the log."""
    specialist, checkpoint = run.specialist, run.folder / "checkpoint.pth"
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate, weight_decay=specialist.weight_decay)
    done, log, losses = 0, [], []
    if checkpoint.exists():
        state = read_tensors(str(checkpoint))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        done, log, losses = state["iteration"], state["log"], state["losses"]
    batches = iter(build_task_train_loader(cfg, specialist.task, CountFrom(done)))
    model.train()
    saved = time.monotonic()
    for iteration in range(done + 1, run.iterations + 1):
        optimizer.param_groups[0]["lr"] = run.rate * rate_share((iteration - 1) / run.iterations)
        loss = model(next(batches))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), specialist.clip)
        optimizer.step()
        losses.append(loss.item())
        if iteration * LOG_LINES >= (len(log) + 1) * run.iterations:
            log.append({"iteration": iteration, "loss": sum(losses) / len(losses)})
            losses = []
        if iteration == run.iterations or time.monotonic() - saved >= SAVE_PERIOD:
            saved = time.monotonic()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
            state |= {"log": log, "losses": losses, "random": torch.get_rng_state()}
            write_atomically(str(checkpoint), lambda file, state=state: torch.save(state, file))
    return log


def rate_share(share: float) -> float:
    """The rate as a share of its peak, at a share of the time."""
    return max(0.0, min(share / WARM_UP + 0.01, (1 + math.cos(math.pi * share)) / 2))


@torch.no_grad()
def evaluate(model: nn.Module, cfg: CfgNode, datasets: Iterable[str], folder: Path) -> dict[str, Any]:
    """The results on test datasets, by dataset, each from its own evaluator, whose files go into the folder."""
    results = {}
    for dataset in datasets:
        evaluator = build_evaluator(cfg, dataset, str(folder / dataset))
        results[dataset] = inference_on_dataset(model, build_test_loader(cfg, dataset), evaluator)
    return results


def reports(output: Path) -> list[dict[str, Any]]:
    """Those of all finished runs of all splits."""
    found = (report_of(folder) for folder in sorted(output.glob("*/*_*_*_*")))
    return [report for report in found if report is not None]


def figures_of(name: str) -> Iterator[tuple[str, str, str, str]]:
    """(figure, dataset, kind of result, key) of a specialist."""
    for dataset, figures in SPECIALISTS[name].tests.items():
        for figure, (kind, key) in figures.items():
            yield figure, dataset, kind, key


def comparison(runs: Sequence[Mapping[str, Any]], generalists: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The table of the runs with the chosen rates on test handwriting, beside the generalist."""
    chosen = [run for run in runs if run["split"] == "test" and run["rate"] == SPECIALISTS[run["specialist"]].rate]
    times = sorted({run["seconds"] for run in chosen})
    columns = [*generalists, *(f"specialist, {seconds:g} s" for seconds in times)]
    lines = [f"| specialist | figure | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
    for name in SPECIALISTS:
        for figure, dataset, kind, key in figures_of(name):
            groups = list(generalists.values())
            own = [run for run in chosen if run["specialist"] == name]
            groups += [[run["results"] for run in own if run["seconds"] == seconds] for seconds in times]
            cells = (_cell([results[dataset][kind][key] for results in group]) for group in groups)
            lines.append(f"| {name} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
    return mean_and_spread(values) + seeds


def list_of_runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row for each specialist, split, time and rate."""
    lines = [
        "| specialist | parameters | split | seconds | rate | seeds | iterations | figures |",
        "|---|---:|---|---:|---:|---|---:|---|",
    ]

    def place(run: Mapping[str, Any]) -> tuple:
        return list(SPECIALISTS).index(run["specialist"]), run["split"], run["seconds"], run["rate"]

    for (_, split, seconds, rate), group in itertools.groupby(sorted(runs, key=place), place):
        same = list(group)
        name, parameters = same[0]["specialist"], same[0]["parameters"] / 1e6
        iterations = f"{sum(run['iterations'] for run in same) / len(same):,.0f}"
        figures = _figures(name, [run["results"] for run in same])
        if all("larger" in run for run in same):
            size = same[0]["larger"]["size"]
            figures += f"; at {size} pixels {_figures(name, [run['larger']['results'] for run in same])}"
        seeds = ", ".join(str(run["seed"]) for run in same)
        lines.append(
            f"| {name} | {parameters:.1f}M | {split} | {seconds:g} | {rate:g} | {seeds} | {iterations} | {figures} |"
        )
    return "\n".join(lines) + "\n"


def _figures(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{figure} {mean_and_spread([run[dataset][kind][key] for run in results])}"
        for figure, dataset, kind, key in figures_of(name)
    )


def write_document(output: Path, generalists: Mapping[str, str]) -> None:
    """Write the tables of the finished runs into their document, and print them."""
    runs = reports(output)
    found = {name: sorted(glob.glob(pattern)) for name, pattern in generalists.items()}
    evaluated = {name: list(map(_results_of, paths)) for name, paths in found.items() if paths}
    table = comparison(runs, evaluated) + "\n" + list_of_runs(runs)
    write_between_marks(document_of(output, DOCUMENT, OUTPUT), "specialist_runs", table)
    print(table)


def _results_of(path: str) -> dict[str, Any]:
    """Those of a results.json, or of a report among the records."""
    content = json.loads(Path(path).read_text())
    return content.get("results", content)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(SPECIALISTS), metavar="NAME")
    parser.add_argument("--seconds", nargs="+", type=float, default=SECONDS, help="of one thread")
    parser.add_argument("--rates", nargs="+", type=float, help="peak learning rates, in place of the chosen ones")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=HELP_OF_OUTPUT)
    parser.add_argument("--table", action="store_true", help="no run, only the table of those that are finished")
    parser.add_argument(
        "--generalist",
        nargs=2,
        action="append",
        metavar=("NAME", "PATTERN"),
        help="a column of the table and its results.json or run.json, one for each seed",
    )
    args = parser.parse_args(arguments)
    chosen = args.only or [name for name, specialist in SPECIALISTS.items() if specialist.is_installed]
    for name in chosen:
        if not SPECIALISTS[name].is_installed:
            parser.error(f"{name} needs {SPECIALISTS[name].needs}, which is not installed")
    if not args.table:
        torch.set_num_threads(1)
        output = args.output / split_of_data()
        for seed, seconds, name in itertools.product(range(args.seeds), args.seconds, chosen):
            for rate in args.rates or [SPECIALISTS[name].rate]:
                do(Run(name, seconds, rate, seed, output))
    write_document(args.output, dict(args.generalist) if args.generalist else GENERALISTS)


if __name__ == "__main__":
    main()
