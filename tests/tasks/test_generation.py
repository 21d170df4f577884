"""Greedy and beam search compared with all possible sequences, a plain search with lists, and Hugging Face's
generate."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig, RobertaForCausalLM

from uniperceiver_v2.tasks.generation import sample, search

STOP = 0


class Toy:
    """Random log P of the next token for each beginning of each sequence, peaked or flat."""

    def __init__(self, seed: int, batch: int, vocabulary: int, max_length: int, sharpness: float = 2.0):
        generator = torch.Generator().manual_seed(seed)
        self.tables = []
        for _ in range(batch):
            prefixes = itertools.chain.from_iterable(
                itertools.product(range(vocabulary), repeat=n) for n in range(max_length)
            )
            logits = {prefix: torch.randn(vocabulary, generator=generator) * sharpness for prefix in prefixes}
            self.tables.append({prefix: x.log_softmax(-1) for prefix, x in logits.items()})
        self.state: list[tuple[int, tuple[int, ...]]] = [(image, ()) for image in range(batch)]
        self.start = torch.full((batch,), 99)
        self.calls: list[int] = []

    def step(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        first = not self.calls
        self.calls.append(len(rows))
        state = [self.state[row] for row in rows.tolist()]
        self.state = state if first else [(i, (*p, t)) for (i, p), t in zip(state, tokens.tolist(), strict=True)]
        return torch.stack([self.tables[image][prefix] for image, prefix in self.state])

    def log_likelihood(self, image: int, sequence: tuple[int, ...]) -> float:
        return sum(float(self.tables[image][sequence[:i]][token]) for i, token in enumerate(sequence))


def all_sequences(vocabulary: int, max_length: int):
    """All sequences that end with the stop token, and all that reach the greatest length without it."""
    words = range(1, vocabulary)
    for length in range(max_length):
        yield from ((*words_, STOP) for words_ in itertools.product(words, repeat=length))
    yield from itertools.product(words, repeat=max_length)


def plain_search(toy: Toy, image: int, beam_size: int, penalty: float, max_length: int) -> list[tuple[float, tuple]]:
    """The same rules with lists, and without an early end: all that finish, the best first. With one beam it ends at
    the first stop token."""
    beams, finished = [(0.0, ())], []
    for length in range(1, max_length + 1):
        options = [
            (total + float(value), (*prefix, token))
            for total, prefix in beams
            for token, value in enumerate(toy.tables[image][prefix])
        ]
        options = sorted(options, key=lambda option: -option[0])[: 2 * beam_size if beam_size > 1 else 1]
        ended = [option[1][-1] == STOP or length == max_length for option in options]
        finished += [
            (total / length**penalty, sequence)
            for (total, sequence), end in zip(options[:beam_size], ended, strict=False)
            if end
        ]
        beams = [option for option, end in zip(options, ended, strict=True) if not end][:beam_size]
    return sorted(finished, key=lambda hypothesis: -hypothesis[0])


def found(generated, row: int) -> tuple[int, ...]:
    return tuple(generated.token_ids[row, : generated.lengths[row]].tolist())


SIZES = {
    "seed": st.integers(0, 10**6),
    "batch": st.integers(1, 3),
    "vocabulary": st.integers(2, 4),
    "max_length": st.integers(1, 4),
    "penalty": st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
}


@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_enough_beams_find_the_best_of_all_sequences(seed, batch, vocabulary, max_length, penalty):
    toy = Toy(seed, batch, vocabulary, max_length)
    beams = vocabulary**max_length
    generated = search(toy.step, toy.start, STOP, beam_size=beams, length_penalty=penalty, max_length=max_length)
    for image in range(batch):
        scores = {s: toy.log_likelihood(image, s) / len(s) ** penalty for s in all_sequences(vocabulary, max_length)}
        best = max(scores, key=scores.get)
        assert found(generated, image) == best
        assert generated.log_likelihoods[image].item() == pytest.approx(toy.log_likelihood(image, best), abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(beam_size=st.integers(1, 3), **{**SIZES, "vocabulary": st.integers(2, 6)})
def test_search_is_a_plain_one_with_lists(beam_size, seed, batch, vocabulary, max_length, penalty):
    toy = Toy(seed, batch, vocabulary, max_length)
    generated = search(toy.step, toy.start, STOP, beam_size=beam_size, length_penalty=penalty, max_length=max_length)
    for image in range(batch):
        score, sequence = plain_search(toy, image, beam_size, penalty, max_length)[0]
        assert found(generated, image) == sequence
        assert generated.log_likelihoods[image].item() == pytest.approx(score * len(sequence) ** penalty, abs=1e-5)
        assert (generated.token_ids[image, generated.lengths[image] :] == STOP).all()


@settings(max_examples=100, deadline=None)
@given(beam_size=st.integers(2, 4), count=st.integers(1, 5), **{**SIZES, "vocabulary": st.integers(2, 6)})
def test_the_best_few_are_those_of_a_plain_search(beam_size, count, seed, batch, vocabulary, max_length, penalty):
    toy = Toy(seed, batch, vocabulary, max_length)
    sizes = {"beam_size": beam_size, "length_penalty": penalty, "max_length": max_length}
    generated = search(toy.step, toy.start, STOP, count=count, **sizes)
    assert len(generated.token_ids) == batch * count
    for image in range(batch):
        expected = plain_search(toy, image, beam_size, penalty, max_length)[:count]
        rows = range(image * count, (image + 1) * count)
        assert [found(generated, row) for row in rows] == [
            *(sequence for _, sequence in expected),
            *[()] * (count - len(expected)),
        ]
        for row, (score, sequence) in zip(rows, expected, strict=False):
            assert generated.log_likelihoods[row].item() == pytest.approx(score * len(sequence) ** penalty, abs=1e-5)
        assert all(generated.log_likelihoods[row] == -math.inf for row in rows[len(expected) :])


def test_greedy_takes_the_likeliest_token_until_the_first_stop():
    toy = Toy(3, 8, 4, 6)
    generated = search(toy.step, toy.start, STOP, beam_size=1, length_penalty=1.0, max_length=6)
    for image in range(8):
        sequence: tuple[int, ...] = ()
        while len(sequence) < 6 and sequence[-1:] != (STOP,):
            sequence += (int(toy.tables[image][sequence].argmax()),)
        assert found(generated, image) == sequence
    assert generated.lengths.unique().numel() > 2


def test_sequences_that_are_decided_are_searched_no_further():
    toy = Toy(0, 2, 4, 6)
    sure = {prefix: torch.tensor([0.0, -20.0, -20.0, -20.0]) for prefix in toy.tables[0]}
    toy.tables[0] = sure
    search(toy.step, toy.start, STOP, beam_size=3, length_penalty=1.0, max_length=6)
    assert toy.calls[:2] == [2, 3]  # the first image's stop cannot be beaten, the second's three beams go on
    toy = Toy(0, 1, 4, 6)
    toy.tables[0] = sure
    search(toy.step, toy.start, STOP, beam_size=3, length_penalty=1.0, max_length=6)
    assert toy.calls == [1]


def test_forbidden_tokens_are_never_taken():
    toy = Toy(5, 4, 4, 5)
    for table in toy.tables:
        for log_probs in table.values():
            log_probs[2] = -math.inf
    generated = search(toy.step, toy.start, STOP, beam_size=3, length_penalty=1.0, max_length=5)
    assert not (generated.token_ids == 2).any()
    assert generated.log_likelihoods.isfinite().all()


@pytest.mark.parametrize("wrong", ["beam_size", "max_length", "count"])
def test_sizes_of_nothing_are_refused(wrong):
    sizes = {"beam_size": 2, "max_length": 3, "count": 1, wrong: 0}
    with pytest.raises(ValueError, match="1 or more"):
        search(lambda tokens, rows: tokens, torch.zeros(1), STOP, length_penalty=1.0, **sizes)


@pytest.fixture(scope="module")
def language_model():
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        is_decoder=True,
        initializer_range=0.7,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    model = RobertaForCausalLM(config).eval()
    with torch.no_grad():
        # generate counts positions from 0, where RoBERTa itself counts them from behind the padding index.
        model.roberta.embeddings.position_embeddings.weight.zero_()
        model.lm_head.bias[2] += 5
    return model


@pytest.mark.parametrize("beam_size", [1, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.2])
@torch.no_grad()
def test_words_and_scores_of_hugging_faces_generate(language_model, beam_size, penalty):
    """With ``early_stopping="never"``, which means that the search ends when no beam can reach a better score."""
    start, length = torch.arange(3, 27), 12
    prefixes = torch.empty(len(start), 0, dtype=torch.long)

    def step(tokens, rows):
        nonlocal prefixes
        prefixes = torch.cat([prefixes[rows], tokens[:, None]], dim=1)
        log_probs = language_model(prefixes).logits[:, -1].log_softmax(-1)
        return log_probs.index_fill(1, torch.tensor([1, 5]), -math.inf)

    generated = search(step, start, 2, beam_size=beam_size, length_penalty=penalty, max_length=length)
    beams = {"early_stopping": "never", "length_penalty": penalty} if beam_size > 1 else {}
    expected = language_model.generate(
        start[:, None],
        attention_mask=torch.ones(len(start), 1, dtype=torch.long),
        num_beams=beam_size,
        max_new_tokens=length,
        suppress_tokens=[1, 5],
        return_dict_in_generate=True,
        output_scores=True,
        do_sample=False,
        **beams,
    )
    words = expected.sequences[:, 1:]
    assert words.shape[1] == generated.token_ids.shape[1]
    assert torch.equal(words.masked_fill(words == 1, 2), generated.token_ids)
    assert generated.lengths.unique().numel() > 2
    if beam_size > 1:
        scores = generated.log_likelihoods / generated.lengths**penalty
        torch.testing.assert_close(scores.float(), expected.sequences_scores, atol=1e-5, rtol=1e-5)


def test_draws_have_the_probabilities_of_the_step():
    """The first token is drawn from one table, and the next from a row of another by the token before it."""
    first = torch.tensor([[0.2, 0.5, 0.3, 0.0], [0.0, 0.1, 0.9, 0.0]]).log()
    after = torch.tensor([[0.0, 0.0, 0.25, 0.75], [0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0]])
    history: list[list[int]] = []

    def step(tokens, rows):
        nonlocal history
        if not history:
            assert rows.tolist() == [0, 1]
            history = [[int(token)] for token in tokens]
            return first
        history = [history[row] + [int(token)] for row, token in zip(rows, tokens)]
        return after[torch.where(tokens == 3, 0, tokens)].log()

    torch.manual_seed(0)
    drawn = sample(step, torch.tensor([5, 6]), 3, count=4000, max_length=3)
    assert drawn.shape == (8000, 3) and [row[1:] for row in history] == drawn[:, :2].tolist()
    assert [row[0] for row in history] == [5] * 4000 + [6] * 4000
    for index in range(2):
        own = drawn[4000 * index : 4000 * (index + 1)]
        assert torch.allclose(torch.bincount(own[:, 0], minlength=4) / 4000, first[index].exp(), atol=0.03)
        for token, expected in enumerate(after):
            following = own[own[:, 0] == token, 1]
            if len(following):
                found = torch.bincount(following, minlength=4) / len(following)
                assert torch.allclose(found, expected, atol=0.06)
    ended = drawn[:, 1] == 3
    assert (drawn[ended, 2] == 3).all()


def test_drawing_ends_when_all_have_ended():
    calls = []

    def step(tokens, rows):
        calls.append(len(tokens))
        return torch.tensor([[0.0, 1.0]]).log().expand(len(tokens), 2)

    assert sample(step, torch.tensor([0, 0]), 1, count=3, max_length=9).tolist() == [[1]] * 6
    assert calls == [2]
