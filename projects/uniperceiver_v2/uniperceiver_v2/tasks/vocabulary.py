"""Words as candidates: the whole vocabulary, or in training a random sample with an unbiased denominator of the
softmax."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..modeling.decoder import TaskModalities
from ..modeling.model import UniPerceiver
from ..shared_noise import step_of_noise
from ..transfer import send

_DRAW = 0x70CAB  # what the shared random numbers are for


def vocabulary_logits(
    model: UniPerceiver, features: Tensor, targets: Tensor, task: TaskModalities, sample: int
) -> tuple[Tensor, Tensor]:
    """Logits of words for a cross-entropy.

    The sampled set has the targets and ``sample`` of the other words. These are drawn uniformly without replacement,
    anew in each call and on each rank. Each drawn word stands for ``others / drawn`` words. So the sum of exp(logits),
    which is the denominator of the softmax, has the expectation of the whole vocabulary's sum (importance sampling:
    Bengio and Senécal, 2008; Jean et al., ACL 2015). Each rank draws its own sample, as different samples cover more of
    the vocabulary than one shared sample. With ``CANDIDATES.SPLIT``, all ranks draw one sample and share its encoding.

    Args:
        features: [K,d], representations at the positions that predict a word.
        targets: [K], the ids of the right words, on the host.
        sample: the number of drawn words; 0 for the whole vocabulary.

    Returns:
        logits [K,C] of C candidate words, and the index of each feature's right word among them [K].
    """
    size, targets = model.text_encoder.vocab_size, targets.cpu()
    own, labels = targets.unique(return_inverse=True)
    others = size - len(own)
    if not 0 < sample < others:
        return model.likelihood.of_directions(features, model.vocabulary(task)), send(targets, features.device)
    if model.texts_in_parts.split:
        return _shared_logits(model, features, own, labels, task, sample)
    is_other = torch.ones(size, dtype=torch.bool)
    is_other[own] = False
    # Drawn on the host, so that the sample of a seed, iteration and rank is the same for every device.
    drawn = is_other.nonzero()[torch.randperm(others)[:sample], 0]
    words = send(torch.cat([own, drawn]), features.device)
    logits = model.likelihood(features, model.encode_vocabulary(words, task))
    correction = torch.full_like(logits[0], math.log(others / sample))
    correction[: len(own)] = 0
    return logits + correction, send(labels, features.device)


def _shared_logits(
    model: UniPerceiver, features: Tensor, own: Tensor, labels: Tensor, task: TaskModalities, sample: int
) -> tuple[Tensor, Tensor]:
    """:func:`vocabulary_logits` with a sample that all ranks draw alike from the whole vocabulary, so that each encodes
    a share of it. Each rank leaves out what its own words have already: the rest is a uniform sample of the others.

    Args:
        own, labels: the different words of the targets, and each target's place among them, on the host.
    """
    size = model.text_encoder.vocab_size
    rng = np.random.default_rng((*step_of_noise(), _DRAW))
    drawn = torch.from_numpy(rng.choice(size, sample, replace=False))
    is_own = torch.isin(drawn, own)
    others = size - len(own)
    correction = torch.full((sample,), math.log(others / max(1, sample - int(is_own.sum()))))
    correction = torch.cat((torch.zeros(len(own)), correction.masked_fill_(is_own, -torch.inf)))
    shared = model.encode_vocabulary(send(drawn, features.device), task, shared=True)
    words = torch.cat((model.encode_vocabulary(send(own, features.device), task), shared))
    return model.likelihood(features, words) + send(correction, features.device), send(labels, features.device)
