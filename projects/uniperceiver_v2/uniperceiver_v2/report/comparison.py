"""Several runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial

from ..evaluation import result_cells
from ..kinds import KINDS
from .blocks import Block, Note, Plot, Table
from .plots import bars_plot
from .run import Run, is_number
from .sections import Part
from .settings import differing_settings

_MOST_CATEGORIES = 25
_NO_NUMBER = ("", "n/a")  # as the table of results writes it


def comparison_parts(runs: Sequence[Run]) -> Iterator[Part]:
    """What differs between runs: settings, figures, AP of categories. Changes are from the first run."""
    yield Part("", lambda: [_introduction(runs)])
    yield Part("Settings that differ", lambda: [differing_settings(runs)])
    yield Part("Figures that differ", partial(_figures, runs))
    for dataset in runs[0].datasets:
        yield Part(f"AP of categories, {dataset}", partial(_categories, runs, dataset))


def _introduction(runs: Sequence[Run]) -> Note:
    return Note(f"The curves of training show all runs. The other sections show {runs[0].name} alone.")


def _figures(runs: Sequence[Run]) -> list[Block]:
    first, *others = runs
    by_run = [_cells(run) for run in runs]
    rows, equal = [], 0
    for key in dict.fromkeys(key for cells in by_run for key in cells):
        values = [cells.get(key, "") for cells in by_run]
        if sum(value not in _NO_NUMBER for value in values) < 2:
            continue
        if len(set(values)) == 1:
            equal += 1
            continue
        changes = [cell for value in values[1:] for cell in (value, _change(values[0], value))]
        rows.append([*key, values[0], *changes])
    if not rows and not equal:
        return [Note("No figure is in the results of two of the runs.", is_gap=True)]
    if not rows:
        return [Note(f"All {equal} figures are the same.")]
    columns = ["dataset", "task", "figure", first.name]
    columns += [column for run in others for column in (run.name, "change")]
    caption = f"Changes are from {first.name}. Left out: figures that one run alone has"
    caption += f", and {equal} that are the same in all runs." if equal else "."
    return [Table(columns, rows, caption, texts=3)]


def _cells(run: Run) -> dict[tuple[str, str, str], str]:
    """The figures of the table of results as it writes them, by dataset, task and name."""
    return {
        (dataset, task, name): text
        for kind in KINDS.values()
        for header, *rows in result_cells(run.results, kind)
        for dataset, task, *texts in rows
        for name, text in zip(header[2:], texts)
    }


def _change(before: str, after: str) -> str:
    """The difference of the numbers that the reader sees."""
    if before in _NO_NUMBER or after in _NO_NUMBER:
        return ""
    change = Decimal(after) - Decimal(before)
    return f"{change:+}".replace("-", "−") if change else f"{change}"


def _categories(runs: Sequence[Run], dataset: str) -> list[Block]:
    """Bars of the AP of categories, those with the largest differences first if there are many."""
    by_run = [
        {key: value for key, value in (run.results.get(dataset, {}).get("bbox") or {}).items() if is_number(value)}
        for run in runs
    ]
    names = [key for key in by_run[0] if key.startswith("AP-") and all(key in metrics for metrics in by_run)]
    if not names:
        return []
    spread = {name: max(m[name] for m in by_run) - min(m[name] for m in by_run) for name in names}
    shown = sorted(names, key=lambda n: -spread[n])[:_MOST_CATEGORIES] if len(names) > _MOST_CATEGORIES else names
    groups = {name.removeprefix("AP-"): [metrics[name] for metrics in by_run] for name in shown}
    uri = bars_plot(groups, [run.name for run in runs], "AP of boxes")
    which = "The categories that differ most." if len(shown) < len(names) else ""
    return [Plot(uri, f"AP of each category of {dataset} in each run", which)]
