"""Where in a caption its mentions stand, so that the false ones can be marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .claims import EXTREMES, RELATIONS, Mention
from .parser import COLOURS, NAMES, PLURALS, names_in, plain

_NUMBER = "|".join(NAMES)
_KIND = "|".join((*NAMES, *PLURALS, "digit", "digits"))
_FORMS = {
    # A number word or an article is a count where a group follows it: "two red threes", "a crowd of tiny threes".
    "counts": re.compile(
        rf"\b(?:an?|{_NUMBER})(?= (?:(?:small|large) )?(?:(?:{'|'.join(COLOURS)}) )?(?:{_KIND})\b)"
        rf"|\ba crowd(?= of tiny)|\b(?:all|{_NUMBER})(?= of them)"
    ),
    "places": re.compile(
        r"\bin the (?:(?:top|bottom) (?:left|right)|middle)\b|\bat the (?:top|bottom)\b|\bon the (?:left|right)\b"
    ),
    "relations": re.compile(
        rf"\b(?:{'|'.join(RELATIONS)})\b|^from (?:left to right|top to bottom)\b|\b(?:{'|'.join(EXTREMES)})(?= digit)"
    ),
}


@dataclass(frozen=True)
class Span:
    """``text[start:end]`` of a plain caption is a mention of this sort."""

    start: int
    end: int
    sort: str
    is_true: bool


def mention_spans(caption: str, mentions: Sequence[Mention]) -> tuple[str, list[Span]]:
    """The plain text of a caption, and where its mentions stand in it.

    Args:
        caption: any text.
        mentions: of its :class:`~.truth.Verdict`, which have those of a sort in the order of the text.

    Returns:
        the text, and spans in its order. A sort is left out if its words and its mentions are not as many. Then it is
        not known which is which.
    """
    text = plain(caption)
    spans = []
    for sort in dict.fromkeys(of for of, _ in mentions):
        truths = [true for of, true in mentions if of == sort]
        places = list(_places(text, sort))
        if len(places) == len(truths):
            spans += [Span(*place, sort, true) for place, true in zip(places, truths)]
    return text, sorted(spans, key=lambda span: span.start)


def _places(text: str, sort: str) -> Iterator[tuple[int, int]]:
    if sort in _FORMS:
        yield from (match.span() for match in _FORMS[sort].finditer(text))
        return
    words = (*NAMES, *PLURALS) if sort == "digits" else COLOURS
    yield from (match.span() for match in names_in(text) if match[0] in words)
