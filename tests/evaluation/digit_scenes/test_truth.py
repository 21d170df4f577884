"""The truth of captions, held against the program that writes the references."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniperceiver_v2.evaluation.digit_scenes import claims
from uniperceiver_v2.evaluation.digit_scenes.facts import Thing
from uniperceiver_v2.evaluation.digit_scenes.parser import COLOURS, NAMES, named, parse
from uniperceiver_v2.evaluation.digit_scenes.truth import SORTS, judge, truth_metrics

PLURALS = ["sixes" if name == "six" else name + "s" for name in NAMES]
CLASSES = {  # words that stand for each other
    "colour": COLOURS,
    "digit": NAMES,
    "digits": PLURALS,
    "count": ("two", "three", "four", "five", "six"),
    "side": ("left", "right"),
    "height": ("top", "bottom"),
    "order": ("above", "below"),
    "size": ("small", "large"),
    "extreme": tuple(claims.EXTREMES),
}
SCENE = (
    Thing("seven", "red", (10, 10, 20, 30)),
    Thing("seven", "red", (40, 12, 20, 24)),
    Thing("three", "blue", (70, 60, 14, 18)),
)
GRAMMAR = "a an and of the to in on at is are digit digits them all middle crowd tiny from there scene , : ."
VOCABULARY = [*GRAMMAR.split(" "), *(word for words in CLASSES.values() for word in words)]


def test_every_reference_is_wholly_true(captioned):
    for scene, captions in captioned:
        for caption in captions:
            verdict = judge(caption, scene)
            assert verdict.is_true, caption
            assert verdict.mentions and all(true for _, true in verdict.mentions), caption


def test_thresholds_are_those_of_the_references(texts_program):
    assert claims.SMALL_HEIGHT == texts_program.SMALL_HEIGHT
    assert claims.LARGE_HEIGHT == texts_program.LARGE_HEIGHT
    assert claims.MARGIN == texts_program.RELATION_MARGIN
    assert claims.SCENE_SIZE == texts_program.SCENE_SIZE
    assert list(NAMES) == list(texts_program.CLASS_NAMES)
    assert list(COLOURS) == list(texts_program.COLOURS_RGB)


def changed(caption: str) -> list[str]:
    """All captions that differ from one in a word of the same class, articles apart."""
    found = []
    for match in re.finditer(r"[a-z]+", caption):
        for words in CLASSES.values():
            if match[0] in words:
                found += [
                    caption[: match.start()] + word + caption[match.end() :] for word in words if word != match[0]
                ]
    return [re.sub(r"\ban? (orange|eight)?", lambda m: f"an {m[1]}" if m[1] else "a ", text) for text in found]


def test_a_caption_with_another_word_is_true_only_where_it_could_have_been_written(captioned, sayable):
    """The brute force: every caption that the program could write of the scene."""
    verdicts = {True: 0, False: 0}
    for scene, captions in captioned[::3]:
        possible = sayable(scene)
        assert set(captions) <= possible
        for caption in captions:
            for text in changed(caption):
                expected = text in possible or _all_said_as_a_number(text) in possible
                assert judge(text, scene).is_true == expected, (text, scene)
                verdicts[expected] += 1
    assert verdicts[True] > 50 and verdicts[False] > 5000


def _all_said_as_a_number(text: str) -> str:
    """ "two digits, two of them red" is true, though the program would say "all of them"."""
    return re.sub(r"^(\w+) digits, \1 of", r"\1 digits, all of", text)


def test_a_caption_is_true_of_another_scene_only_where_it_could_have_been_written(captioned, sayable):
    captions = [own[index % 5] for index, (_, own) in enumerate(captioned)]
    agreed = 0
    for scene, _ in captioned[::5]:
        possible = sayable(scene)
        for caption in captions:
            # Lists go from left to right in the references; the order in which a list names things makes it no lie.
            if judge(caption, scene).is_true != (caption in possible):
                assert isinstance(parse(caption), claims.Inventory) and " and " in caption
                assert sorted(re.findall(r"\w+", caption)) in [sorted(re.findall(r"\w+", text)) for text in possible]
            else:
                agreed += caption in possible
    assert agreed > 50


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a blue three and two red sevens", True),  # in any order
        ("there are a red seven, a red seven and a blue three", True),
        ("two red sevens", False),  # something is left out
        ("two red digits and a three", True),
        ("three digits and a blue three", False),  # the three is said twice
        ("two sevens and a three", True),
        ("a picture of two red sevens and a red three", False),
        ("Two red sevens , and a blue three .", False),  # not of the language
        ("Two red sevens and a blue three .", True),
        ("a large red seven", False),
        ("the lowest digit is a blue three", True),
        ("the largest digit is a red seven", True),
        ("the highest digit is a red seven", False),  # the two are as high, but for two pixels
        ("two red sevens above a blue three", True),
        ("a red seven above a blue three", False),  # there are two
        ("three digits, two of them red", True),
        ("three digits, all of them red", False),
        ("three digits, zero of them white", True),
        ("from left to right: seven, seven, three", True),
        ("from left to right: a red seven, a red seven, a blue three", True),
        ("from top to bottom: seven, seven, three", False),
        ("a red seven at the top and a red seven in the top left", True),
        ("a red seven in the top left and a red seven in the top left", False),  # one of them is not there
        ("a small blue three in the bottom right", True),
        ("a blue three in the bottom right", False),  # it is small
        ("a crowd of tiny red sevens and a blue three", False),
    ],
)
def test_what_is_true_of_a_scene(caption, expected):
    assert judge(caption, SCENE).is_true is expected


def test_tiny_digits_of_a_crowd_are_not_counted():
    scene = (*SCENE, Thing("nine", "red", (20, 60, 30, 20), is_crowd=True))
    assert judge("two red sevens, a blue three and a crowd of tiny red nines", scene).is_true
    assert judge("a blue three to the right of a crowd of tiny red nines", scene).is_true
    for caption in (
        "three digits, two of them red",
        "four digits, two of them red",
        "the lowest digit is a blue three",
    ):
        assert not judge(caption, scene).is_true
    assert not judge("a blue three to the right of a crowd of tiny red nines", SCENE).is_true


def test_mentions_of_each_sort():
    def shares(caption):
        verdict = judge(caption, SCENE)
        return {sort: [true for of, true in verdict.mentions if of == sort] for sort in SORTS}

    assert shares("a red seven to the left of two blue fours") == {
        "digits": [True, False],
        "colours": [True, True],
        "counts": [False, False],  # two red sevens, no blue four
        "places": [],
        "relations": [False],
    }
    assert shares("a large red seven at the top and a white three on the left")["places"] == [False, False]
    assert shares("three digits, two of them red")["counts"] == [True, True]
    # Not of the language: what it names is judged all the same.
    assert shares("my two red sevens, one of them zero") == {
        "digits": [True, False],
        "colours": [True],
        **{sort: [] for sort in ("counts", "places", "relations")},
    }


def test_number_words_are_digits_or_counts():
    assert named("two twos and a two") == (["two", "two"], [])
    assert named("six small orange sixes") == (["six"], ["orange"])
    assert named("six digits, one of them white") == ([], ["white"])
    assert named("from left to right: one, two, three") == (["one", "two", "three"], [])


@given(st.lists(st.sampled_from(VOCABULARY), max_size=14).map(" ".join) | st.text(max_size=40))
def test_any_text_gets_a_verdict(text):
    verdict = judge(text, SCENE)
    assert verdict.is_parsed == (parse(text) is not None)
    assert verdict.is_parsed or not verdict.is_true
    digits, colours = named(text)
    found = [sort for sort, _ in verdict.mentions]
    assert found.count("digits") == len(digits) and found.count("colours") == len(colours)


def test_metrics_are_shares_of_all_captions():
    verdicts = [judge(c, SCENE) for c in ("two red sevens and a blue three", "a red seven", "ein 犬", "a white four")]
    metrics = truth_metrics(verdicts)
    assert metrics["true"] == 25 and metrics["unparsed"] == 25
    assert metrics["digits"] == 75 and metrics["colours"] == 75 and metrics["counts"] == 50
    assert math.isnan(metrics["places"]) and math.isnan(metrics["relations"])
    assert all(math.isnan(value) for value in truth_metrics([]).values())
