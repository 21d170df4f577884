"""CIDEr-D of single captions equals pycocoevalcap's, with the test set itself as the corpus."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from uniperceiver_v2.evaluation.consensus import Consensus

captions = st.lists(st.sampled_from(["a", "red", "seven", "two", "blue"]), min_size=1, max_size=9).map(" ".join)
images = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(images)
def test_equals_pycocoevalcap(found):
    references = {index: of_image for index, (_, of_image) in enumerate(found)}
    candidates = {index: [caption] for index, (caption, _) in enumerate(found)}
    _, expected = Cider().compute_score(references, candidates)
    consensus = Consensus(references.values())
    scores = [consensus.score(caption, of_image) for caption, of_image in found]
    assert scores == pytest.approx(list(expected), abs=1e-9)


def test_words_are_those_of_the_evaluation():
    consensus = Consensus([["A red seven."], ["two blue threes"]])
    assert consensus.score("a RED seven", ["A red seven."]) == pytest.approx(7.5)  # three of four lengths of n-grams
    assert consensus.score("", ["A red seven."]) == 0
    assert consensus.score("four", ["A red seven."]) == 0
