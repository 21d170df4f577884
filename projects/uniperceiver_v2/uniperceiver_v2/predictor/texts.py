"""Texts that people give: labels, phrases, and texts with hidden words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.samples import NOT_PREDICTED
from ..errors import UserError
from ..modeling.pretrained import token_ids
from ..reading import require_text
from ..tasks import LanguageModellingTask
from .results import Completion

AT_A_TIME = 32  # texts that are completed together


def names_of(texts: Any, what: str, unique: bool = True) -> tuple[str, ...]:
    """One text or a sequence of them as a tuple.

    Args:
        texts: what the user gave.
        what: the argument's name, for messages.
        unique: whether a text may be given only once.

    Raises:
        UserError: it is empty, holds something else than texts (:func:`require_text`), or has a text twice.
    """
    names = (texts,) if isinstance(texts, str) else tuple(texts)
    if not names:
        raise UserError(f"{what} are empty: give at least one")
    for name in names:
        require_text(name, what)
    if unique and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{what}: {twice!r} is given twice, and would share its probability with itself")
    return names


def complete(model: Any, task: LanguageModellingTask, texts: Sequence[str], count: int) -> list[Completion]:
    """The likeliest words for each hidden word of texts."""
    encoder = model.text_encoder
    special = set(encoder.tokenizer.all_special_ids)
    found = []
    for start in range(0, len(texts), AT_A_TIME):
        ids = [_with_masks(encoder, text) for text in texts[start : start + AT_A_TIME]]
        labels = [torch.where(row == encoder.mask_id, row, NOT_PREDICTED) for row in ids]
        inputs: list[Any] = [{"token_ids": row, "labels": label} for row, label in zip(ids, labels)]
        likelihoods, _, counts = task.word_likelihoods(model, inputs)
        likelihoods[:, sorted(special)] = -torch.inf  # no words
        best = likelihoods.topk(min(count, likelihoods.shape[1] - len(special)))
        for row, values, words in zip(ids, best.values.exp().split(counts), best.indices.split(counts)):
            guesses = [
                tuple(zip(encoder.decode(candidates[:, None]), probabilities.tolist()))
                for candidates, probabilities in zip(words, values)
            ]
            filled = row.clone()
            filled[row == encoder.mask_id] = words[:, 0].cpu()
            found.append(Completion(encoder.decode(filled[None])[0], tuple(guesses)))
    return found


def _with_masks(encoder: Any, text: str) -> Tensor:
    """Token ids [T] of a text in which only the mask has its special meaning.

    Raises:
        UserError: it has no mask, or is too long.
    """
    tokenizer = encoder.tokenizer
    parts = text.split(tokenizer.mask_token)
    if len(parts) == 1:
        raise UserError(f"{text!r} has no {tokenizer.mask_token}, which stands for a hidden word")
    ids = [encoder.bos_id]
    for place, part in enumerate(parts):
        if place:
            ids.append(encoder.mask_id)
        # As in training, the blank before a hidden word is part of it.
        shown = part.rstrip() if place < len(parts) - 1 else part
        ids += token_ids(tokenizer, shown, add_special_tokens=False)["input_ids"] if shown else []
    ids.append(encoder.eos_id)
    if len(ids) > encoder.max_length:
        raise UserError(f"{text[:40]!r}... has {len(ids)} tokens, more than the text encoder's {encoder.max_length}")
    return torch.tensor(ids)
