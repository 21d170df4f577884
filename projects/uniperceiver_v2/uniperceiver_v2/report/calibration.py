"""Whether scores mean what they say: of the predictions with a score of 0.8, are 80% right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .blocks import Block, Note, Plot
from .plots import Numbers, reliability_plot

BINS = 10
LOWEST_DETECTION = 0.05  # score of a detection that counts: the many below would hide all others in the mean


@dataclass(frozen=True)
class Reliability:
    """Predictions in ``BINS`` bins of equal width by their confidence.

    Attributes:
        confidence: [BINS], the mean confidence of a bin's predictions. NaN where a bin is empty.
        outcome: [BINS], the share of them that is right.
        count: [BINS], how many they are.
    """

    confidence: np.ndarray
    outcome: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, confidences: Numbers, outcomes: Numbers) -> Reliability:
        """
        Args:
            confidences: [N], of each prediction, in 0..1.
            outcomes: [N], 1 where it is right, 0 where it is wrong, a share where a part of it is right.

        Raises:
            ValueError: their numbers differ, or a confidence is not in 0..1.
        """
        p, y = np.asarray(confidences, float), np.asarray(outcomes, float)
        if p.shape != y.shape or p.ndim != 1:
            raise ValueError(f"{p.shape} confidences and {y.shape} outcomes; expected as many")
        if not ((p >= 0) & (p <= 1 + 1e-6)).all():
            raise ValueError("a confidence is not in 0..1")
        place = np.minimum((p * BINS).astype(int), BINS - 1)
        count = np.bincount(place, minlength=BINS)
        with np.errstate(invalid="ignore"):
            return cls(np.bincount(place, p, BINS) / count, np.bincount(place, y, BINS) / count, count)

    @property
    def error(self) -> float:
        """The expected calibration error (Guo et al., 2017): the mean over the predictions of the distance between a
        bin's confidence and its outcome, in 0..1. NaN without predictions."""
        filled = self.count > 0
        if not filled.any():
            return float("nan")
        distance = np.abs(self.confidence - self.outcome)[filled]
        return float(np.average(distance, weights=self.count[filled]))

    @property
    def bias(self) -> float:
        """Mean confidence less the share that is right: above 0 for a model that is too sure."""
        filled = self.count > 0
        difference = (self.confidence - self.outcome)[filled]
        return float(np.average(difference, weights=self.count[filled])) if filled.any() else float("nan")


def calibration_blocks(confidences: Numbers, outcomes: Numbers, of: str, confidence: str, outcome: str) -> list[Block]:
    """The expected calibration error in a sentence, and the diagram of reliability.

    Args:
        confidences, outcomes: see :meth:`Reliability.of`.
        of: what is counted, in the plural, such as "images".
        confidence, outcome: names of the axes.
    """
    if not len(confidences):
        return [Note(f"There are no {of} to calibrate.", is_gap=True)]
    found = Reliability.of(confidences, outcomes)
    how = "too sure" if found.bias > 0.005 else "not sure enough" if found.bias < -0.005 else "neither too sure nor shy"
    text = (
        f"Expected calibration error {100 * found.error:.1f}% over {len(confidences):,} {of}, in {BINS} bins of equal "
        f"width. On average the model is {how}: confidence {100 * np.mean(confidences):.1f}%, "
        f"outcome {100 * np.mean(outcomes):.1f}%."
    )
    uri = reliability_plot(found.confidence, found.outcome, found.count, confidence, outcome)
    alt = f"Reliability: {outcome} by {confidence}"
    return [Note(text), Plot(uri, alt)]
