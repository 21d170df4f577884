"""Digits and forms of phrases that are left out of training files."""

import json
import re

import pytest


@pytest.fixture(scope="module")
def left_out(prepare):
    from digit_scenes_left_out import LeftOut

    return LeftOut(("red seven", "white one", "blue six"), ("extreme",))


@pytest.fixture(scope="module")
def partial_tree(prepare, left_out, tmp_path_factory):
    """The tree of the other tests without what is left out."""
    output = tmp_path_factory.mktemp("left_out") / "digit_scenes"
    prepare(output, train_scenes=60, test_scenes=20, left_out=left_out)
    return output


def texts_of(tree, split):
    """(captions, phrases, lines of the corpus) of a split."""
    captions, phrases = (
        [a[key] for a in json.loads((tree / f"annotations/{name}_{split}.json").read_text())["annotations"]]
        for name, key in (("captions", "caption"), ("phrases", "phrase"))
    )
    return captions, phrases, (tree / f"corpus/{split}.txt").read_text().splitlines()


def shown_in(tree, split):
    annotations = json.loads((tree / f"annotations/instances_{split}.json").read_text())
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    return {f"{a['color']} {names[a['category_id']]}" for a in annotations["annotations"]}


MENTIONED = re.compile(r"red sevens?\b|white ones?\b|blue six(es)?\b")
EXTREME = re.compile("largest|smallest|leftmost|rightmost|highest|lowest")


def test_training_has_nothing_of_what_is_left_out(tree, partial_tree, left_out):
    assert shown_in(tree, "train") >= {"red seven", "white one"}, "or the test could not fail"
    assert not shown_in(partial_tree, "train") & set(left_out.digits)
    for whole, partial in zip(texts_of(tree, "train"), texts_of(partial_tree, "train")):
        assert any(map(MENTIONED.search, whole)) and not any(map(MENTIONED.search, partial))
        assert len(partial) > 0.8 * len(whole), "the rest is there"
    _, phrases, _ = texts_of(tree, "train")
    captions, partial, corpus = texts_of(partial_tree, "train")
    assert any(map(EXTREME.search, phrases)) and not any(map(EXTREME.search, partial))
    assert any(map(EXTREME.search, captions)) and any(map(EXTREME.search, corpus)), "the words are known"


def test_training_questions_do_not_ask_for_it(tree, partial_tree):
    asked = [
        [q["question"] for q in json.loads((root / "annotations/questions_train.json").read_text())["questions"]]
        for root in (tree, partial_tree)
    ]
    assert any(map(MENTIONED.search, asked[0])) and not any(map(MENTIONED.search, asked[1]))
    assert len(asked[1]) > 0.8 * len(asked[0])


def test_test_scenes_are_the_same(tree, partial_tree):
    for name in ("instances", "captions", "phrases"):
        path = f"annotations/{name}_test.json"
        assert (partial_tree / path).read_bytes() == (tree / path).read_bytes()
    for image in (tree / "images/test").iterdir():
        assert (partial_tree / "images/test" / image.name).read_bytes() == image.read_bytes()


def test_a_tree_is_known_by_what_it_leaves_out(prepare, partial_tree, left_out, tmp_path):
    sizes = {"train_scenes": 60, "test_scenes": 20}
    assert not prepare(partial_tree, **sizes, left_out=left_out), "already there"
    assert prepare(tmp_path / "small", train_scenes=3, test_scenes=1, left_out=left_out)
    assert prepare(tmp_path / "small", train_scenes=3, test_scenes=1), "another tree"


@pytest.mark.parametrize("digits", [("seven",), ("pink seven",), ("red eleven",)])
def test_a_digit_that_does_not_exist_is_refused(prepare, left_out, tmp_path, digits):
    with pytest.raises(ValueError, match=f"'{digits[0]}' is no digit"):
        prepare(tmp_path / "none", left_out=left_out._replace(digits=digits))
    assert not (tmp_path / "none").exists()


def test_a_name_without_a_colour_is_refused(prepare, left_out, tmp_path):
    colours = ("red", "green", "blue", "yellow", "purple", "orange", "white")
    with pytest.raises(ValueError, match="leave a colour of each name"):
        prepare(tmp_path / "none", left_out=left_out._replace(digits=tuple(f"{colour} two" for colour in colours)))
