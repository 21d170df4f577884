"""All results of an evaluation in one table."""

import math
from collections.abc import Mapping, Sequence

from .caption_metrics import METRICS as CAPTION_METRICS

_TASK_TITLES = {"bbox": "boxes", "segm": "masks"}
# What is shown, by kinds of task that share their columns. Left out are sizes and single categories, which
# results.json and the log have.
_FAMILIES = (
    ("AP", "AP50", "AP75", "APr", "APc", "APf"),
    ("top1", "top5"),
    CAPTION_METRICS,
    ("R@1", "R@5", "R@10"),
    ("accuracy", "perplexity"),
)
_DECIMALS = {"perplexity": 2}  # all others have one


def format_results_table(results: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """The main metrics of all datasets and tasks as one Markdown table, a row for each task of each dataset.

    Kinds of task follow each other; each but the first begins with a row that names its columns.

    Args:
        results: {dataset: {task: {metric: value}}}. A value that could not be computed, NaN, None or below 0,
            is "n/a".
    """
    sections = [section for family in _FAMILIES if (section := _section(results, family))]
    columns = max((len(row) for section in sections for row in section), default=2)
    cells = [row + [""] * (columns - len(row)) for section in sections for row in section]
    if not cells:
        return ""
    cells[0][:2] = ["dataset", "task"]
    widths = [max(len(row[i]) for row in cells) for i in range(columns)]
    lines = [_line(row, widths) for row in cells]
    rule = "|" + "|".join(["-" * (w + 2) for w in widths[:2]] + ["-" * (w + 1) + ":" for w in widths[2:]]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _section(results: Mapping[str, Mapping[str, Mapping]], family: Sequence[str]) -> list[list[str]]:
    """Cells of the tasks with any of the family's metrics, below a row of their names; empty without tasks."""
    rows = [
        (dataset, _TASK_TITLES.get(task, task.replace("_", " ")), metrics)
        for dataset, tasks in results.items()
        for task, metrics in tasks.items()
        if any(name in metrics for name in family)
    ]
    columns = [name for name in family if any(name in metrics for _, _, metrics in rows)]
    cells = [[dataset, task, *(_format(metrics, name) for name in columns)] for dataset, task, metrics in rows]
    return [["", "", *columns], *cells] if cells else []


def _format(metrics: Mapping[str, float | None], name: str) -> str:
    if name not in metrics:
        return ""
    value = metrics[name]
    if value is None or math.isnan(value) or value < 0:
        return "n/a"
    return f"{value:.{_DECIMALS.get(name, 1)}f}"


def _line(row: list[str], widths: list[int]) -> str:
    texts = [cell.ljust(width) for cell, width in zip(row[:2], widths)]
    numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]
    return "| " + " | ".join(texts + numbers) + " |"
