"""Several runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..kinds import KINDS
from .blocks import Block, Note, Plot, Table
from .plots import bars_plot
from .run import Run
from .settings import differing_settings

_MOST_CATEGORIES = 25


def comparison_parts(runs: Sequence[Run]) -> list[tuple[str, list[Block]]]:
    """What differs between runs: settings, figures, AP of categories. Differences are from the first run."""
    parts: list[tuple[str, list[Block]]] = [
        ("Settings that differ", [differing_settings(list(runs))]),
        ("Figures", _figures(runs)),
    ]
    for dataset in runs[0].datasets:
        if blocks := _categories(runs, dataset):
            parts.append((f"AP of categories, {dataset}", blocks))
    return parts


def _figures(runs: Sequence[Run]) -> list[Block]:
    first, others = runs[0], runs[1:]
    columns = ["dataset", "row", "metric", first.name]
    for run in others:
        columns += [run.name, "change"]
    rows = []
    for dataset in dict.fromkeys(dataset for run in runs for dataset in run.results):
        for row in dict.fromkeys(row for run in runs for row in run.results.get(dataset, {})):
            for metric in _shown_metrics(runs, dataset, row):
                values = [_value(run, dataset, row, metric) for run in runs]
                if sum(value is not None for value in values) < 2:
                    continue
                cells: list[str | float | None] = [dataset, row.replace("_", " "), metric, values[0]]
                for value in values[1:]:
                    cells += [value, _change(values[0], value)]
                rows.append(cells)
    if not rows:
        return [Note("No figure is in the results of two of the runs.", is_gap=True)]
    return [Table(columns, rows, f"Changes are from {first.name}. Figures that one run alone has are left out.")]


def _shown_metrics(runs: Sequence[Run], dataset: str, row: str) -> list[str]:
    columns = {metric for kind in KINDS.values() for metric in kind.columns}
    present = dict.fromkeys(metric for run in runs for metric in run.results.get(dataset, {}).get(row, {}))
    return [metric for metric in present if metric in columns]


def _value(run: Run, dataset: str, row: str, metric: str) -> float | None:
    value = run.results.get(dataset, {}).get(row, {}).get(metric)
    # Detectron2's and LVIS's evaluators have NaN or a value below 0 for what cannot be computed.
    usable = isinstance(value, int | float) and math.isfinite(value) and (metric != "AP" or value >= 0)
    return float(value) if usable else None


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return f"{after - before:+.1f}"


def _categories(runs: Sequence[Run], dataset: str) -> list[Block]:
    """Bars of the AP of categories, those with the largest differences first if there are many."""
    by_run = [run.results.get(dataset, {}).get("bbox") or {} for run in runs]
    names = [key for key in by_run[0] if key.startswith("AP-") and all(_is_number(m.get(key)) for m in by_run)]
    if not names:
        return []
    spread = {name: max(m[name] for m in by_run) - min(m[name] for m in by_run) for name in names}
    shown = sorted(names, key=lambda n: -spread[n])[:_MOST_CATEGORIES] if len(names) > _MOST_CATEGORIES else names
    groups = {name.removeprefix("AP-"): [metrics[name] for metrics in by_run] for name in shown}
    uri = bars_plot(groups, [run.name for run in runs], "AP of boxes")
    which = "The categories that differ most." if len(shown) < len(names) else ""
    return [Plot(uri, f"AP of each category of {dataset} in each run", which)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
