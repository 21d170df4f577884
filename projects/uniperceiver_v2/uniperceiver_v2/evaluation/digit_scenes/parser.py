"""From a caption to its claims, and the digits and colours that it names.

The language is that of digit_scenes' references (datasets/digit_scenes_texts.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .claims import ALL, EXTREMES, RELATIONS, Claim, Extreme, Group, Inventory, Place, Places, Relation, Row, Share

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white")
PLURALS = {"sixes" if name == "six" else name + "s": name for name in NAMES}
_NUMBERS = {name: number for number, name in enumerate(NAMES)}
_KINDS = {"digit": None, **dict(zip(NAMES, NAMES))}  # by the word for one of them
_KINDS_PLURAL = {"digits": None, **PLURALS}


def _any_of(words: Iterable[str]) -> str:
    return "|".join(words)


_COLOUR, _SIZE, _NUMBER = _any_of(COLOURS), "small|large", _any_of(_NUMBERS)
_GROUP = re.compile(rf"(?:an?|(?P<count>{_NUMBER})) (?:(?P<size>{_SIZE}) )?(?:(?P<colour>{_COLOUR}) )?(?P<kind>[a-z]+)")
_CROWD = re.compile(rf"a crowd of tiny (?P<colour>{_COLOUR}) (?P<kind>[a-z]+)")
_OPENING = re.compile(
    r"(?:a picture of|there is|there are|this scene shows|we see|an image with|a scene with|handwritten digits:"
    r"|the digits here are) "
)
_ROW = re.compile(r"from (left to right|top to bottom): (.+)")
_EXTREME = re.compile(rf"the ({_any_of(EXTREMES)}) digit is (.+)")
_SHARE = re.compile(rf"({_NUMBER}) digits, (all|{_NUMBER}) of them ({_COLOUR})")
_RELATION = re.compile(rf"(.+) ({_any_of(RELATIONS)}) (.+)")
_PLACE = re.compile(
    r"(?P<group>.+) (?:in the (?P<row>top|bottom) (?P<column>left|right)|at the (?P<only_row>top|bottom)"
    r"|on the (?P<only_column>left|right)|in the middle)"
)
_CELLS = {"top": 0, "left": 0, None: 1, "bottom": 2, "right": 2}
# A number word is a number where it says how many, and else a digit.
_COUNT = re.compile(
    rf"\b(?:{_NUMBER})(?= (?:of them|(?:(?:{_SIZE}) )?(?:(?:{_COLOUR}) )?(?:{_any_of(_KINDS_PLURAL)}))\b)"
)
_WORD = re.compile(r"[a-z]+")


def parse(caption: str) -> Claim | None:
    """What a caption claims; None where it is not of the language."""
    text = plain(caption)
    for form in (_parse_row, _parse_extreme, _parse_share, _parse_relation, _parse_places, _parse_inventory):
        claim = form(text)
        if claim is not None:
            return claim
    return None


def named(caption: str) -> tuple[list[str], list[str]]:
    """The digits and the colours that any text names, each as often as it does."""
    words = [match[0] for match in names_in(plain(caption))]
    digits = [PLURALS.get(word, word) for word in words if word in PLURALS or word in NAMES]
    return digits, [word for word in words if word in COLOURS]


def names_in(text: str) -> list[re.Match[str]]:
    """The words of a plain text, without the number words that say how many."""
    return list(_WORD.finditer(_COUNT.sub(lambda match: " " * len(match[0]), text)))


def plain(caption: str) -> str:
    """In lower case, with single spaces, none before a comma or colon, and without a full stop."""
    text = " ".join(caption.lower().split())
    return re.sub(r" ([,:.])", r"\1", text).removesuffix(".")


def _parse_row(text: str) -> Claim | None:
    if not (match := _ROW.fullmatch(text)):
        return None
    parts = match[2].split(", ")
    names_alone = [Group(1, part, None) for part in parts if part in NAMES]
    groups = names_alone if len(names_alone) == len(parts) else _singles(parts)
    axis = "x" if match[1] == "left to right" else "y"
    return Row(axis, tuple(groups)) if groups else None


def _parse_extreme(text: str) -> Claim | None:
    match = _EXTREME.fullmatch(text)
    groups = _singles([match[2]]) if match else None
    return Extreme(match[1], groups[0]) if groups else None


def _parse_share(text: str) -> Claim | None:
    if not (match := _SHARE.fullmatch(text)):
        return None
    number = ALL if match[2] == "all" else _NUMBERS[match[2]]
    return Share(_NUMBERS[match[1]], number, match[3])


def _parse_relation(text: str) -> Claim | None:
    if not (match := _RELATION.fullmatch(text)):
        return None
    first, second = _groups([match[1], match[3]]) or (None, None)
    return None if first is None else Relation(first, match[2], second)


def _parse_places(text: str) -> Claim | None:
    places = []
    for part in re.split(r", | and ", text):
        match = _PLACE.fullmatch(part)
        group = _group(match["group"], with_size=True) if match else None
        if group is None or group.count != 1 or group.is_crowd:
            return None
        row, column = (_CELLS[match[axis] or match[f"only_{axis}"]] for axis in ("row", "column"))
        places.append(Place(group, row, column))
    return Places(tuple(places))


def _parse_inventory(text: str) -> Claim | None:
    opening = _OPENING.match(text)
    groups = _groups(re.split(r", | and ", text[opening.end() if opening else 0 :]))
    return Inventory(tuple(groups)) if groups else None


def _singles(texts: list[str]) -> list[Group] | None:
    """Groups of one digit each, with their colours; None if one is not."""
    groups = _groups(texts)
    return groups if groups and all(group.count == 1 and not group.is_crowd for group in groups) else None


def _groups(texts: list[str]) -> list[Group] | None:
    groups = [_group(text) for text in texts]
    return None if None in groups else groups


def _group(text: str, with_size: bool = False) -> Group | None:
    """None if the text speaks of no group, or of a size where none may be said."""
    if crowd := _CROWD.fullmatch(text):
        kind = _KINDS_PLURAL.get(crowd["kind"])
        return None if kind is None else Group(1, kind, crowd["colour"], is_crowd=True)
    match = _GROUP.fullmatch(text)
    if not match or (match["size"] and not with_size):
        return None
    count = _NUMBERS[match["count"]] if match["count"] else 1
    kinds = _KINDS if count == 1 else _KINDS_PLURAL
    return Group(count, kinds[match["kind"]], match["colour"], match["size"]) if match["kind"] in kinds else None
