"""Captions are parsed by the tests' own grammar and checked against the annotations."""

import json
import re
from collections import Counter

import numpy as np
import pytest

NUMBERS = dict(zero=0, one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9)
NAMES = list(NUMBERS)[:10]
SINGULAR = {("sixes" if n == "six" else n + "s"): n for n in NAMES} | {n: n for n in NAMES}
SINGULAR |= {"digit": None, "digits": None}
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "white"]
PHRASE = re.compile(
    rf"(?P<count>an?|two|three|four|five|six) (?:(?P<size>small|large) )?(?:(?P<colour>{'|'.join(COLOURS)}) )?"
    rf"(?P<name>{'|'.join(sorted(SINGULAR, key=len, reverse=True))})\b"
)
CROWD = re.compile(rf"a crowd of tiny (?P<colour>{'|'.join(COLOURS)}) (?P<name>\w+)")
RELATIONS = {
    "to the left of": lambda a, b: b["x"] - a["x"],
    "to the right of": lambda a, b: a["x"] - b["x"],
    "above": lambda a, b: b["y"] - a["y"],
    "below": lambda a, b: a["y"] - b["y"],
}
EXTREMES = {
    "largest": lambda t: t["h"],
    "smallest": lambda t: -t["h"],
    "leftmost": lambda t: -t["x"],
    "rightmost": lambda t: t["x"],
    "highest": lambda t: -t["y"],
    "lowest": lambda t: t["y"],
}
PLACE = re.compile(r" (?:in the middle|(?:in|at|on) the (?:(top|bottom) ?)?(left|right)?)$")


def scenes(tree, split):
    things: dict[int, list] = {}
    for a in json.loads((tree / f"annotations/instances_{split}.json").read_text())["annotations"]:
        x, y, w, h = a["bbox"]
        thing = {"name": NAMES[a["category_id"] - 1], "colour": a["color"], "x": x + w / 2, "y": y + h / 2, "h": h}
        things.setdefault(a["image_id"], []).append(thing | {"crowd": bool(a["iscrowd"])})
    captions: dict[int, list] = {}
    for a in json.loads((tree / f"annotations/captions_{split}.json").read_text())["annotations"]:
        captions.setdefault(a["image_id"], []).append(a["caption"])
    assert captions.keys() == things.keys()
    return [(things[i], captions[i]) for i in things]


def matching(things, phrase):
    """The scene's digits that a phrase describes. Checks that their number is the phrase's number."""
    if crowd := CROWD.fullmatch(phrase):
        found = [t for t in things if t["crowd"] and t["colour"] == crowd["colour"]]
        assert [t["name"] for t in found] == [SINGULAR[crowd["name"]]]
        return found
    match = PHRASE.fullmatch(phrase)
    assert match, phrase
    name, colour = SINGULAR[match["name"]], match["colour"]
    found = [t for t in things if not t["crowd"] and name in (None, t["name"]) and colour in (None, t["colour"])]
    expected = 1 if match["count"] in ("a", "an") else NUMBERS[match["count"]]
    assert len(found) == expected, (phrase, found)
    assert (match["count"] == "an") == phrase.startswith(("an orange", "an eight"))
    return found


def check(caption, things):
    """The rule of the grammar that the caption follows. Fails if the caption is not true."""
    for word, relation in RELATIONS.items():
        if f" {word} " in caption:
            first, second = (matching(things, part) for part in caption.split(f" {word} "))
            assert min(relation(a, b) for a in first for b in second) >= 4
            return "relation"
    digits = [t for t in things if not t["crowd"]]
    if match := re.fullmatch(r"from (left to right|top to bottom): (.*)", caption):
        ordered = sorted(things, key=lambda t: t["x" if match[1].startswith("left") else "y"])
        said = [re.sub(r"^an? ", "", part) for part in match[2].split(", ")]
        assert said in ([t["name"] for t in ordered], [f"{t['colour']} {t['name']}" for t in ordered])
        return "row"
    if match := re.fullmatch(r"the (\w+) digit is an? (\w+) (\w+)", caption):
        best = max(things, key=EXTREMES[match[1]])
        assert (best["colour"], best["name"]) == (match[2], match[3])
        return "extreme"
    if match := re.fullmatch(r"(\w+) digits, (\w+) of them (\w+)", caption):
        number = len(digits) if match[2] == "all" else NUMBERS[match[2]]
        assert len(things) == NUMBERS[match[1]] and Counter(t["colour"] for t in things)[match[3]] == number
        return "count"
    if PLACE.search(caption):
        for part in caption.split(" and "):
            check_place(part, digits)
        return "place"
    text = re.sub(
        r"^(a picture of|there is|there are|this scene shows|we see|an image with|a scene with|handwritten digits:"
        r"|the digits here are) ",
        "",
        caption,
    )
    spoken = [t for part in re.split(r", | and ", text) for t in matching(things, part)]
    assert len(spoken) == len(things)  # a list leaves nothing out
    return "list"


def check_place(text, digits):
    place = PLACE.search(text)
    match = PHRASE.fullmatch(text[: place.start()])
    row = {"top": 0, "bottom": 2, None: 1}[place[1]]
    column = {"left": 0, "right": 2, None: 1}[place[2]]
    size = {None: (20, 32), "small": (0, 20), "large": (32, 97)}[match["size"]]
    assert any(
        (t["name"], t["colour"]) == (SINGULAR[match["name"]], match["colour"])
        and size[0] <= t["h"] < size[1]
        and (int(t["y"] // 32), int(t["x"] // 32)) == (row, column)
        for t in digits
    ), text


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_caption_is_true(tree, split):
    rules = Counter(check(caption, things) for things, captions in scenes(tree, split) for caption in captions)
    assert {"relation", "row", "extreme", "count", "place", "list"} == rules.keys()


def test_the_check_of_captions_can_fail(tree):
    things, captions = scenes(tree, "train")[0]
    wrong = [dict(t, colour=COLOURS[(COLOURS.index(t["colour"]) + 1) % 7]) for t in things]
    with pytest.raises(AssertionError):
        check(captions[0], wrong)


def test_five_different_captions_a_scene(tree):
    for _, captions in scenes(tree, "train"):
        assert len(captions) == len(set(captions)) == 5


def test_corpora_are_disjoint_from_each_other_and_from_training_captions(tree):
    train, test = ((tree / f"corpus/{split}.txt").read_text().splitlines() for split in ("train", "test"))
    assert len(train) > 5000 and len(test) > 500
    assert len(set(train)) == len(train) and len(set(test)) == len(test)
    captions = {caption for _, group in scenes(tree, "train") for caption in group}
    assert not set(test) & (set(train) | captions)


def test_arithmetic_of_the_corpus_is_right(tree):
    from digit_scenes_texts import NUMBER_WORDS

    value = {word: number for number, word in enumerate(NUMBER_WORDS)}
    lines = (tree / "corpus/train.txt").read_text().splitlines()
    sums = [m for line in lines if (m := re.fullmatch(r"(\w+) (plus|minus) (\w+) is (\w+)", line))]
    assert len(sums) > 50
    for _, a, sign, b, result in (m.group(0, 1, 2, 3, 4) for m in sums):
        assert value[a] + (1 if sign == "plus" else -1) * value[b] == value[result]


def test_a_crowd_is_never_counted_among_the_digits(tree):
    from digit_scenes_texts import Thing, write_captions

    things = [
        Thing("three", "blue", (5, 5, 12, 20)),
        Thing("two", "red", (70, 60, 15, 22)),
        Thing("three", "green", (30, 70, 30, 20), is_crowd=True),
    ]
    as_annotated = [
        {"name": t.name, "colour": t.colour, "x": t.x, "y": t.y, "h": t.box[3], "crowd": t.is_crowd} for t in things
    ]
    captions = {c for seed in range(40) for c in write_captions(things, np.random.default_rng(seed))}
    assert any("a crowd of tiny green threes" in caption for caption in captions)
    for caption in captions:
        assert check(caption, as_annotated) in ("relation", "place", "list")
