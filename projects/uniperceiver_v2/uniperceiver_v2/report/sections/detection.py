"""Detection: precision and recall of categories, confusions, calibration, the worst and best images."""

from __future__ import annotations

import functools
from collections import defaultdict

import numpy as np

from ..blocks import Block, Box, Card, Cell, Line, Note, Plot, Table
from ..calibration import LOWEST_DETECTION, calibration_blocks
from ..matching import (
    IGNORED,
    IOU,
    RECALLS,
    SHOWN,
    CategoryCurve,
    Detections,
    category_curves,
    classes_by_id,
    confusion,
    matched,
)
from ..pictures import picture
from ..plots import matrix_plot, precision_recall_plot
from ..run import Evaluation, Missing
from .part import MOST_IN_MATRIX, Part, extremes, folded, galleries, most_confused, nan_last

_MOST_CURVES = 20
_NAMED_ERRORS = 6  # in the text below a picture


def detection(evaluation: Evaluation) -> list[Part]:
    """The parts of a dataset of detection."""
    images = functools.cache(lambda: _images(evaluation))
    curves = functools.cache(lambda: category_curves(images(), len(evaluation.names)))
    return [
        Part("Precision and recall of each category", lambda: _categories(evaluation, curves())),
        Part("Confusions", lambda: _confusions(images(), evaluation.names)),
        Part("Calibration of scores", lambda: _calibration(images())),
        Part("Worst and best images", lambda: _pictures(evaluation, images())),
    ]


def _images(evaluation: Evaluation) -> list[Detections]:
    name = next((n for n in ("coco_instances_results.json", "lvis_instances_results.json") if evaluation.has(n)), None)
    if name is None:
        raise Missing(f"the run has no detections of {evaluation.dataset}")
    by_image = defaultdict(list)
    for found in evaluation.json(name):
        by_image[found["image_id"]].append(found)
    names = evaluation.names  # also fills the metadata
    class_of = classes_by_id(evaluation.dataset, len(names), name.startswith("lvis"))
    if not evaluation.records:
        raise Missing("the dataset has no images")
    return [matched(record, by_image[image], class_of) for image, record in evaluation.records.items()]


def _categories(evaluation: Evaluation, curves: list[CategoryCurve]) -> list[Block]:
    # COCO's evaluator has the AP of categories, LVIS's has not.
    ap = {title: evaluation.results.get(row, {}) for row, title in (("bbox", "AP boxes"), ("segm", "AP masks"))}
    ap = {title: metrics for title, metrics in ap.items() if any(name.startswith("AP-") for name in metrics)}
    rows: list[list[Cell]] = []
    for name, curve in sorted(zip(evaluation.names, curves), key=lambda item: (nan_last(item[1].ap), item[0])):
        precision, recall = curve.at(SHOWN)
        of_results = [metrics.get(f"AP-{name}") for metrics in ap.values()]
        rows.append([name, curve.objects, *of_results, 100 * curve.ap, 100 * precision, 100 * recall])
    table = Table(
        ["category", "objects", *ap, "AP50 boxes", f"precision at {SHOWN:g}", f"recall at {SHOWN:g}"],
        rows,
        f"In percent, the lowest AP50 first. Precision and recall are of boxes with a score of at least {SHOWN:g}, at "
        f"an IoU of at least {IOU:g}.",
        folded=folded(rows, "categories"),
    )
    shown = [(n, c) for n, c in zip(evaluation.names, curves) if c.objects]
    shown = sorted(shown, key=lambda item: item[1].ap)[:_MOST_CURVES]
    if not shown:
        return [table]
    panels = {f"{name}  {100 * curve.ap:.1f}": (RECALLS, curve.at_recalls()) for name, curve in shown}
    which = f"the {_MOST_CURVES} categories with the lowest AP50" if len(curves) > _MOST_CURVES else "all categories"
    caption = f"Precision by recall of boxes at an IoU of {IOU:g}, {which}; beside the name AP50."
    return [table, Plot(precision_recall_plot(panels), "Precision by recall of each category", caption)]


def _confusions(images: list[Detections], names: list[str]) -> list[Block]:
    matrix = confusion(images, len(names))
    rows, columns = [*names, "nothing there"], [*names, "not found"]
    caption = (
        f"Rows are objects, columns what is detected there with a score of at least {SHOWN:g} and an IoU of at least "
        f"{IOU:g}, whatever its category."
    )
    errors = most_confused(matrix, rows, columns)
    worst = Table(["object", "detected as", "times"], errors, "The most frequent errors.", texts=2)
    if len(names) > MOST_IN_MATRIX:
        return [Note(caption), worst]
    alt = "Confusion matrix of detection"
    return [Plot(matrix_plot(matrix, rows, columns, "detected", "object"), alt, caption), worst]


def _calibration(images: list[Detections]) -> list[Block]:
    kept = [(i.scores >= LOWEST_DETECTION) & (i.found != IGNORED) for i in images]
    scores = np.concatenate([i.scores[k] for i, k in zip(images, kept)])
    right = np.concatenate([i.found[k] >= 0 for i, k in zip(images, kept)])
    of = f"detections with a score of at least {LOWEST_DETECTION:g}"
    return calibration_blocks(scores, right, of, "score", f"share right (IoU {IOU:g})")


def _pictures(evaluation: Evaluation, images: list[Detections]) -> list[Block]:
    # Of equally bad images the one with more errors is worse, of equally good ones that with more objects better.
    shown = [image.above(SHOWN) for image in images]
    with_objects = [image for image in shown if len(image.object_classes)] or shown
    worst, best = extremes(with_objects, lambda image: (image.quality, _weight(image)))
    note = Note(
        f"Boxes with a score of at least {SHOWN:g}, ordered by F1 at an IoU of {IOU:g}. Blue: finds an object of its "
        "category. Red: does not. Dashed: an object that nothing finds."
    )
    return [note, *galleries(worst, best, lambda image: _card(evaluation, image))]


def _weight(image: Detections) -> float:
    size = len(image.classes) + len(image.object_classes)
    return size if image.quality == 1 else -size


def _card(evaluation: Evaluation, image: Detections) -> Card:
    names = evaluation.names
    boxes = [Box(tuple(image.object_boxes[i]), "missed", names[image.object_classes[i]]) for i in image.missed]
    wrong = []
    for corners, score, category, found in zip(image.boxes, image.scores, image.classes, image.found):
        label = f"{names[category]} {100 * score:.0f}"
        if found != IGNORED:
            boxes.append(Box(tuple(corners), "right" if found >= 0 else "wrong", label))
        if found < 0 and found != IGNORED:
            wrong.append(label)
    missed = [names[c] for c in image.object_classes[image.missed]]
    record = evaluation.records[image.image]
    lines = [Line.of(f"image {image.image}, F1 {100 * image.quality:.0f}", "pale")]
    lines += [
        Line.of(_listed(words), label=label) for label, words in (("not found", missed), ("wrong", wrong)) if words
    ]
    return Card([picture(record["file_name"], boxes, f"Detections of image {image.image}")], lines)


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _NAMED_ERRORS} more" if len(words) > _NAMED_ERRORS else ""
    return ", ".join(words[:_NAMED_ERRORS]) + more
