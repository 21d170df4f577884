"""Masked language modelling: the representation at a masked position is compared with the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ..data import load_texts
from ..data.datasets.captioned import training_texts
from ..data.datasets.records import Records
from ..data.datasets.text_shards import TextShards
from ..data.datasets.texts import build_tokenizer
from ..data.mappers.texts import EachTokenOnceMapper, TextMapper, each_token_once
from ..data.samples import NOT_PREDICTED, TextSample
from ..evaluation import LanguageModellingEvaluator
from ..kinds import ConfiguredTask, TaskKind, TaskSettings, setting
from ..modeling.decoder import TEXT_TO_TEXT, Attributes, Segment
from ..modeling.model import UniPerceiver
from ..ranks import mean_divisor, sum_over_ranks
from ..transfer import send
from .task import Task, log_accuracy
from .vocabulary import vocabulary_logits


@dataclass(frozen=True, kw_only=True)
class LanguageModellingSettings(TaskSettings):
    """Settings of language modelling."""

    masked_share: float = setting(0.15, "of a text's tokens, those to be predicted in training", above=0, at_most=1)
    vocabulary_sample: int = setting(
        4096, "words beside the batch's own that training compares with; 0 for all words", at_least=0
    )


class LanguageModellingTask(Task):
    """Masked language modelling as in RoBERTa: a position sees the text on both sides.

    Inputs: :class:`~uniperceiver_v2.data.samples.TextSample`. Predictions for the M masked tokens in their order:
    "log_likelihoods" [M] of the right tokens among the whole vocabulary, and "correct" [M] bool, whether the right
    token is the most likely one.
    """

    def losses(self, model: UniPerceiver, inputs: Sequence[TextSample]) -> dict[str, Tensor]:
        features, words, _ = self._masked(model, inputs)
        logits, labels = vocabulary_logits(model, features, words, TEXT_TO_TEXT, self.settings.vocabulary_sample)
        hits, count = sum_over_ranks((logits.argmax(-1) == labels).sum(), len(labels))
        log_accuracy("word_accuracy", hits, count)
        return {"loss_word": F.cross_entropy(logits, labels, reduction="sum") / mean_divisor(count)}

    def loss_count(self, inputs: Sequence[TextSample]) -> int:
        return sum(int((x["labels"] != NOT_PREDICTED).sum()) for x in inputs)

    def predict(self, model: UniPerceiver, inputs: Sequence[TextSample]) -> list[dict]:
        log_likelihoods, words, counts = self.word_likelihoods(model, inputs)
        right = log_likelihoods.gather(-1, words[:, None]).squeeze(-1)
        correct = log_likelihoods.argmax(-1) == words
        return [
            {"log_likelihoods": likely, "correct": hit}
            for likely, hit in zip(right.split(counts), correct.split(counts))
        ]

    def word_likelihoods(self, model: UniPerceiver, inputs: Sequence[TextSample]) -> tuple[Tensor, Tensor, list[int]]:
        """log P [K,V] of the whole vocabulary at all masked positions of the batch, the words [K] in the labels there,
        and the number of masked positions of each input."""
        features, words, counts = self._masked(model, inputs)
        vocabulary = model.vocabulary(TEXT_TO_TEXT)
        log_likelihoods = model.likelihood.of_directions(features, vocabulary).log_softmax(-1)
        return log_likelihoods, send(words, features.device), counts

    @staticmethod
    def _masked(model: UniPerceiver, inputs: Sequence[TextSample]) -> tuple[Tensor, Tensor, list[int]]:
        """Representations [K,d] of all masked positions of the batch, the right tokens [K] on the host, and the number
        of masked tokens of each input."""
        token_ids, valid = model.text_encoder.pad([x["token_ids"] for x in inputs])
        tokens = model.text_encoder(token_ids, valid)
        labels = torch.nn.utils.rnn.pad_sequence([x["labels"] for x in inputs], True, NOT_PREDICTED).cpu()
        masked = labels != NOT_PREDICTED
        counts = masked.sum(1).tolist()
        # Each row's masked positions in their order. Rows with fewer of them are filled up with other positions.
        positions = masked.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, max(counts))]
        text = Segment(tokens, valid, Attributes("text", "input", TEXT_TO_TEXT))
        decoded = model.decoder.read_last([text], send(positions, model.device)).flatten(0, 1)
        (taken,) = masked.gather(1, positions).flatten().nonzero(as_tuple=True)
        return decoded[send(taken, model.device)], labels[masked], counts


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records | TextShards, TextMapper]:
    tokenizer = build_tokenizer(cfg)
    return training_texts(task.settings.datasets, tokenizer), TextMapper(
        task.name, tokenizer, task.settings.masked_share
    )


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, EachTokenOnceMapper]:
    tokenizer = build_tokenizer(cfg)
    records = each_token_once(load_texts(dataset_name, tokenizer), tokenizer)
    return records, EachTokenOnceMapper(task.name, tokenizer)


LANGUAGE_MODELLING = TaskKind(
    name="language_modelling",
    settings=LanguageModellingSettings,
    task=LanguageModellingTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"corpus": LanguageModellingEvaluator},
    columns={"accuracy": 1, "perplexity": 2},
)
