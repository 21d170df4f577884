"""How much of captions is true of their scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .claims import Mention
from .facts import Scene
from .parser import named, parse

SORTS = ("digits", "colours", "counts", "places", "relations")
METRICS = ("true", *SORTS, "unparsed")


@dataclass(frozen=True)
class Verdict:
    """On a caption of a scene.

    Attributes:
        is_parsed: whether it is of the references' language.
        is_true: whether it is, and all that it claims holds.
        mentions: each of its digits and colours is true if the scene shows one; a count if there are as many; a place
            if there is such a thing; a relation if it holds. Of a caption that is not parsed, digits and colours alone.
    """

    is_parsed: bool
    is_true: bool
    mentions: tuple[Mention, ...]


def judge(caption: str, scene: Scene) -> Verdict:
    """Any text as a caption of a scene."""
    digits, colours = named(caption)
    shown = {thing.name for thing in scene}, {thing.colour for thing in scene}
    mentions = [("digits", name in shown[0]) for name in digits] + [("colours", c in shown[1]) for c in colours]
    claim = parse(caption)
    if claim is None:
        return Verdict(False, False, tuple(mentions))
    return Verdict(True, claim.holds(scene), (*mentions, *claim.mentions(scene)))


def truth_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """In percent: the captions that are true, the mentions of each sort that are, and the captions that are not parsed.

    NaN where there is nothing to judge.
    """
    mentions = [mention for verdict in verdicts for mention in verdict.mentions]
    return {
        "true": _percent([verdict.is_true for verdict in verdicts]),
        **{sort: _percent([true for of, true in mentions if of == sort]) for sort in SORTS},
        "unparsed": _percent([not verdict.is_parsed for verdict in verdicts]),
    }


def _percent(hits: Sequence[bool]) -> float:
    return 100 * sum(hits) / len(hits) if hits else math.nan
