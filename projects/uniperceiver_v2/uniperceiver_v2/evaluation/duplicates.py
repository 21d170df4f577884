"""Duplicates: detections that repeat a better one of the same object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pycocotools import mask


@dataclass(frozen=True)
class Duplicates:
    """`count` of the `detections` above the score are duplicates."""

    count: int
    detections: int

    @property
    def percent(self) -> float:
        """NaN if there is no detection."""
        return 100 * self.count / self.detections if self.detections else float("nan")


def count_duplicates(detections: Iterable[dict], score: float = 0.3, overlap: float = 0.6) -> Duplicates:
    """Counts detections that overlap a higher-scored one of the same image and category.

    Mean average precision hardly notices duplicates with low ranks, but whoever draws all detections above a score
    sees them.

    Args:
        detections: in COCO's format of results, with boxes (x, y, width, height).
        score: detections with lower scores do not count. Scores are as they are shown, calibrated or not.
        overlap: the IoU of boxes from which a detection counts as a duplicate.
    """
    alike = defaultdict(list)
    for detection in detections:
        if detection["score"] >= score:
            alike[detection["image_id"], detection["category_id"]].append(detection)
    count = total = 0
    for group in alike.values():
        group.sort(key=lambda detection: -detection["score"])
        boxes = np.array([detection["bbox"] for detection in group], dtype=float)
        iou = mask.iou(boxes, boxes, [0] * len(boxes))
        count += int((np.tril(iou, -1) >= overlap).any(1).sum())
        total += len(group)
    return Duplicates(count, total)
