"""Masked language modelling: how likely its words are, the worst and best texts."""

from __future__ import annotations

import math

from ..blocks import Block, Plot, Table
from ..plots import histogram_plot
from ..run import Evaluation, Missing
from .part import Part, extremes

_FEWEST_TOKENS = 3  # in a text that is shown: of fewer, chance decides
_LONGEST = 160  # characters


def language_modelling(evaluation: Evaluation) -> list[Part]:
    """The parts of a corpus."""
    return [
        Part("How likely the masked tokens are", lambda: _distribution(evaluation)),
        Part("Worst and best texts", lambda: _texts(evaluation)),
    ]


def _per_token(record: dict) -> float:
    return record["log_likelihood"] / record["tokens"]


def _distribution(evaluation: Evaluation) -> list[Block]:
    values = [math.exp(_per_token(r)) for r in evaluation.json("predictions.json") if r["tokens"]]
    if not values:
        raise Missing("no token was masked")
    uri = histogram_plot(values, "probability of the right token, mean of a text (geometric)", "texts")
    return [Plot(uri, "How often each mean probability of the right token occurs among the texts")]


def _texts(evaluation: Evaluation) -> list[Block]:
    records = [r for r in evaluation.json("predictions.json") if r["tokens"] >= _FEWEST_TOKENS]
    worst, best = extremes(records, _per_token)
    columns = ["text", "masked", "right", "probability"]
    caption = "{} texts, with the geometric mean of the probabilities of their masked tokens."
    return [
        Table(columns, [_row(evaluation, r) for r in of], caption.format(which), decimals=3)
        for which, of in (("The worst", worst), ("The best", best))
        if of
    ]


def _row(evaluation: Evaluation, record: dict) -> list[str | float]:
    text = evaluation.records[record["text_id"]]["text"]
    shown = text if len(text) <= _LONGEST else text[: _LONGEST - 2] + " …"
    return [shown, record["tokens"], record["correct"], math.exp(_per_token(record))]
