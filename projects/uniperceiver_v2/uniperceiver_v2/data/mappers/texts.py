"""Masked texts: mappers of language modelling.

Token ids are int64 [T], ``<s>`` and ``</s>`` included, T at most the text
encoder's length.
"""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..datasets.records import Records
from ..datasets.texts import encode
from ..order import entropy_of
from ..samples import NOT_PREDICTED, TextSample

EVALUATION_PASSES = 7  # 1 / 15%, rounded up: what is masked at a time in evaluation is as much as in RoBERTa's training


class TextMapper:
    """Training of language modelling: a text masked as RoBERTa's are, anew each time.

    Of its tokens a share is to be predicted, in expectation exactly this share but at least one token. Of these 80%
    become ``<mask>``, 10% a random token of the vocabulary, and 10% stay. Special tokens are never masked or drawn.
    Samples are {"task", "text_id", "token_ids", "labels"}; labels int64 [T] are the tokens to be predicted,
    ``NOT_PREDICTED`` elsewhere.

    Args:
        task: the task's name.
        tokenizer: of the text encoder.
        masked_share: of the tokens, above 0 and at most 1.
    """

    def __init__(self, task: str, tokenizer: PreTrainedTokenizerBase, masked_share: float):
        self._task, self._tokenizer, self._masked_share = task, tokenizer, masked_share
        self._is_word = word_table(tokenizer)
        self._words = np.flatnonzero(self._is_word)

    def __call__(self, record: dict) -> TextSample:
        token_ids = encode(self._tokenizer, record["text"]).numpy()
        positions = np.flatnonzero(self._is_word[token_ids])
        # A fraction of a token is a whole one as often as it says, so that texts of all lengths give their share.
        count = int(self._masked_share * len(positions) + np.random.uniform())
        chosen = np.random.permutation(positions)[: max(count, 1)]
        fate = np.random.uniform(size=len(chosen))
        others = np.random.choice(self._words, size=len(chosen))
        shown = np.where(fate < 0.9, others, token_ids[chosen])
        shown[fate < 0.8] = self._tokenizer.mask_token_id
        return _masked_sample(self._task, record, token_ids, chosen, shown)


class EachTokenOnceMapper:
    """Evaluation of language modelling: of the records of :func:`each_token_once`, each masks its tokens.

    Samples are those of :class:`TextMapper`; all that is predicted is masked. Which tokens are masked together
    depends on nothing but the text.

    Args:
        task: the task's kind.
        tokenizer: of the text encoder.
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
    """Each text as often, with another "evaluation_pass", as masks all of its tokens once: seven times, less for fewer
    tokens."""
    is_word = word_table(tokenizer)
    return [
        {**record, "evaluation_pass": number}
        for record in records
        for number in range(min(EVALUATION_PASSES, int(is_word[encode(tokenizer, record["text"])].sum())))
    ]


def word_table(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """For each token id whether it is no special token, bool [V]."""
    table = np.ones(len(tokenizer), dtype=bool)
    table[tokenizer.all_special_ids] = False
    return table


def _masked_sample(
    task: str, record: dict, token_ids: np.ndarray, chosen: np.ndarray, shown: np.ndarray | int
) -> TextSample:
    """The sample that shows other tokens [N] at chosen positions [N] and asks for those of ``token_ids``."""
    labels, masked = np.full_like(token_ids, NOT_PREDICTED), token_ids.copy()
    labels[chosen] = token_ids[chosen]
    masked[chosen] = shown
    return {
        "task": task,
        "text_id": record["text_id"],
        "token_ids": torch.from_numpy(masked),
        "labels": torch.from_numpy(labels),
    }
