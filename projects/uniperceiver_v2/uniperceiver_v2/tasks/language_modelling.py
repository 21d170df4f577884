"""Masked language modelling: what stands behind a mask is compared with the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.mappers.texts import NOT_PREDICTED
from ..modeling.decoder import TEXT_TO_TEXT, Attributes, Segment
from ..ranks import mean_divisor, sum_over_ranks
from .task import Task, log_accuracy, register_task
from .vocabulary import vocabulary_logits

if TYPE_CHECKING:
    from ..modeling.model import UniPerceiver


@register_task("language_modelling")
class LanguageModellingTask(Task):
    """Language modelling as RoBERTa's, in both directions.

    Inputs: "token_ids" [T], some of them masked, and "labels" [T], the token behind each mask and -100 elsewhere.
    Predictions, of the M masked tokens in their order: "log_likelihoods" [M] of the right ones among the whole
    vocabulary, and whether they are the likeliest, "correct" [M] bool.
    """

    def losses(self, model: UniPerceiver, inputs: list[dict]) -> dict[str, Tensor]:
        features, words, _ = self._masked(model, inputs)
        logits, labels = vocabulary_logits(model, features, words, TEXT_TO_TEXT, self.settings["VOCABULARY_SAMPLE"])
        right = logits.argmax(-1) == labels
        count, hits = sum_over_ranks(torch.ones_like(labels).sum(), right.sum())
        log_accuracy("word_accuracy", hits, count)
        return {"loss_word": F.cross_entropy(logits, labels, reduction="sum") / mean_divisor(count)}

    def loss_count(self, inputs: list[dict]) -> int:
        return sum(int((x["labels"] != NOT_PREDICTED).sum()) for x in inputs)

    def predict(self, model: UniPerceiver, inputs: list[dict]) -> list[dict]:
        features, words, counts = self._masked(model, inputs)
        log_likelihoods = model.likelihood.of_directions(features, model.vocabulary(TEXT_TO_TEXT)).log_softmax(-1)
        right = log_likelihoods.gather(-1, words[:, None]).squeeze(-1)
        correct = log_likelihoods.argmax(-1) == words
        return [
            {"log_likelihoods": likely, "correct": hit}
            for likely, hit in zip(right.split(counts), correct.split(counts))
        ]

    @staticmethod
    def _masked(model: UniPerceiver, inputs: list[dict]) -> tuple[Tensor, Tensor, list[int]]:
        """Representations [K,d] at all masked tokens of the batch, the tokens behind them [K], and how many of them
        each input has."""
        token_ids, valid = model.text_encoder.pad([x["token_ids"] for x in inputs])
        tokens = model.text_encoder(token_ids, valid)
        labels = torch.nn.utils.rnn.pad_sequence([x["labels"] for x in inputs], True, NOT_PREDICTED).to(model.device)
        masked = labels != NOT_PREDICTED
        counts = masked.sum(1).tolist()
        # Each row's masked positions in their order, and others where it has fewer than the most.
        positions = masked.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, max(counts))]
        text = Segment(tokens, valid, Attributes("text", "input", TEXT_TO_TEXT))
        decoded = model.decoder.read_last([text], positions)
        return decoded[masked.gather(1, positions)], labels[masked], counts
