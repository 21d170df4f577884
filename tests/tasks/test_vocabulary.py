"""Sampled vocabularies compared with the whole one."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniperceiver_v2.modeling.decoder import TEXT_TO_TEXT
from uniperceiver_v2.modeling.likelihood import Likelihood, directions
from uniperceiver_v2.modeling.texts_in_parts import TextsInParts
from uniperceiver_v2.shared_noise import noise_of_step
from uniperceiver_v2.tasks.vocabulary import vocabulary_logits

TEMPERATURE = 0.3


class FakeModel:
    """Words are rows of a table. Records the words that were encoded."""

    def __init__(self, words: int, dim: int = 6, seed: int = 0, split: bool = False):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(words, dim, generator=generator).requires_grad_()
        self.likelihood = Likelihood(TEMPERATURE)
        self.text_encoder = SimpleNamespace(vocab_size=words)
        self.texts_in_parts = TextsInParts(split=split)
        self.encoded: list[list[int]] = []

    def encode_vocabulary(self, token_ids: torch.Tensor, task, shared: bool = False) -> torch.Tensor:
        assert task is TEXT_TO_TEXT
        self.encoded.append(token_ids.tolist())
        return self.table[token_ids]

    def vocabulary(self, task) -> torch.Tensor:
        return directions(self.encode_vocabulary(torch.arange(len(self.table)), task))


def plain_logits(features, table, temperature) -> torch.Tensor:
    return (features / features.norm(dim=1, keepdim=True)) @ (table / table.norm(dim=1, keepdim=True)).T / temperature


@settings(max_examples=60, deadline=None)
@given(words=st.integers(2, 30), count=st.integers(1, 12), sample=st.integers(0, 40), seed=st.integers(0, 10**6))
def test_candidates_are_the_targets_and_a_sample_of_the_others(words, count, sample, seed):
    torch.manual_seed(seed)
    model, targets = FakeModel(words), torch.randint(words, (count,))
    features = torch.randn(count, 6)
    with torch.no_grad():
        logits, labels = vocabulary_logits(model, features, targets, TEXT_TO_TEXT, sample)
        whole = plain_logits(features, model.table, TEMPERATURE)
    (candidates,) = model.encoded
    assert len(set(candidates)) == len(candidates) == logits.shape[1]
    assert [candidates[i] for i in labels.tolist()] == targets.tolist()
    others = words - len(set(targets.tolist()))
    assert len(candidates) == words - others + (min(sample, others) if sample else others)
    # The drawn words represent those that were not drawn. If all words were drawn, the weight is 1.
    drawn = torch.tensor([word not in set(targets.tolist()) for word in candidates])
    correction = math.log(others / drawn.sum().item()) if drawn.any() else 0.0
    torch.testing.assert_close(logits, whole[:, candidates] + correction * drawn, atol=1e-5, rtol=1e-5)
    if not 0 < sample < others:
        assert candidates == list(range(words))


@pytest.mark.parametrize("sample", [1, 7, 35])
@torch.no_grad()
def test_partition_function_is_right_in_expectation(sample):
    model, targets = FakeModel(40), torch.tensor([3, 17, 3, 0])
    features = torch.randn(4, 6)
    whole = plain_logits(features, model.table, TEMPERATURE).double().exp().sum(1)
    draws = torch.stack(
        [
            vocabulary_logits(model, features, targets, TEXT_TO_TEXT, sample)[0].double().exp().sum(1)
            for _ in range(1500)
        ]
    )
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error < 0.05 * whole).all()  # precise enough to tell
    assert ((draws.mean(0) - whole).abs() < 4 * error).all()


@torch.no_grad()
def test_other_words_are_drawn_equally_often_and_anew():
    model, targets = FakeModel(12), torch.tensor([2, 5])
    for _ in range(2000):
        vocabulary_logits(model, torch.randn(2, 6), targets, TEXT_TO_TEXT, 4)
    counts = torch.bincount(torch.tensor([word for words in model.encoded for word in words]), minlength=12)
    assert counts[[2, 5]].tolist() == [2000, 2000]
    expected = 2000 * 4 / 10
    deviation = math.sqrt(2000 * 0.4 * 0.6)
    assert ((counts[[0, 1, 3, 4, 6, 7, 8, 9, 10, 11]] - expected).abs() < 4 * deviation).all()


@pytest.mark.parametrize("sample", [0, 9, 37])
def test_loss_and_gradients_are_those_of_a_plain_formula(sample):
    """37 of the 40 words are not targets. With a sample it is the sampled softmax of the drawn words, with all of
    them the whole softmax."""
    model, targets = FakeModel(40), torch.tensor([3, 17, 3, 0])
    features = torch.randn(4, 6, requires_grad=True)
    logits, labels = vocabulary_logits(model, features, targets, TEXT_TO_TEXT, sample)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    found = torch.autograd.grad(loss, [features, model.table, model.likelihood.log_scale])

    features64, table64 = (x.detach().double().requires_grad_() for x in (features, model.table))
    scale64 = model.likelihood.log_scale.detach().double().requires_grad_()
    z = plain_logits(features64, table64, torch.exp(-scale64)).exp()  # [4,40]
    own, drawn = [0, 3, 17], sorted(set(model.encoded[0]) - {0, 3, 17})
    partition = z[:, own].sum(1) + 37 / len(drawn) * z[:, drawn].sum(1)
    plain = -(z[range(4), targets] / partition).log().mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for ours, theirs in zip(found, torch.autograd.grad(plain, [features64, table64, scale64]), strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_sample_that_ranks_share_is_right_in_expectation_too():
    model, features, sample = FakeModel(40, split=True), torch.randn(4, 6), 7
    targets = torch.tensor([3, 17, 3, 0])
    whole = plain_logits(features, model.table, TEMPERATURE).double()
    sums = []
    for iteration in range(500):
        with noise_of_step(0, iteration):
            logits, labels = vocabulary_logits(model, features, targets, TEXT_TO_TEXT, sample)
        assert torch.allclose(logits.gather(1, labels[:, None]), whole.gather(1, targets[:, None]).float(), atol=1e-5)
        sums.append(logits.double().exp().sum(1))
    error = torch.stack(sums).std(0) / math.sqrt(len(sums))
    assert ((torch.stack(sums).mean(0) - whole.exp().sum(1)).abs() < 4 * error).all()
    shared = [tuple(words) for words in model.encoded if len(words) == sample]
    assert len(set(shared)) > 450, "an iteration has the sample of another"
    # Another rank has other targets and the same sample.
    with noise_of_step(0, 499):
        vocabulary_logits(model, features, torch.tensor([9]), TEXT_TO_TEXT, sample)
    assert tuple(model.encoded[-2]) == shared[-1]
