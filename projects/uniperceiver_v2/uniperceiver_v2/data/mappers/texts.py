"""Masked texts: the mappers of language modelling.

Token ids are int64 [T], with ``<s>`` and ``</s>``. T is at most the text encoder's length.
"""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..datasets.records import Records
from ..datasets.texts import encode
from ..order import entropy_of
from ..samples import NOT_PREDICTED, TextSample

EVALUATION_PASSES = 7  # 1 / 15%, rounded up, so that evaluation masks about the same share as RoBERTa's training


class TextMapper:
    """Training of language modelling: masks a text as in RoBERTa, differently each time.

    The expected share of predicted tokens is exactly ``masked_share``, but at least one token is predicted. 80% of them
    become ``<mask>``, 10% a random token of the vocabulary, and 10% are not changed. Special tokens are never masked or
    drawn.

    Samples are {"task", "text_id", "token_ids", "labels"}. Labels int64 [T] are the tokens to predict, and
    ``NOT_PREDICTED`` elsewhere.

    Args:
        task: the task's name.
        tokenizer: the text encoder's tokenizer.
        masked_share: the share of the tokens to predict, above 0 and at most 1.
    """

    def __init__(self, task: str, tokenizer: PreTrainedTokenizerBase, masked_share: float):
        self._task, self._tokenizer, self._masked_share = task, tokenizer, masked_share
        self._is_word = word_table(tokenizer)
        self._words = np.flatnonzero(self._is_word)

    def __call__(self, record: dict) -> TextSample:
        token_ids = encode(self._tokenizer, record["text"]).numpy()
        positions = np.flatnonzero(self._is_word[token_ids])
        # The fraction of a token is the probability of one more token, so that the expected share is right for any
        # length.
        count = int(self._masked_share * len(positions) + np.random.uniform())
        chosen = np.random.permutation(positions)[: max(count, 1)]
        fate = np.random.uniform(size=len(chosen))
        others = np.random.choice(self._words, size=len(chosen))
        shown = np.where(fate < 0.9, others, token_ids[chosen])
        shown[fate < 0.8] = self._tokenizer.mask_token_id
        return _masked_sample(self._task, record, token_ids, chosen, shown)


class EachTokenOnceMapper:
    """Evaluation of language modelling: each record of :func:`each_token_once` masks its part of a text's tokens.

    Samples are those of :class:`TextMapper`, but all predicted tokens become ``<mask>``. The text alone decides which
    tokens are masked together.

    Args:
        task: the task's kind.
        tokenizer: the text encoder's tokenizer.
    """

    def __init__(self, task: str, tokenizer: PreTrainedTokenizerBase):
        self._task, self._tokenizer = task, tokenizer
        self._is_word = word_table(tokenizer)

    def __call__(self, record: dict) -> TextSample:
        token_ids = encode(self._tokenizer, record["text"]).numpy()
        rng = np.random.default_rng(entropy_of(record["text"]))
        positions = rng.permutation(np.flatnonzero(self._is_word[token_ids]))
        chosen = positions[record["evaluation_pass"] :: EVALUATION_PASSES]
        return _masked_sample(self._task, record, token_ids, chosen, self._tokenizer.mask_token_id)


def each_token_once(records: Records, tokenizer: PreTrainedTokenizerBase) -> Records:
    """Copies of each text with different "evaluation_pass", which together mask every token once.

    A text has seven copies, or fewer if it has fewer tokens.
    """
    is_word = word_table(tokenizer)
    return [
        {**record, "evaluation_pass": number}
        for record in records
        for number in range(min(EVALUATION_PASSES, int(is_word[encode(tokenizer, record["text"])].sum())))
    ]


def word_table(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """For each token id, whether it is not a special token, bool [V]."""
    table = np.ones(len(tokenizer), dtype=bool)
    table[tokenizer.all_special_ids] = False
    return table


def _masked_sample(
    task: str, record: dict, token_ids: np.ndarray, chosen: np.ndarray, shown: np.ndarray | int
) -> TextSample:
    """The sample with the tokens ``shown`` [N] at the positions ``chosen`` [N], and the original tokens there as
    labels."""
    labels, masked = np.full_like(token_ids, NOT_PREDICTED), token_ids.copy()
    labels[chosen] = token_ids[chosen]
    masked[chosen] = shown
    return {
        "task": task,
        "text_id": record["text_id"],
        "token_ids": torch.from_numpy(masked),
        "labels": torch.from_numpy(labels),
    }
