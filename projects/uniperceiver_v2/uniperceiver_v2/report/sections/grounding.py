"""Grounding: calibration of scores, and the worst and best phrases."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..blocks import Block, Box, Card, Gallery, Line, Note
from ..calibration import calibration_blocks
from ..matching import IOU, ious
from ..pictures import picture
from ..run import Evaluation
from .part import EXAMPLES, Part, extremes, galleries


@dataclass(frozen=True)
class _Answer:
    """The best box of a phrase: its IoU with the nearest box of what the phrase means."""

    record: dict
    phrase: dict
    score: float
    iou: float

    @property
    def is_right(self) -> bool:
        return self.iou >= IOU


def grounding(evaluation: Evaluation) -> list[Part]:
    """The parts of a dataset of phrases."""
    answers = functools.cache(lambda: _answers(evaluation))
    return [
        Part("Calibration of scores", lambda: _calibration(answers())),
        Part("Worst and best phrases", lambda: _phrases(evaluation, answers())),
        Part("Phrases for which nothing is there", lambda: _nothing(evaluation, answers())),
    ]


def _answers(evaluation: Evaluation) -> list[_Answer]:
    """The first answer for each phrase that has one."""
    return [
        _Answer(record, phrase, phrase["scores"][0], _iou(phrase))
        for record in evaluation.json("predictions.json")
        for phrase in record["phrases"]
        if phrase["found"]
    ]


def _iou(phrase: dict) -> float:
    if not phrase["boxes"]:
        return 0.0
    return float(ious(np.array(phrase["found"][:1], float), np.array(phrase["boxes"], float)).max())


def _calibration(answers: list[_Answer]) -> list[Block]:
    scores, right = [a.score for a in answers], [a.is_right for a in answers]
    return calibration_blocks(scores, right, "phrases", "score of the best box", f"share right (IoU {IOU:g})")


def _phrases(evaluation: Evaluation, answers: list[_Answer]) -> list[Block]:
    meaning = [answer for answer in answers if answer.phrase["boxes"]]
    worst, best = extremes(meaning, lambda a: (a.is_right, a.score if a.is_right else -a.score))
    note = Note(
        f"The best box of a phrase. Blue: right at an IoU of {IOU:g}. Red: wrong. Dashed: what the phrase means. The "
        "worst are wrong with the highest scores, the best right with the highest scores."
    )
    return [note, *galleries(worst, best, lambda answer: _card(evaluation, answer))]


def _nothing(evaluation: Evaluation, answers: list[_Answer]) -> list[Block]:
    meaningless = [answer for answer in answers if not answer.phrase["boxes"]]
    if not meaningless:
        return [Note("Every phrase of this dataset means something in its image.")]
    worst = sorted(meaningless, key=lambda a: -a.score)[:EXAMPLES]
    note = Note("The image shows nothing that the phrase means, so no box is right. The highest scores come first.")
    return [note, Gallery([_card(evaluation, answer) for answer in worst])]


def _card(evaluation: Evaluation, answer: _Answer) -> Card:
    boxes = [Box(tuple(box), "missed") for box in answer.phrase["boxes"]]
    style = "right" if answer.is_right else "wrong"
    boxes.append(Box(tuple(answer.phrase["found"][0]), style, f"{100 * answer.score:.0f}"))
    alt = f"Image {answer.record['image_id']}: {answer.phrase['phrase']}"
    lines = [Line.of(f"“{answer.phrase['phrase']}”")]
    if answer.phrase["boxes"]:
        lines.append(Line.of(f"IoU {answer.iou:.2f}", "pale"))
    return Card([picture(evaluation.file_name(answer.record), boxes, alt)], lines)
