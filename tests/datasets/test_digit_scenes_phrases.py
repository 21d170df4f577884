"""Phrases are parsed by a grammar of the tests' own and held against the annotations."""

import json
import re
from collections import Counter

import numpy as np
import pytest

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "digit"]
PLURALS = {("sixes" if name == "six" else name + "s"): name for name in NAMES}
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "white"]
PLACES = r"in the (?:top|bottom) (?:left|right)|at the (?:top|bottom)|on the (?:left|right)|in the middle"
DESCRIPTION = re.compile(
    rf"(?:(?P<article>an?|the|all) )?(?:(?P<size>small|large) )?(?:(?P<colour>{'|'.join(COLOURS)}) )?"
    rf"(?P<noun>{'|'.join([*PLURALS, *NAMES])})(?: (?P<place>{PLACES}))?"
)
EXTREME = re.compile(r"the (largest|smallest|leftmost|rightmost|highest|lowest) (.+)")
MEASURES = {
    "largest": lambda t: t["h"],
    "smallest": lambda t: -t["h"],
    "leftmost": lambda t: -t["x"],
    "rightmost": lambda t: t["x"],
    "highest": lambda t: -t["y"],
    "lowest": lambda t: t["y"],
}
RELATIONS = {
    " to the left of ": lambda a, b: b["x"] - a["x"],
    " to the right of ": lambda a, b: a["x"] - b["x"],
    " above ": lambda a, b: b["y"] - a["y"],
    " below ": lambda a, b: a["y"] - b["y"],
}


def read(tree, name):
    return json.loads((tree / f"annotations/{name}.json").read_text())["annotations"]


def scenes(tree, split):
    """(things by annotation id, [(phrase, annotation ids)]) of each scene."""
    things: dict[int, dict] = {}
    for a in read(tree, f"instances_{split}"):
        x, y, w, h = a["bbox"]
        thing = {"name": NAMES[a["category_id"] - 1], "colour": a["color"], "crowd": bool(a["iscrowd"])}
        things.setdefault(a["image_id"], {})[a["id"]] = thing | {"x": x + w / 2, "y": y + h / 2, "h": h}
    phrases: dict[int, list] = {}
    for a in read(tree, f"phrases_{split}"):
        phrases.setdefault(a["image_id"], []).append((a["phrase"], set(a["annotation_ids"])))
    return [(things[i], phrases[i]) for i in things]


def described(things, text):
    """The digits that a description is true of, and its match; a crowd's digits must be out of the question."""
    match = DESCRIPTION.fullmatch(text)
    assert match, text
    name = PLURALS.get(match["noun"], match["noun"])
    found = set()
    for key, t in things.items():
        if name not in ("digit", t["name"]) or match["colour"] not in (None, t["colour"]):
            continue
        assert not t["crowd"], (text, t)
        column, row = int(t["x"] // 32), int(t["y"] // 32)
        said = " ".join(filter(None, (("top", "", "bottom")[row], ("left", "", "right")[column])))
        place = f"in the {said}" if " " in said else f"at the {said}" if row != 1 else f"on the {said}"
        place = place if said else "in the middle"
        size = "small" if t["h"] < 20 else "large" if t["h"] >= 32 else None
        if match["place"] in (None, place) and match["size"] in (None, size):
            found.add(key)
    return found, match


def check_number(match, count):
    """A plural says more than one, "the" with a singular exactly one, or nothing is so described."""
    assert match["noun"] not in PLURALS or count > 1
    assert match["article"] != "all" or match["noun"] in PLURALS
    assert not (match["article"] == "the" and match["noun"] not in PLURALS and count > 1)
    if match["article"] in ("a", "an"):
        assert (match["article"] == "an") == match[0][3:].startswith(("orange", "eight"))


def meant(things, phrase):
    """The rule of a phrase, and the ids of what it means."""
    for words, gap in RELATIONS.items():
        if words in phrase:
            subject, anchor = phrase.split(words)
            (subjects, match), (anchors, other) = described(things, subject), described(things, anchor)
            assert (
                anchors and other["article"] in ("a", "an", "the") and (other["article"] != "the" or len(anchors) == 1)
            )
            gaps = {s: [gap(things[s], things[a]) for a in anchors if a != s] for s in subjects}
            found = {s for s, all_gaps in gaps.items() if any(value >= 4 for value in all_gaps)}
            assert all(value <= 0 for s in subjects - found for value in gaps[s]), phrase  # clearly not
            check_number(match, len(found))
            return "relation", found
    if match := EXTREME.fullmatch(phrase):
        group, _ = described(things, match[2])
        values = sorted((MEASURES[match[1]](things[key]), key) for key in group)
        assert len(values) > 1 and values[-1][0] - values[-2][0] >= 4, phrase
        return "extreme", {values[-1][1]}
    found, match = described(things, phrase)
    check_number(match, len(found))
    return "place" if match["place"] else "description", found


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_phrase_means_all_that_it_is_true_of(tree, split):
    rules = Counter()
    for things, phrases in scenes(tree, split):
        for phrase, ids in phrases:
            rule, expected = meant(things, phrase)
            assert ids == expected, (phrase, things)
            rules[rule, bool(ids)] += 1
    kinds = {"relation", "extreme", "place", "description"}
    assert rules.keys() == {(kind, True) for kind in kinds} | {(kind, False) for kind in kinds - {"extreme"}}


def test_the_check_of_phrases_can_fail(tree):
    wrong = 0
    for things, phrases in scenes(tree, "train"):
        others = {k: dict(t, colour=COLOURS[(COLOURS.index(t["colour"]) + 1) % 7]) for k, t in things.items()}
        for phrase, ids in phrases:
            try:
                wrong += meant(others, phrase)[1] != ids
            except AssertionError:
                wrong += 1
    assert wrong > 100


def test_how_many_phrases(tree):
    """Six that mean something and two that do not, all different, where a scene has as many."""
    for _, phrases in scenes(tree, "train"):
        assert len(phrases) == len({phrase for phrase, _ in phrases})
        assert 1 <= sum(bool(ids) for _, ids in phrases) <= 6
        assert sum(not ids for _, ids in phrases) == 2
    everything = [ids for split in ("train", "test") for _, phrases in scenes(tree, split) for _, ids in phrases]
    assert len(everything) > 7.5 * 80
    assert sum(len(ids) > 1 for ids in everything) > 20


def test_several_phrases_may_mean_the_same_digit(tree):
    shared = [
        Counter(i for _, ids in phrases for i in ids).most_common(1)[0][1] for _, phrases in scenes(tree, "train")
    ]
    assert np.mean(shared) > 2


def test_phrases_are_of_their_own_splits_digits(tree):
    for split in ("train", "test"):
        own = {a["id"] for a in read(tree, f"instances_{split}") if not a["iscrowd"]}
        samples = {a["id"]: a["sample_ids"] for a in read(tree, f"instances_{split}")}
        for a in read(tree, f"phrases_{split}"):
            assert set(a["annotation_ids"]) <= own
            assert all((i < 1297) == (split == "train") for key in a["annotation_ids"] for i in samples[key])


def test_a_crowd_makes_phrases_about_its_like_ambiguous():
    from digit_scenes_phrases import write_phrases
    from digit_scenes_texts import Thing

    things = [
        Thing("three", "blue", (5, 5, 12, 20)),
        Thing("two", "green", (70, 60, 15, 22)),
        Thing("three", "green", (30, 70, 30, 20), is_crowd=True),
    ]
    phrases = {p for seed in range(60) for p, _ in write_phrases(things, np.random.default_rng(seed))}
    assert "blue three" in phrases and "the green two" in phrases
    assert not phrases & {"three", "green digit", "the largest digit", "a three", "green three"}
    of_any_colour = re.compile(r"(?:^|(?:a|the|all|small|large|green) )(?:threes?|digits?)\b")
    assert [phrase for phrase in phrases if of_any_colour.search(phrase)] == []


def test_the_other_files_do_not_depend_on_the_phrases(prepare, tmp_path, monkeypatch):
    prepare(tmp_path / "with", train_scenes=4, test_scenes=2)
    monkeypatch.setattr("prepare_digit_scenes.write_phrases", lambda *_: [])
    prepare(tmp_path / "without", train_scenes=4, test_scenes=2)
    for path in (tmp_path / "with").rglob("*.*"):
        if path.is_file() and not path.name.startswith(("phrases_", "manifest")):
            assert path.read_bytes() == (tmp_path / "without" / path.relative_to(tmp_path / "with")).read_bytes()
