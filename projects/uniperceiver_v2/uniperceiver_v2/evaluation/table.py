"""All results of an evaluation in one table."""

import math
from collections.abc import Mapping

_TASK_TITLES = {"bbox": "boxes", "segm": "masks"}
# What is left out of the table: sizes and single categories, which results.json and the log have.
_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "top1", "top5")


def format_results_table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The main metrics of all datasets and tasks as a Markdown table, a row for each task of each dataset.

    Args:
        results: {dataset: {task: {metric: value}}}. A value that could not be computed, NaN or below 0, is
        "n/a".
    """
    rows = [
        (dataset, _TASK_TITLES.get(task, task), metrics)
        for dataset, tasks in results.items()
        for task, metrics in tasks.items()
    ]
    columns = [name for name in _METRICS if any(name in metrics for _, _, metrics in rows)]
    cells = [["dataset", "task", *columns]]
    for dataset, task, metrics in rows:
        cells.append([dataset, task, *(_format(metrics.get(name)) for name in columns)])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [_line(row, widths) for row in cells]
    rule = "|" + "|".join(["-" * (w + 2) for w in widths[:2]] + ["-" * (w + 1) + ":" for w in widths[2:]]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return "n/a" if math.isnan(value) or value < 0 else f"{value:.1f}"


def _line(row: list[str], widths: list[int]) -> str:
    texts = [cell.ljust(width) for cell, width in zip(row[:2], widths)]
    numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]
    return "| " + " | ".join(texts + numbers) + " |"
