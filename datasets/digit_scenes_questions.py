"""Writes the questions of digit_scenes, each with its answer and its type.

A question has one right answer, which the annotations show. Where they leave it open, it is not asked: "what color is
the seven" where there are two sevens, "how many digits are there" beside a crowd. Half of the questions of the type "is
there" have the answer no, half of their wrong words are true of other digits of the scene. Numbers, and digits as
answers, are written as VQA's rules compare them: "7". All is lower case and a pure function of a NumPy generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from digit_scenes_drawing import CLASS_NAMES, COLOURS_RGB
from digit_scenes_phrases import Description
from digit_scenes_texts import RELATION_MARGIN, Thing, with_article

QUESTIONS_PER_SCENE = 5
ANSWER_TYPES = {
    "is there": "yes/no",
    "how many": "number",
    "what color is the": "other",
    "which digit is": "other",
    "which digit is the": "other",
}
_ATTEMPTS = 40

Asked = tuple[str, str, str]  # question, type, answer


def _one_of(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _true_of(description: Description, things: Sequence[Thing]) -> list[Thing] | None:
    """The things that a description is true of; None if a crowd might be among them."""
    found = [thing for thing in things if description.fits(thing)]
    return None if any(thing.is_crowd for thing in found) else found


def _how_many(things: Sequence[Thing], rng: np.random.Generator) -> Asked | None:
    """ "how many digits are there", "how many red sevens are there", of which there may be none."""
    digit = _one_of(rng, things)
    name = digit.name if rng.random() < 0.7 else _one_of(rng, CLASS_NAMES)
    colour = digit.colour if rng.random() < 0.7 else _one_of(rng, list(COLOURS_RGB))
    description = _one_of(rng, (Description(), Description(name=name), Description(colour=colour)))
    found = _true_of(description, things)
    if found is None:
        return None
    return f"how many {description.words(2)} are there?", "how many", str(len(found))


def _is_there(things: Sequence[Thing], rng: np.random.Generator) -> Asked | None:
    """ "is there a red seven"."""
    wanted = rng.random() < 0.5
    for _ in range(_ATTEMPTS):  # until the answer is the wanted one, so that both are as frequent
        digit, other = _one_of(rng, things), _one_of(rng, things)
        said = {"name": digit.name, "colour": digit.colour}
        if not wanted:
            field = _one_of(rng, ("name", "colour"))
            options = {"name": CLASS_NAMES, "colour": list(COLOURS_RGB)}[field]
            said[field] = getattr(other, field) if rng.random() < 0.5 else _one_of(rng, options)
        description = Description(**said)
        found = _true_of(description, things)
        if found is not None and bool(found) == wanted:
            return f"is there {with_article(description.words(1))}?", "is there", "yes" if found else "no"
    return None


def _what_colour(things: Sequence[Thing], rng: np.random.Generator) -> Asked | None:
    """ "what color is the seven"."""
    found = _true_of(Description(name=_one_of(rng, things).name), things)
    if found is None or len(found) != 1:
        return None
    return f"what color is the {found[0].name}?", "what color is the", found[0].colour


def _which_digit(things: Sequence[Thing], rng: np.random.Generator) -> Asked | None:
    """ "which digit is red"."""
    found = _true_of(Description(colour=_one_of(rng, things).colour), things)
    if found is None or len(found) != 1:
        return None
    return f"which digit is {found[0].colour}?", "which digit is", _number(found[0])


def _which_extreme(things: Sequence[Thing], rng: np.random.Generator) -> Asked | None:
    """ "which digit is the leftmost", where it is so by a clear margin."""
    measures = {
        "leftmost": lambda t: -t.x,
        "rightmost": lambda t: t.x,
        "highest": lambda t: -t.y,
        "lowest": lambda t: t.y,
    }
    word = _one_of(rng, list(measures))
    if len(things) < 2 or any(thing.is_crowd for thing in things):
        return None
    first, second = sorted(things, key=measures[word], reverse=True)[:2]
    if measures[word](first) - measures[word](second) < RELATION_MARGIN:
        return None
    return f"which digit is the {word}?", "which digit is the", _number(first)


def _number(thing: Thing) -> str:
    return str(CLASS_NAMES.index(thing.name))


_TEMPLATES = (_how_many, _how_many, _is_there, _is_there, _what_colour, _which_digit, _which_extreme)


def write_questions(things: Sequence[Thing], rng: np.random.Generator) -> list[Asked]:
    """Different questions about a scene with at least one digit."""
    written: dict[str, Asked] = {}
    for _ in range(_ATTEMPTS):
        asked = _one_of(rng, _TEMPLATES)(things, rng)
        if asked is not None:
            written.setdefault(asked[0], asked)
        if len(written) == QUESTIONS_PER_SCENE:
            break
    return list(written.values())
