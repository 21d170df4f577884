"""Scaling curves: how far each task comes with more iterations and with more width, learned jointly and alone.

    python projects/uniperceiver_v2/experiments/scaling_curves.py [--iterations 10000] [--seeds 1] [--only ARM ...]

The small generalist is trained with half of its widths, with its own and with twice of them. "joint" arms learn all
tasks, the others one task alone, with as many samples of it: point 2,000 of an arm is the iteration at which its tasks
have seen as many samples as in 2,000 iterations of a joint run. The rate is constant after its warm-up, so that a point
does not depend on how far the run goes.

At each of ``POINTS`` up to --iterations the averaged weights are evaluated, and the report is written anew. So the
points of a run that goes on, or was interrupted, are in the tables as well. A longer run of another day evaluates only
the points that are missing.

Writes the tables and the plot of docs/scaling_curves.md. study.py describes how runs are divided among processes.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ablations import METRICS, SINGLE_RATES, TESTS, lengths
from detectron2.engine import HookBase
from run_records import course, keep_log, keep_report, report_of, rows_of
from study import Arm, Study
from study_tables import mean_and_spread, span_of

from uniperceiver_v2.config import load_config
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.files import REPOSITORY, TINY_CONFIG

POINTS = (500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
WIDTHS = (0.5, 1.0, 2.0)
FIGURES = {
    task: metric
    for metric in ("box AP", "phrases", "top-1", "true", "text R@1", "words")
    for task in TESTS
    if METRICS[metric][0] == task
}
PLATEAU = 90.0  # percent of errors; points above are of a task that has hardly begun, and are in no fit

Curve = Mapping[int, float]  # of a metric, by point


def settings_of_width(width: float) -> dict[str, Any]:
    """The sizes of the small generalist, multiplied. Its text encoder stays, as it comes from a folder."""
    node = load_config(str(TINY_CONFIG)).MODEL.UNIPERCEIVER_V2
    sizes = {
        "EMBED_DIM": node.EMBED_DIM,
        "DECODER.FFN_DIM": node.DECODER.FFN_DIM,
        **{f"REGION.{key}": node.REGION[key] for key in ("DIM", "MASK_DIM", "FFN_DIM", "FINE_DIM")},
        "BACKBONE.CONFIG.embedding_size": node.BACKBONE.CONFIG.embedding_size,
    }
    widened = {key: round(width * size) for key, size in sizes.items()}
    widened["BACKBONE.CONFIG.hidden_sizes"] = [round(width * size) for size in node.BACKBONE.CONFIG.hidden_sizes]
    return {f"MODEL.UNIPERCEIVER_V2.{key}": value for key, value in widened.items()}


def arm_name(tasks: str, width: float) -> str:
    """ "joint" or a task, and the width."""
    return f"{tasks} x{width:g}"


def arm_of(tasks: str, width: float) -> Arm:
    """All tasks, or one alone with the rate that suits it best at the usual width."""
    settings = {"SOLVER.STEPS": (), **settings_of_width(width)}
    return (
        Arm(settings=settings)
        if tasks == "joint"
        else Arm((tasks,), {**settings, "SOLVER.BASE_LR": SINGLE_RATES[tasks]})
    )


ARMS = {arm_name(tasks, width): arm_of(tasks, width) for width in WIDTHS for tasks in ("joint", *TESTS)}


class AtIterations(HookBase):
    """Calls a function after some iterations, with the trainer and what is given for the iteration. A run that was
    interrupted between such an iteration's checkpoint and the call makes the call when it goes on."""

    def __init__(self, given: Mapping[int, int], call: Callable[[UniPerceiverTrainer, int], None]):
        self._given, self._call = given, call

    def before_train(self) -> None:
        self._reach(self.trainer.start_iter)

    def after_step(self) -> None:
        self._reach(self.trainer.iter + 1)

    def _reach(self, iteration: int) -> None:
        if iteration in self._given:
            self._call(self.trainer, self._given[iteration])


@dataclass(frozen=True)
class Fit:
    """errors = factor · x^-exponent, a line in log-log."""

    exponent: float
    factor: float
    r2: float
    points: int

    def __str__(self) -> str:
        return f"{self.exponent:.2f} (R² {self.r2:.2f}, {self.points} points)"

    def at(self, x: float) -> float:
        return self.factor * x**-self.exponent


def power_law(values: Mapping[float, float]) -> Fit | None:
    """The fit of the errors 100 - value by x, by least squares of logarithms, or None with fewer than three points that
    are off the plateau."""
    errors = {x: 100 - value for x, value in values.items() if 0 < 100 - value <= PLATEAU}
    if len(errors) < 3:
        return None
    x, y = np.log(list(errors)), np.log(list(errors.values()))
    slope, constant = np.polyfit(x, y, 1)
    unexplained, spread = ((y - slope * x - constant) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return Fit(-slope, math.exp(constant), 1 - unexplained / spread if spread else math.nan, len(errors))


class ScalingCurves(Study):
    """A run's report has a metric of each of its tasks at each point: ``{"results": {point: {metric: value}}}``."""

    may_change = ("SOLVER.MAX_ITER",)

    def folder_of(self, name: str, seed: int, iterations: int, split: str = "") -> Path:
        """The folder of a run, which is the same for all numbers of iterations."""
        return self.output / (split or self.split_of_tests()) / f"{name.replace(' ', '_')}_{seed}"

    def points_of(self, name: str, iterations: int) -> dict[int, int]:
        """{iteration of an arm: its point} up to a point."""
        points = [*(point for point in POINTS if point < iterations), iterations]
        whole = load_config(str(TINY_CONFIG))
        return {lengths(self.arms[name], whole, point)["SOLVER.MAX_ITER"]: point for point in points}

    def is_finished(self, name: str, seed: int, iterations: int) -> bool:
        found = self._results(self.folder_of(name, seed, iterations))
        return all(str(point) in found for point in self.points_of(name, iterations).values())

    def hooks_of(self, name: str, seed: int, iterations: int) -> list[HookBase]:
        return [AtIterations(self.points_of(name, iterations), self._keep_point)]

    def _keep_point(self, trainer: UniPerceiverTrainer, point: int) -> None:
        """Evaluate the averaged weights, and write the report with this point, unless it has it."""
        folder = Path(trainer.cfg.OUTPUT_DIR)
        found = self._results(folder)
        if str(point) in found:
            return
        tasks = tuple(trainer.cfg.TASKS.NAMES)
        with trainer.averaged_weights():
            results = super()._test(trainer, tasks)
        figures = {FIGURES[task]: METRICS[FIGURES[task]] for task in tasks}
        values = {name: results[self.tests[task]][kind][key] for name, (task, kind, key) in figures.items()}
        keep_log(folder, course(rows_of(folder / "metrics.json")))
        keep_report(folder, {"split": self.split_of_tests(), "results": {**found, str(point): values}})

    def _test(self, trainer: UniPerceiverTrainer, tasks: tuple[str, ...]) -> dict[str, Any]:
        """The points, which are evaluated already."""
        return self._results(Path(trainer.cfg.OUTPUT_DIR))

    def _results(self, folder: Path) -> dict[str, dict[str, float]]:
        return (report_of(folder) or {"results": {}})["results"]

    def curves(self, name: str, metric: str, split: str, seeds: int) -> dict[int, Curve]:
        """A metric of an arm by point, by seed. Seeds without a point are left out."""
        runs = {seed: self._results(self.folder_of(name, seed, 0, split)) for seed in range(seeds)}
        return {
            seed: {int(point): values[metric] for point, values in run.items()} for seed, run in runs.items() if run
        }

    def splits(self) -> list[str]:
        return sorted((path.name for path in self.output.glob("*") if any(path.glob("*/run.json"))), reverse=True)

    def markdown(self, seeds: int, iterations: int) -> str:
        """The tables of each split, test first."""
        parts = ["\n".join(_tables(self, split, seeds)) for split in self.splits()]
        if not parts:
            return "No run has a point yet.\n"
        dates = [json.loads(path.read_text())["date"] for path in self.output.glob("*/*/run.json")]
        parts.append(f"{len(dates)} runs have points. Their last ones are of {span_of(dates)}.\n")
        return "\n".join(parts) + f"\n![Errors by iterations and width, with the fits]({self.name}.png)\n"

    def write_document(self, seeds: int, iterations: int) -> None:
        if splits := self.splits():
            plot(self, splits[0], seeds, self.document.with_suffix(".png"))
        super().write_document(seeds, iterations)


def mean_curve(curves: Mapping[int, Curve]) -> dict[int, float]:
    """The mean over the seeds that have a point, for each point."""
    points = sorted({point for curve in curves.values() for point in curve})
    return {point: statistics.mean(_values_at(curves, point)) for point in points}


def _values_at(curves: Mapping[int, Curve], point: int) -> list[float]:
    return [curve[point] for curve in curves.values() if point in curve]


def _tables(study: ScalingCurves, split: str, seeds: int) -> Iterator[str]:
    """The lines of a split's three tables: values, what sharing is worth, and fits."""
    pairs = [pair for pair in _pairs(study, split, seeds) if any(pair[2:])]  # of runs that have a point
    points = sorted({point for *_, joint, alone in pairs for both in (joint, alone) for point in mean_curve(both)})
    head = [f"| split: {split} | width | {' | '.join(f'{point:,}' for point in points)} |"]
    head.append("|---|---:|" + "---:|" * len(points))
    yield from ["Joint / alone, by iterations of a joint run:\n", *head]
    for task, width, joint, alone in pairs:
        cells = (" / ".join(mean_and_spread(_values_at(one, point)) for one in (joint, alone)) for point in points)
        yield f"| {FIGURES[task]} | {width:g} | {' | '.join(cells)} |"
    yield from ["\nJoint minus alone, in points of the metric, over the seeds of both:\n", *head]
    for task, width, joint, alone in pairs:
        gains = {seed: _minus(joint[seed], alone[seed]) for seed in joint.keys() & alone.keys()}
        cells = (mean_and_spread(_values_at(gains, point)) for point in points)
        signed = (f"+{cell}" if cell[0].isdigit() else cell for cell in cells)
        yield f"| {FIGURES[task]} | {width:g} | {' | '.join(signed)} |"
    yield from _fits(study, split, seeds)


def _fits(study: ScalingCurves, split: str, seeds: int) -> Iterator[str]:
    """The lines of the table of fits."""
    yield "\nExponents b of errors ~ iterations^-b, and of errors ~ width^-b at the last point of all widths:\n"
    yield f"| split: {split} | run | {' | '.join(f'width {width:g}' for width in WIDTHS)} | over width |"
    yield "|---|---|" + "---|" * (1 + len(WIDTHS))
    for task, metric in FIGURES.items():
        for tasks, run in (("joint", "joint"), (task, "alone")):
            means = {w: mean_curve(study.curves(arm_name(tasks, w), metric, split, seeds)) for w in WIDTHS}
            cells = [str(fit or "-") for fit in (*map(power_law, means.values()), over_width(means))]
            yield f"| {metric} | {run} | {' | '.join(cells)} |"
    yield ""


def _minus(one: Curve, other: Curve) -> Curve:
    return {point: one[point] - other[point] for point in one.keys() & other.keys()}


def _pairs(
    study: ScalingCurves, split: str, seeds: int
) -> Iterator[tuple[str, float, dict[int, Curve], dict[int, Curve]]]:
    """(task, width, joint curves, curves alone)"""
    for task, metric in FIGURES.items():
        for width in WIDTHS:
            arms = (arm_name(tasks, width) for tasks in ("joint", task))
            yield task, width, *(study.curves(arm, metric, split, seeds) for arm in arms)


def over_width(curves: Mapping[float, Curve]) -> Fit | None:
    """The fit over widths at the last point that all of them have."""
    common = set.intersection(*map(set, curves.values()))
    return power_law({width: curve[max(common)] for width, curve in curves.items()}) if common else None


def plot(study: ScalingCurves, split: str, seeds: int, path: Path) -> None:
    """A panel for each task: errors by iterations in log-log, joint (solid) and alone (dashed), with a colour for each
    width. Thin lines are fits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator

    figure, axes = plt.subplots(2, 3, figsize=(13, 8), layout="constrained")
    for axis, (task, metric) in zip(axes.flat, FIGURES.items(), strict=True):
        for (colour, width), (tasks, style) in itertools.product(enumerate(WIDTHS), (("joint", "o-"), (task, "s--"))):
            if not (curve := mean_curve(study.curves(arm_name(tasks, width), metric, split, seeds))):
                continue
            label = f"{'joint' if tasks == 'joint' else 'alone'}, width {width:g}"
            axis.plot(list(curve), [100 - value for value in curve.values()], style, color=f"C{colour}", label=label)
            if fit := power_law(curve):
                axis.plot(list(curve), [fit.at(x) for x in curve], ":", color=f"C{colour}", linewidth=1)
        axis.set(title=metric, xscale="log", yscale="log", xlabel="iterations of a joint run", ylabel="errors, %")
        axis.xaxis.set_major_locator(FixedLocator(POINTS))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(LogFormatter())  # 20 in place of 2 times 10 to the 1
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.grid(which="both", alpha=0.3)
    max(axes.flat, key=lambda axis: len(axis.lines)).legend(fontsize="small")
    figure.savefig(path, dpi=80)
    plt.close(figure)


STUDY = ScalingCurves(
    __file__,
    arms=ARMS,
    tests=TESTS,
    metrics={metric: METRICS[metric] for metric in FIGURES.values()},
    tables={},
    document=REPOSITORY / "docs" / "scaling_curves.md",
    lengths=lengths,
    iterations=10_000,
)


if __name__ == "__main__":
    STUDY.main()
