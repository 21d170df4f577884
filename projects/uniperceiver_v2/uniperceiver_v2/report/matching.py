"""Which detection finds which object, at one IoU: what precision, recall, confusions and calibration are counted from.

The rules are COCO's. Of an image, the best detection of a category chooses first; it takes the object of its category
with the largest IoU among those left. A detection that only a crowd region covers counts neither way.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask

IOU = 0.5
SHOWN = 0.3  # a detection with a lower score is taken as none where the answer of the model is one set of boxes
LIMIT = 100  # detections of an image and category that count, best first
RECALLS = np.linspace(0, 1, 101)  # at which COCO takes precision
NOTHING, IGNORED = -1, -2


def classes_by_id(dataset: str, count: int, is_lvis: bool) -> Mapping[int, int]:
    """{id in COCO's or LVIS's format of results: class} of a dataset of ``count`` classes."""
    known = MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id")
    if known is None:  # then COCO's evaluator writes classes, and LVIS's ids, which begin with 1
        return {index + int(is_lvis): index for index in range(count)}
    return dict(known)


@dataclass
class Detections:
    """Detections of an image, best first, beside its objects.

    Attributes:
        image: its id.
        boxes: [D, 4] (x0, y0, x1, y1) in pixels; scores: [D]; classes: [D].
        object_boxes: [G, 4]; object_classes: [G]; crowd: [G] bool.
        found: [D], the object that a detection finds, ``NOTHING`` or ``IGNORED``.
    """

    image: Any
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    object_boxes: np.ndarray
    object_classes: np.ndarray
    crowd: np.ndarray
    found: np.ndarray

    def above(self, score: float) -> Detections:
        """Without detections of a lower score."""
        kept = self.scores >= score
        own = {name: getattr(self, name)[kept] for name in ("boxes", "scores", "classes", "found")}
        return replace(self, **own)

    @property
    def missed(self) -> np.ndarray:
        """The objects that nothing finds."""
        return np.setdiff1d(np.flatnonzero(~self.crowd), self.found[self.found >= 0])

    @property
    def quality(self) -> float:
        """F1, 2·right / (detections + objects), in 0..1. 1 where there is nothing to find and nothing is found."""
        counted = int((self.found != IGNORED).sum()) + int((~self.crowd).sum())
        return 2 * int((self.found >= 0).sum()) / counted if counted else 1.0


def matched(
    record: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], class_of: Mapping[int, int]
) -> Detections:
    """Match an image's detections with its objects.

    Args:
        record: of the dataset, in Detectron2's format. LVIS's lists of categories are followed: a detection counts
            only if it is known whether the image shows its category.
        detections: in COCO's results format.
        class_of: the class by the id in ``detections``.
    """
    annotations = record.get("annotations", [])
    corners = [BoxMode.convert(list(a["bbox"]), BoxMode(a["bbox_mode"]), BoxMode.XYXY_ABS) for a in annotations]
    object_classes = np.array([a["category_id"] for a in annotations], int)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    boxes = np.array([d["bbox"] for d in detections], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = np.array([class_of[d["category_id"]] for d in detections], int)
    scores = np.array([d["score"] for d in detections], float)
    order = np.argsort(-scores, kind="stable")
    judged = _judged(record, object_classes, class_of)
    if judged is not None:
        order = order[np.isin(classes[order], list(judged))]
    boxes, classes, scores = boxes[order], classes[order], scores[order]
    objects = np.array(corners, float).reshape(-1, 4)
    found = _match(boxes, classes, objects, object_classes, crowd)
    open_classes = [class_of[i] for i in record.get("not_exhaustive_category_ids", []) if i in class_of]
    found[(found == NOTHING) & np.isin(classes, open_classes)] = IGNORED
    return Detections(record["image_id"], boxes, scores, classes, objects, object_classes, crowd, found)


def _judged(record: Mapping[str, Any], present: np.ndarray, class_of: Mapping[int, int]) -> Collection[int] | None:
    """The classes of which an image of LVIS says whether it shows them. None: all."""
    if "neg_category_ids" not in record:
        return None
    return {class_of[i] for i in record["neg_category_ids"] if i in class_of} | set(present.tolist())


def _match(
    boxes: np.ndarray, classes: np.ndarray, objects: np.ndarray, of: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """[D]: the object of each detection, which are best first."""
    found = np.full(len(boxes), NOTHING)
    if not len(objects):
        return found
    overlap = ious(boxes, objects, crowd) * (classes[:, None] == of)
    free = ~crowd
    rank: dict[int, int] = {}
    for detection in range(len(boxes)):
        place = rank[classes[detection]] = rank.get(classes[detection], -1) + 1
        if place >= LIMIT:
            found[detection] = IGNORED
            continue
        candidates = np.where(free, overlap[detection], 0)
        best = int(candidates.argmax())
        if candidates[best] >= IOU:
            found[detection], free[best] = best, False
        elif (overlap[detection][crowd] >= IOU).any():
            found[detection] = IGNORED
    return found


def ious(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """COCO's IoU [D, G] of boxes [D, 4] and [G, 4], (x0, y0, x1, y1). Of a crowd, the share of the detection that it
    covers."""
    detected, present = (np.concatenate((b[:, :2], b[:, 2:] - b[:, :2]), 1) for b in (boxes, objects))
    found = mask.iou(detected, present, [False] * len(objects) if crowd is None else crowd)
    return np.asarray(found).reshape(len(boxes), len(objects))  # of no boxes it is an empty list


@dataclass(frozen=True)
class CategoryCurve:
    """A category's detections as the lowest accepted score falls.

    Attributes:
        objects: how many there are.
        scores: [D], falling; right: [D], how many of the detections up to here find an object.
        precision, recall: [D]; precision is made to fall with recall, as in AP.
    """

    objects: int
    scores: np.ndarray
    right: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    def at_recalls(self) -> np.ndarray:
        """Precision at each of ``RECALLS``, 0 at those that are never reached."""
        return np.append(self.precision, 0)[np.searchsorted(self.recall, RECALLS, side="left")]

    @property
    def ap(self) -> float:
        """COCO's AP at this IoU, in 0..1. NaN without objects."""
        return float(self.at_recalls().mean()) if self.objects else float("nan")

    def at(self, score: float) -> tuple[float, float]:
        """Precision and recall of the detections with at least this score; NaN where there are none to count."""
        shown = int((self.scores >= score).sum())
        right = int(self.right[shown - 1]) if shown else 0
        return right / shown if shown else float("nan"), right / self.objects if self.objects else float("nan")


def category_curves(images: Sequence[Detections], classes: int) -> list[CategoryCurve]:
    """Precision and recall of each category over all images, of which there is one at least."""
    objects = np.bincount(np.concatenate([i.object_classes[~i.crowd] for i in images]), minlength=classes)
    counted = [i.found != IGNORED for i in images]
    category = np.concatenate([i.classes[kept] for i, kept in zip(images, counted)])
    scores = np.concatenate([i.scores[kept] for i, kept in zip(images, counted)])
    right = np.concatenate([i.found[kept] >= 0 for i, kept in zip(images, counted)])
    order = np.lexsort((-scores, category))  # all detections of a category together, best first
    bounds = np.searchsorted(category[order], np.arange(classes + 1))
    own = [order[start:end] for start, end in itertools.pairwise(bounds)]
    return [_curve(int(count), scores[k], right[k]) for count, k in zip(objects, own)]


def _curve(objects: int, scores: np.ndarray, is_right: np.ndarray) -> CategoryCurve:
    """A category's curve from its detections, best first."""
    right = is_right.cumsum()
    recall = right / max(objects, 1)
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    return CategoryCurve(objects, scores, right, precision, recall)


def confusion(images: Sequence[Detections], classes: int, score: float = SHOWN) -> np.ndarray:
    """Counts [classes + 1, classes + 1]: rows are objects' classes, columns those of the detections on them.

    Here a detection takes the object with the largest IoU among those left, of whatever category. The last column has
    objects that nothing finds, the last row detections on nothing.
    """
    matrix = np.zeros((classes + 1, classes + 1), int)
    for image in (image.above(score) for image in images):
        everything = np.zeros(len(image.classes), int), np.zeros(len(image.object_classes), int)
        found = _match(image.boxes, everything[0], image.object_boxes, everything[1], image.crowd)
        for detected, target, own in zip(image.classes, found, image.found):
            if target >= 0:
                matrix[image.object_classes[target], detected] += 1
            elif target == NOTHING and own != IGNORED:
                matrix[classes, detected] += 1
        for missed in np.setdiff1d(np.flatnonzero(~image.crowd), found[found >= 0]):
            matrix[image.object_classes[missed], classes] += 1
    return matrix
