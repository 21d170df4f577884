"""Each mention is found at its words."""

import itertools

import pytest

from uniperceiver_v2.evaluation import mention_spans
from uniperceiver_v2.evaluation.digit_scenes.facts import Thing
from uniperceiver_v2.evaluation.digit_scenes.truth import judge

SCENE = (
    Thing("seven", "red", (5.0, 5.0, 20.0, 25.0)),
    Thing("three", "blue", (40.0, 40.0, 20.0, 25.0)),
    Thing("three", "blue", (70.0, 70.0, 20.0, 25.0)),
)


def false_words(caption):
    text, spans = mention_spans(caption, judge(caption, SCENE).mentions)
    return [(text[span.start : span.end], span.sort) for span in spans if not span.is_true]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red seven to the left of two blue threes", []),
        (
            "A red  seven to the left of two green fours .",
            [("two", "counts"), ("green", "colours"), ("fours", "digits")],
        ),
        ("a red seven to the right of two blue threes", [("to the right of", "relations")]),
        ("there is a red seven and a blue three", [("a", "counts")]),
        ("four digits, two of them blue", [("four", "counts")]),
        ("three digits, all of them blue", [("all", "counts")]),
        ("a red seven in the middle", [("in the middle", "places")]),
        ("a red seven in the top left and a blue three on the left", [("on the left", "places")]),
        ("from left to right: three, seven, three", [("from left to right", "relations")]),
        ("the leftmost digit is a blue three", [("leftmost", "relations")]),
        ("a crowd of tiny blue threes", [("a crowd", "counts")]),
        ("red nine nonsense", [("nine", "digits")]),
        ("", []),
    ],
)
def test_false_words_are_found(caption, expected):
    found = false_words(caption)
    if caption.startswith("A red"):  # the relation to what is not there is false, too
        expected = [("to the left of", "relations"), *expected]
    assert found == expected


def test_every_mention_of_what_the_references_may_say_has_its_place(captioned, sayable):
    """Held against another scene, so that many mentions are false."""
    checked = 0
    for (scene, _), (other, _) in itertools.islice(itertools.pairwise(captioned), 4):
        for caption in sorted(sayable(scene))[:200]:
            mentions = judge(caption, other).mentions
            text, spans = mention_spans(caption, mentions)
            assert sorted((s.sort, s.is_true) for s in spans) == sorted(mentions), caption
            assert all(0 <= a.start < a.end <= b.start for a, b in itertools.pairwise(spans)), text
            checked += len(spans)
    assert checked > 500


def test_a_sort_whose_words_and_mentions_differ_in_number_is_left_out():
    _, spans = mention_spans("a red seven", [("digits", True), ("digits", False), ("colours", False)])
    assert [(span.sort, span.is_true) for span in spans] == [("colours", False)]
