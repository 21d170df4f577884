"""Classification: precision and recall of classes, confusions, calibration, the worst and best images."""

from __future__ import annotations

import functools

import numpy as np

from ..blocks import Block, Card, Cell, Line, Note, Plot, Table
from ..calibration import calibration_blocks
from ..pictures import picture
from ..plots import matrix_plot
from ..run import Evaluation
from .part import EXAMPLES, MOST_IN_MATRIX, Part, extremes, folded, galleries, most_confused, nan_last

_FILE = "predictions.json"


def classification(evaluation: Evaluation) -> list[Part]:
    """The parts of a dataset of classification."""
    counts = functools.cache(lambda: _counts(evaluation.json(_FILE)))
    return [
        Part("Precision and recall of each class", lambda: _classes(*counts())),
        Part("Confusions", lambda: _confusions(*counts())),
        Part("Calibration of scores", lambda: _calibration(evaluation)),
        Part("Worst and best images", lambda: _pictures(evaluation)),
    ]


def _counts(records: list[dict]) -> tuple[list[str], np.ndarray]:
    """The classes that occur, as labels or as predictions, by their first occurrence; and the images [C, C] by label
    and prediction."""
    names = list(dict.fromkeys([r["label"] for r in records] + [r["classes"][0] for r in records]))
    place = {name: index for index, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), int)
    for record in records:
        matrix[place[record["label"]], place[record["classes"][0]]] += 1
    return names, matrix


def _classes(names: list[str], matrix: np.ndarray) -> list[Block]:
    right, of, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    recall = [_percent(right[k], of[k]) for k in range(len(names))]
    lowest_first = sorted(range(len(names)), key=lambda k: (nan_last(recall[k]), names[k]))
    rows: list[list[Cell]] = [[names[k], int(of[k]), _percent(right[k], predicted[k]), recall[k]] for k in lowest_first]
    caption = "In percent, the lowest recall first."
    return [Table(["class", "images", "precision", "recall"], rows, caption, folded=folded(rows, "classes"))]


def _percent(part: int, whole: int) -> float:
    return 100 * float(part) / float(whole) if whole else float("nan")


def _confusions(names: list[str], matrix: np.ndarray) -> list[Block]:
    errors = most_confused(matrix, names, names)
    if not errors:
        return [Note("No image is confused.")]
    worst = Table(["class", "taken for", "times"], errors, "The most frequent errors.", texts=2)
    if len(names) > MOST_IN_MATRIX:
        return [worst]
    uri = matrix_plot(matrix, names, names, "predicted", "class")
    return [Plot(uri, "Confusion matrix of classification", "Rows are the true classes."), worst]


def _calibration(evaluation: Evaluation) -> list[Block]:
    records = evaluation.json(_FILE)
    right = [record["classes"][0] == record["label"] for record in records]
    confidences = [record["scores"][0] for record in records]
    return calibration_blocks(confidences, right, "images", "score of the best class", "share right")


def _pictures(evaluation: Evaluation) -> list[Block]:
    records = evaluation.json(_FILE)
    worst, _ = extremes(records, _quality)
    surest = {r["label"]: r for r in sorted(records, key=_quality)}  # of each class
    best = [r for r in sorted(surest.values(), key=_quality, reverse=True) if r not in worst][:EXAMPLES]
    note = Note(
        "The worst are wrong with the highest scores. If these are few, right ones with the lowest scores follow. The "
        "best are right with the highest scores, one of each class."
    )
    return [note, *galleries(worst, best, lambda record: _card(evaluation, record), "small")]


def _quality(record: dict) -> float:
    score = record["scores"][0]
    return score if record["classes"][0] == record["label"] else -score


def _card(evaluation: Evaluation, record: dict) -> Card:
    is_right = record["classes"][0] == record["label"]
    best = [f"{name} {100 * score:.0f}" for name, score in zip(record["classes"], record["scores"])][:2]
    lines = [Line(((best[0], "right" if is_right else "wrong"), *((f", {text}", "pale") for text in best[1:])))]
    if not is_right:
        lines.append(Line.of(record["label"], label="is"))
    return Card([picture(evaluation.file_name(record), alt=f"Image {record['image_id']}, {record['label']}")], lines)
