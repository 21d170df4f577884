"""The expected calibration error, against values that were counted by hand."""

import numpy as np
import pytest

from uniperceiver_v2.report.blocks import Note, Plot
from uniperceiver_v2.report.calibration import Reliability, calibration_blocks


def test_the_error_is_the_mean_distance_of_the_bins():
    # Two bins: 0.7..0.8 with 4 predictions of which 2 are right, and 0.9..1 with one that is right.
    found = Reliability.of([0.7, 0.72, 0.74, 0.76, 1.0], [1, 0, 1, 0, 1])
    assert found.count.tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 0, 1]
    assert found.error == pytest.approx((4 * abs(0.73 - 0.5) + 1 * 0) / 5)
    assert found.bias == pytest.approx((4 * (0.73 - 0.5) + 0) / 5)


def test_scores_that_are_true_have_no_error():
    rng = np.random.default_rng(0)
    scores = rng.random(100_000)
    assert Reliability.of(scores, rng.random(100_000) < scores).error < 0.01
    shy = Reliability.of(scores / 2, rng.random(100_000) < scores)
    assert shy.error == pytest.approx(0.25, abs=0.01)
    assert shy.bias == pytest.approx(-0.25, abs=0.01)


def test_shares_count_as_outcomes():
    assert Reliability.of([0.5, 0.5], [0.25, 0.75]).error == pytest.approx(0)


@pytest.mark.parametrize(("scores", "outcomes"), [([0.5], [1, 0]), ([1.5], [1]), ([float("nan")], [1])])
def test_what_are_no_scores_is_refused(scores, outcomes):
    with pytest.raises(ValueError):
        Reliability.of(scores, outcomes)


def test_without_predictions_there_is_a_note():
    assert np.isnan(Reliability.of([], []).error)
    (note,) = calibration_blocks([], [], "images", "score", "right")
    assert note.is_gap


def test_the_sentence_says_error_and_direction():
    note, plot = calibration_blocks([0.9] * 10, [1] * 5 + [0] * 5, "images", "score", "right")
    assert isinstance(note, Note) and isinstance(plot, Plot)
    assert "calibration error 40.0% over 10 images" in note.text
    assert "too sure" in note.text
