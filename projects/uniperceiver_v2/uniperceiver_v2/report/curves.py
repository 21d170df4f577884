"""Curves of training: every scalar of a task, those of the whole run, and the results during training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..engine.metrics import MEASURED
from .blocks import Block, Plot
from .plots import Series, curves_plot
from .run import Missing, Run, is_number

_MOST_RESULTS = 12  # curves of a dataset
_OF_THE_RUN = ("total_loss", "lr", "temperature", "images_per_second", "peak_memory_mib")
_MOST_POINTS = 600  # of a curve; of more, every n-th


def run_curves(runs: Sequence[Run]) -> list[Block]:
    """Scalars of the whole run.

    Raises:
        Missing: metrics.json has none.
    """
    return _blocks(runs, _OF_THE_RUN, "", "Scalars of the whole run")


def task_curves(runs: Sequence[Run], task: str) -> list[Block]:
    """All scalars of a task: losses first, then the accuracies of training.

    Raises:
        Missing: metrics.json has none of this task.
    """
    prefix = f"{task}/"
    names = {key.removeprefix(prefix) for run in runs for row in run.rows for key in row if key.startswith(prefix)}
    if sum("loss" in name for name in names) == 2:  # the total of one loss is that loss
        names -= {"total_loss"}
    shown = sorted(names - MEASURED, key=lambda name: (not name.startswith("total"), "loss" not in name, name))
    return _blocks(runs, shown, prefix, f"Scalars of the task {task}")


def result_curves(runs: Sequence[Run], dataset: str) -> list[Block]:
    """The results of a dataset in the evaluations during training. Empty if there was one evaluation at most."""
    prefix = f"{dataset}/"
    names = dict.fromkeys(
        key for run in runs for row in run.rows for key in row if key.startswith(prefix) and "AP-" not in key
    )
    shown = [n.removeprefix(prefix) for n in names if any(len(_series(run, n)[0]) > 1 for run in runs)]
    return _blocks(runs, shown[:_MOST_RESULTS], prefix, f"Results of {dataset} in training") if shown else []


def _blocks(runs: Sequence[Run], names: Iterable[str], prefix: str, alt: str) -> list[Block]:
    panels = {name: [_series(run, prefix + name) for run in runs] for name in names}
    panels = {name: series for name, series in panels.items() if any(x for x, _ in series)}
    if not panels:
        raise Missing("metrics.json has none of these scalars" if any(run.rows for run in runs) else _NO_ROWS)
    return [Plot(curves_plot(panels, [run.name for run in runs]), alt, "By iteration.")]


_NO_ROWS = "the run has no metrics.json, or it has no rows"


def _series(run: Run, name: str) -> Series:
    points = [(row["iteration"], row[name]) for row in run.rows if is_number(row.get(name))]
    points = points[:: max(len(points) // _MOST_POINTS, 1)]
    return [x for x, _ in points], [y for _, y in points]
