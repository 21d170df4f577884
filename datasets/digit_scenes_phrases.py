"""Writes the phrases of digit_scenes: words for some of a scene's digits, with the digits that they mean.

A phrase means every digit that it is true of, so "red seven" means both of two red sevens. Where the annotations leave
open whether it is true of one, it is not written: "the leftmost digit" where two stand one below the other, "left of a
three" where the centres are a pixel apart, "red sevens" beside a crowd of red sevens. Some phrases are true of nothing.
All is lower case and a pure function of a NumPy generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from digit_scenes_drawing import CLASS_NAMES, COLOURS_RGB
from digit_scenes_texts import RELATION_MARGIN, Thing, place_phrase, plural, size_word, with_article

TRUE_PHRASES, FALSE_PHRASES = 6, 2  # of a scene, where as many can be found
_ATTEMPTS = 60
_PLACES = tuple(
    f"in the {row} {column}" if row and column else f"at the {row}" if row else f"on the {column}"
    for row in ("top", "", "bottom")
    for column in ("left", "", "right")
    if row or column
) + ("in the middle",)

Found = tuple[str, tuple[int, ...]]  # a phrase, and the places in the list of things that it means


@dataclass(frozen=True)
class Description:
    """What is said of a digit by itself. An empty string says nothing."""

    name: str = ""
    colour: str = ""
    size: str = ""
    place: str = ""

    def fits(self, thing: Thing) -> bool:
        """Whether it is true of a digit; of a crowd, whether it might be of one of its digits."""
        named = self.name in ("", thing.name) and self.colour in ("", thing.colour)
        if thing.is_crowd:
            return named
        return named and self.size in ("", size_word(thing)) and self.place in ("", place_phrase(thing))

    def words(self, count: int) -> str:
        """ "small blue two in the top left"; of any other number than one, "small blue twos in the top left"."""
        noun = self.name or "digit"
        return " ".join(
            word for word in (self.size, self.colour, noun if count == 1 else plural(noun), self.place) if word
        )


# Which of a digit's properties a phrase names, from the words most used to those that are rarely needed.
_FIELDS = (
    ("colour", "name"),
    ("colour", "name"),
    ("name",),
    ("colour",),
    ("size", "colour", "name", "place"),
    ("size", "name"),
    ("colour", "name", "place"),
    ("colour", "place"),
)
_GROUP_FIELDS = ((), (), ("name",), ("colour",))
_SUBJECT_FIELDS = (("colour", "name"), ("name",), ("colour",))
_ANCHOR_FIELDS = (("colour", "name"), ("colour", "name"), ("name",))
# How far the first stands in the direction from the second, in pixels.
_RELATIONS: dict[str, Callable[[Thing, Thing], float]] = {
    "to the left of": lambda a, b: b.x - a.x,
    "to the right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}
_EXTREMES: dict[str, Callable[[Thing], float]] = {
    "largest": lambda t: t.box[3],
    "smallest": lambda t: -t.box[3],
    "leftmost": lambda t: -t.x,
    "rightmost": lambda t: t.x,
    "highest": lambda t: -t.y,
    "lowest": lambda t: t.y,
}


def _one_of(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _described(thing: Thing, fields: Sequence[str]) -> Description:
    """The description that says these things of a digit, and so is true of it."""
    known = {"name": thing.name, "colour": thing.colour, "size": size_word(thing), "place": place_phrase(thing)}
    return Description(**{field: known[field] for field in fields})


def describe(thing: Thing) -> tuple[str, str]:
    """Two descriptions of a digit: "a red seven", and "a small red seven in the top left" with all that is known."""
    short, whole = (_described(thing, fields).words(1) for fields in (("colour", "name"), tuple(vars(Description()))))
    return with_article(short), with_article(whole)


def _fitting(description: Description, things: Sequence[Thing]) -> list[int] | None:
    """Which things a description is true of; None if it might be true of a crowd's digits."""
    found = [index for index, thing in enumerate(things) if description.fits(thing)]
    return None if any(things[index].is_crowd for index in found) else found


def _digit(things: Sequence[Thing], rng: np.random.Generator) -> Thing:
    return _one_of(rng, [thing for thing in things if not thing.is_crowd])


def _number(words: Callable[[int], str], count: int, rng: np.random.Generator) -> str:
    """Words for `count` digits: "red seven", "a red seven", "the red seven"; "red sevens", "all red sevens", ..."""
    if count > 1 and rng.random() < 0.75:
        return _one_of(rng, ("", "the ", "all ")) + words(count)
    singular = words(1)
    forms = [singular, with_article(singular)]
    return _one_of(rng, forms if count > 1 else [*forms, f"the {singular}"])


def _phrase_description(things: Sequence[Thing], rng: np.random.Generator) -> Found | None:
    """ "red seven", "a small blue two in the top left"."""
    description = _described(_digit(things, rng), _one_of(rng, _FIELDS))
    found = _fitting(description, things)
    return None if found is None else (_number(description.words, len(found), rng), tuple(found))


def _phrase_extreme(things: Sequence[Thing], rng: np.random.Generator) -> Found | None:
    """ "the largest digit", "the leftmost red digit", where it is so by a clear margin."""
    group = _described(_digit(things, rng), _one_of(rng, _GROUP_FIELDS))
    word = _one_of(rng, list(_EXTREMES))
    found = _fitting(group, things)
    if found is None or len(found) < 2:
        return None
    first, second = sorted(found, key=lambda index: _EXTREMES[word](things[index]), reverse=True)[:2]
    if _EXTREMES[word](things[first]) - _EXTREMES[word](things[second]) < RELATION_MARGIN:
        return None
    return f"the {word} {group.words(1)}", (first,)


def _phrase_relation(things: Sequence[Thing], rng: np.random.Generator) -> Found | None:
    """ "the white one to the left of a green three", which may be true of nothing."""
    subject = _described(_digit(things, rng), _one_of(rng, _SUBJECT_FIELDS))
    anchor = _described(_digit(things, rng), _one_of(rng, _ANCHOR_FIELDS))
    relation = _one_of(rng, list(_RELATIONS))
    subjects, anchors = _fitting(subject, things), _fitting(anchor, things)
    if subjects is None or anchors is None or subjects == anchors == [subjects[0]]:
        return None
    found = []
    for index in subjects:
        gaps = [_RELATIONS[relation](things[index], things[other]) for other in anchors if other != index]
        if any(gap >= RELATION_MARGIN for gap in gaps):
            found.append(index)
        elif any(gap > 0 for gap in gaps):
            return None  # neither clearly so nor clearly not
    article = f"the {anchor.words(1)}" if len(anchors) == 1 and rng.random() < 0.3 else with_article(anchor.words(1))
    words = _number(subject.words, max(len(found), 1), rng)
    return f"{words} {relation} {article}", tuple(found)


def _phrase_false(things: Sequence[Thing], rng: np.random.Generator) -> Found | None:
    """A digit's description with one word exchanged, which may be true of another digit."""
    fields = _one_of(rng, (("colour", "name"), ("colour", "name"), ("colour", "name", "place"), ("name",)))
    said = vars(_described(_digit(things, rng), fields))
    options = {"name": CLASS_NAMES, "colour": tuple(COLOURS_RGB), "place": _PLACES}
    # Half of the other words are of digits of the scene: a wrong pair of right words is the hardest to tell.
    field = _one_of(rng, fields)
    other = getattr(_described(_digit(things, rng), (field,)), field)
    description = Description(**{**said, field: other if rng.random() < 0.5 else _one_of(rng, options[field])})
    found = _fitting(description, things)
    return None if found is None else (_number(description.words, max(len(found), 1), rng), tuple(found))


_TRUE_TEMPLATES = (_phrase_description, _phrase_description, _phrase_extreme, _phrase_relation)
_FALSE_TEMPLATES = (_phrase_false, _phrase_false, _phrase_relation)


def write_phrases(
    things: Sequence[Thing], rng: np.random.Generator, may_be_said: Callable[[str], bool] = lambda _: True
) -> list[Found]:
    """Different phrases about a scene with at least one digit, those that are true of nothing last. Others than
    ``may_be_said`` are not written."""
    phrases: dict[str, tuple[int, ...]] = {}
    for templates, count, is_true in ((_TRUE_TEMPLATES, TRUE_PHRASES, True), (_FALSE_TEMPLATES, FALSE_PHRASES, False)):
        written = 0
        for _ in range(_ATTEMPTS):
            found = _one_of(rng, templates)(things, rng)
            if found is None or not may_be_said(found[0]):
                continue
            if bool(found[1]) == is_true and found[0] not in phrases:
                phrases[found[0]] = found[1]
                written += 1
            if written == count:
                break
    return list(phrases.items())
