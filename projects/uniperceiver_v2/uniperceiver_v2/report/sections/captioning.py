"""Captioning: captions with their false words marked, how often words are false, calibration.

Where the facts of the images are known (``truth.json`` of the evaluator), a word is false if what it says is not so.
Elsewhere the references stand for the facts: a word is called unsupported if no reference has it.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ...evaluation import mention_spans
from ..blocks import Block, Card, Cell, Gallery, Line, Note, Table
from ..calibration import calibration_blocks
from ..pictures import picture
from ..run import Evaluation, Missing
from .part import Part, at_most, extremes, galleries

_WORD = re.compile(r"\w+", re.UNICODE)
# They are in any caption and say nothing of an image.
_SILENT = re.compile(r"an?|the|of|in|on|at|to|and|or|with|is|are|by|for|from|it|this", re.IGNORECASE)
_MOST_WORDS = 15
_FEWEST_MENTIONS = 5  # of a word whose share of false mentions is listed
_TYPICAL = 12


@dataclass(frozen=True)
class _Judged:
    """A caption with its verdict.

    Attributes:
        record: of predictions.json.
        pieces: of its text, each with "wrong" or "" as style.
        words: (word, whether it is true) for each that was judged.
        unmarked: sorts of false mentions that are at no single word.
        is_true: whether all of it is true; None if that is not known.
        share: of the mentions that are true, in 0..1. 1 without mentions.
    """

    record: dict
    pieces: tuple[tuple[str, str], ...]
    words: tuple[tuple[str, bool], ...]
    unmarked: tuple[str, ...]
    is_true: bool | None
    share: float

    @property
    def per_word(self) -> float:
        """The geometric mean of the probabilities of its words and its end, in 0..1."""
        return math.exp(self.record["log_likelihood"] / (len(_WORD.findall(self.record["caption"])) + 1))


def captioning(evaluation: Evaluation) -> list[Part]:
    """The parts of a dataset of captions."""
    judged = functools.cache(lambda: _judged(evaluation))
    return [
        Part("False words", lambda: _words(judged())),
        Part("Calibration of likelihoods", lambda: _calibration(judged())),
        Part("Worst and best captions", lambda: _worst_and_best(evaluation, judged())),
        Part("Captions from all over the dataset", lambda: _typical(evaluation, judged())),
    ]


def _judged(evaluation: Evaluation) -> list[_Judged]:
    records = evaluation.json("predictions.json")
    if not records:
        raise Missing("no caption was predicted")
    if not evaluation.has("truth.json"):
        return [_by_references(record) for record in records]
    verdicts = {verdict["image_id"]: verdict for verdict in evaluation.json("truth.json")}
    return [_by_facts(record, verdicts[record["image_id"]]) for record in records]


def _by_facts(record: dict, verdict: dict) -> _Judged:
    mentions = [(sort, bool(true)) for sort, true in verdict["mentions"]]
    text, spans = mention_spans(record["caption"], mentions)
    marks = [(span.start, span.end, "" if span.is_true else "wrong") for span in spans]
    placed = {span.sort for span in spans}
    unmarked = tuple(dict.fromkeys(sort for sort, true in mentions if not true and sort not in placed))
    # "a" as a count says little in a list of false words.
    words = tuple((text[s.start : s.end], s.is_true) for s in spans if s.sort != "counts" or text[s.start] != "a")
    share = sum(true for _, true in mentions) / len(mentions) if mentions else 1.0
    return _Judged(record, _cut(text, marks), words, unmarked, bool(verdict["true"]), share)


def _by_references(record: dict) -> _Judged:
    text = record["caption"]
    known = {_stem(word) for reference in record["references"] for word in _WORD.findall(reference.lower())}
    found = [m for m in _WORD.finditer(text) if not _SILENT.fullmatch(m[0])]
    truths = [_stem(m[0].lower()) in known for m in found]
    marks = [(*m.span(), "" if true else "wrong") for m, true in zip(found, truths)]
    words = tuple((m[0].lower(), true) for m, true in zip(found, truths))
    return _Judged(record, _cut(text, marks), words, (), None, sum(truths) / len(truths) if truths else 1.0)


def _stem(word: str) -> str:
    """A plural counts as its singular."""
    return word.removesuffix("s") if len(word) > 3 else word


def _cut(text: str, marks: list[tuple[int, int, str]]) -> tuple[tuple[str, str], ...]:
    """A text in pieces. ``marks`` are (start, end, style) in the order of the text."""

    def pieces() -> Iterator[tuple[str, str]]:
        done = 0
        for start, end, style in marks:
            yield text[done:start], ""
            yield text[start:end], style
            done = end
        yield text[done:], ""

    return tuple(piece for piece in pieces() if piece[0])


def _is_by_facts(judged: list[_Judged]) -> bool:
    return judged[0].is_true is not None


def _words(judged: list[_Judged]) -> list[Block]:
    said = Counter(word for caption in judged for word, _ in caption.words)
    false = Counter(word for caption in judged for word, true in caption.words if not true)
    shown = sorted((w for w in false if said[w] >= _FEWEST_MENTIONS), key=lambda w: (-false[w], w))
    rows: list[list[Cell]] = [[w, said[w], false[w], 100 * false[w] / said[w]] for w in shown]
    what = "false" if _is_by_facts(judged) else "in no reference"
    if not rows:
        return [Note(f"No word that is said {_FEWEST_MENTIONS} times or more is {what}.")]
    caption = f"The words that are most often {what}, among those said {_FEWEST_MENTIONS} times or more."
    return [Table(["word", "said", what, "%"], rows[:_MOST_WORDS], caption)]


def _calibration(judged: list[_Judged]) -> list[Block]:
    outcome = "true statements" if _is_by_facts(judged) else "words that a reference has"
    blocks = calibration_blocks(
        [caption.per_word for caption in judged],
        [caption.share for caption in judged],
        "captions by their words",
        "probability of a word (geometric mean)",
        outcome,
    )
    if _is_by_facts(judged):
        blocks += calibration_blocks(
            [min(math.exp(caption.record["log_likelihood"]), 1.0) for caption in judged],
            [bool(caption.is_true) for caption in judged],
            "whole captions",
            "probability of the caption",
            "share true as a whole",
        )
        text = (
            "Many captions are true of an image, and they share its probability. So a model can be less sure of one "
            "caption than the caption is true, and still be right."
        )
        blocks.append(Note(text))
    return blocks


def _worst_and_best(evaluation: Evaluation, judged: list[_Judged]) -> list[Block]:
    # The worst are wrong and likely, the best right and likely.
    worst, best = extremes(judged, lambda c: (c.share, c.per_word if c.share == 1 else -c.per_word))
    return [_legend(judged), *galleries(worst, best, lambda caption: _card(evaluation, caption))]


def _typical(evaluation: Evaluation, judged: list[_Judged]) -> list[Block]:
    return [_legend(judged), Gallery([_card(evaluation, caption) for caption in at_most(judged, _TYPICAL)])]


def _legend(judged: list[_Judged]) -> Note:
    if _is_by_facts(judged):
        return Note('Underlined in red: what is not so in the image. Where an "a" is underlined, the number is wrong.')
    return Note("Underlined in red: words that no reference of the image has. They need not be false.")


def _card(evaluation: Evaluation, caption: _Judged) -> Card:
    record = caption.record
    lines = [Line(caption.pieces or (("(no caption)", "pale"),))]
    if caption.unmarked:
        lines.append(Line.of(", ".join(caption.unmarked), label="also false"))
    likelihood = f"probability {math.exp(record['log_likelihood']):.2g}, of a word {caption.per_word:.2f}"
    lines += [Line.of(record["references"][0], "pale", "reference"), Line.of(likelihood, "pale")]
    alt = f"Image {record['image_id']}, captioned: {record['caption']}"
    return Card([picture(evaluation.file_name(record), alt=alt)], lines)
