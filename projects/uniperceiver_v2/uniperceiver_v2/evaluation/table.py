"""A table of all results of an evaluation."""

import math
from collections.abc import Mapping, Sequence

from ..kinds import KINDS, TaskKind

Results = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # {dataset: {row: {metric: value}}}


def format_results_table(results: Results) -> str:
    """The main metrics of all datasets and tasks as one Markdown table, with a row for each task of each dataset.

    Rows of one kind of task stand together, in sections of rows that share columns. Before every section but the first,
    a row names its columns. The kind's descriptor lists the metrics that are shown; results.json and the log have all
    metrics.

    Args:
        results: {dataset: {task: {metric: value}}}. A value that could not be computed (NaN, None or below 0) is shown
            as "n/a".
    """
    sections = [section for kind in KINDS.values() for section in result_cells(results, kind)]
    columns = max((len(row) for section in sections for row in section), default=2)
    cells = [row + [""] * (columns - len(row)) for section in sections for row in section]
    if not cells:
        return ""
    cells[0][:2] = ["dataset", "task"]
    widths = [max(len(row[i]) for row in cells) for i in range(columns)]
    lines = [_line(row, widths) for row in cells]
    rule = "|" + "|".join(["-" * (w + 2) for w in widths[:2]] + ["-" * (w + 1) + ":" for w in widths[2:]]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def result_cells(results: Results, kind: TaskKind) -> list[list[list[str]]]:
    """Cells of a kind's rows of the table. The rows that share columns are together, below a row of their names: first
    two empty cells, then the columns."""
    sections: list[list[tuple[str, str, Mapping[str, float | None]]]] = []
    for dataset, of_dataset in results.items():
        for row, metrics in of_dataset.items():
            if kind_of_metrics(metrics) is kind:
                shown = metrics.keys() & kind.columns.keys()
                section = next((s for s in sections if any(shown & of_row.keys() for _, _, of_row in s)), None)
                if section is None:
                    sections.append(section := [])
                section.append((dataset, kind.titles.get(row, row.replace("_", " ")), metrics))
    return [_cells(section, kind) for section in sections]


def _cells(rows: Sequence[tuple[str, str, Mapping[str, float | None]]], kind: TaskKind) -> list[list[str]]:
    columns = [name for name in kind.columns if any(name in metrics for _, _, metrics in rows)]
    cells = [
        [dataset, title, *(_format(metrics, name, kind.columns[name]) for name in columns)]
        for dataset, title, metrics in rows
    ]
    return [["", "", *columns], *cells]


def kind_of_metrics(metrics: Mapping[str, float | None]) -> TaskKind | None:
    """The kind whose columns contain the most of a row's metrics. None if no kind has any of them."""
    kind = max(KINDS.values(), key=lambda kind: len(kind.columns.keys() & metrics.keys()), default=None)
    return kind if kind is not None and kind.columns.keys() & metrics.keys() else None


def _format(metrics: Mapping[str, float | None], name: str, decimals: int) -> str:
    if name not in metrics:
        return ""
    value = metrics[name]
    if value is None or math.isnan(value) or value < 0:
        return "n/a"
    return f"{value:.{decimals}f}"


def _line(row: list[str], widths: list[int]) -> str:
    texts = [cell.ljust(width) for cell, width in zip(row[:2], widths)]
    numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]
    return "| " + " | ".join(texts + numbers) + " |"
