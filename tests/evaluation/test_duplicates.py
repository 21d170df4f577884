"""Duplicates among detections."""

import math

from uniperceiver_v2.evaluation.duplicates import count_duplicates


def detection(x: float, score: float, image: int = 1, category: int = 1) -> dict:
    """A box 10 pixels wide and high. Moved by x pixels, it overlaps one at 0 with an IoU of (10 - x) / (10 + x)."""
    return {"image_id": image, "category_id": category, "bbox": [x, 0.0, 10.0, 10.0], "score": score}


def test_a_detection_that_overlaps_a_better_one_of_its_category_is_a_duplicate():
    best = detection(0, 0.9)
    assert count_duplicates([detection(2, 0.5), best]).count == 1
    for other in (detection(3, 0.5), detection(2, 0.5, category=2), detection(2, 0.5, image=2)):
        found = count_duplicates([best, other])
        assert (found.count, found.detections, found.percent) == (0, 2, 0.0)


def test_what_is_below_the_score_neither_counts_nor_makes_duplicates():
    found = count_duplicates([detection(0, 0.29), detection(1, 0.28), detection(0, 0.9, image=2)])
    assert (found.count, found.detections) == (0, 1)
    assert math.isnan(count_duplicates([]).percent)


def test_every_repetition_counts_once_and_the_thresholds_are_arguments():
    """Each of a row of boxes overlaps the one before by more than 0.6; the third doubles the first, too."""
    row = [detection(0, 0.9), detection(1, 0.8), detection(2, 0.7), detection(50, 0.6)]
    assert count_duplicates(row).percent == 50
    assert count_duplicates(row, score=0.75).count == 1
    assert count_duplicates(row, overlap=0.9).count == 0
