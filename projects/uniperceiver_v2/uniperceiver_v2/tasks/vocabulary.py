"""Words as candidates: the whole vocabulary, or in training a sample of it that is right in expectation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..modeling.decoder import TaskModalities
from ..modeling.model import UniPerceiver


def vocabulary_logits(
    model: UniPerceiver, features: Tensor, targets: Tensor, task: TaskModalities, sample: int
) -> tuple[Tensor, Tensor]:
    """Logits of words for a cross-entropy.

    The sampled set holds the targets themselves and `sample` of all other words, drawn uniformly without replacement,
    anew in each call and on each rank. Each drawn word stands for `others / drawn` words that could have been drawn, so
    that the sum of exp(logits), to which a softmax normalises, is in expectation that of the whole vocabulary
    (importance sampling: Bengio and Senécal, 2008; Jean et al., ACL 2015). That holds for each rank's
    own sample, and several ranks' samples tell more about the vocabulary than one that they share would.

    Args:
        features: [K,d], representations at the positions that say a word each.
        targets: [K], the ids of these words.
        sample: words to draw; 0 for the whole vocabulary.
    Returns:
        logits [K,C] and, for each feature, which of the C is its word [K].
    """
    size = model.text_encoder.vocab_size
    own, labels = targets.unique(return_inverse=True)
    others = size - len(own)
    if not 0 < sample < others:
        return model.likelihood.of_directions(features, model.vocabulary(task)), targets
    is_other = torch.ones(size, dtype=torch.bool, device=targets.device)
    is_other[own] = False
    # On the CPU, whose generator is seeded for each iteration and rank, whatever the device.
    drawn = is_other.nonzero()[torch.randperm(others)[:sample].to(targets.device), 0]
    logits = model.likelihood(features, model.encode_vocabulary(torch.cat([own, drawn]), task))
    correction = torch.full_like(logits[0], math.log(others / sample))
    correction[: len(own)] = 0
    return logits + correction, labels
