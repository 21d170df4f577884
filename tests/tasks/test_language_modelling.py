"""Masked language modelling: loss and predictions compared with the plain formula, text by text."""

import math
from dataclasses import replace

import pytest
import torch
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.decoder import TEXT_TO_TEXT, Attributes, Segment

TEXTS = ("a red seven and two blue threes", "four", "the yellow one is above the green nine")


@pytest.fixture
def corpus(tiny_model) -> list[dict]:
    """Three texts. The second and the fourth token of each are masked, if they exist."""
    inputs = []
    for text in TEXTS:
        token_ids = torch.tensor(tiny_model.text_encoder.tokenizer(text)["input_ids"])
        masked = [place for place in (1, 3) if place < len(token_ids) - 1]
        labels = torch.full_like(token_ids, -100)
        labels[masked] = token_ids[masked]
        token_ids[masked] = tiny_model.text_encoder.mask_id
        inputs.append({"task": "corpus", "token_ids": token_ids, "labels": labels})
    assert [int((x["labels"] >= 0).sum()) for x in inputs] == [2, 1, 2]
    return inputs


@torch.no_grad()
def plain(model, inputs: list[dict]) -> list[tuple[float, bool]]:
    """log P of every masked token, and whether it is the most likely one. Each text is encoded alone, in float64."""
    words = list(model.encode_vocabulary(torch.arange(509), TEXT_TO_TEXT).double())
    for i in (5, 300):
        torch.testing.assert_close(
            model.encode_vocabulary(torch.tensor([i]), TEXT_TO_TEXT)[0], words[i].float(), atol=1e-5, rtol=1e-4
        )
    tau = model.likelihood.temperature.item()
    found = []
    for x in inputs:
        tokens = model.text_encoder(x["token_ids"][None], torch.ones(1, len(x["token_ids"]), dtype=torch.bool))
        segment = Segment(tokens, None, Attributes("text", "input", TEXT_TO_TEXT))
        decoded = model.decoder([segment]).segments[0][0].double()
        for place in (x["labels"] >= 0).nonzero()[:, 0].tolist():
            scores = [torch.cosine_similarity(decoded[place], word, dim=0).item() / tau for word in words]
            label = x["labels"][place].item()
            log_p = scores[label] - math.log(sum(math.exp(s) for s in scores))
            found.append((log_p, max(range(509), key=scores.__getitem__) == label))
    return found


def test_loss_is_the_mean_over_all_masked_tokens(tiny_model, corpus):
    with EventStorage():
        loss = tiny_model.train()(corpus)["loss_word"]
    expected = plain(tiny_model, corpus)
    assert loss.item() == pytest.approx(-sum(log_p for log_p, _ in expected) / 5, rel=1e-4)


def test_predictions_equal_the_plain_formula(tiny_model, corpus):
    # Every vocabulary entry's likelihood counts: make some answer right, so that both outcomes occur.
    predictions = tiny_model([{**x, "task": "language_modelling"} for x in corpus])
    assert [len(p["correct"]) for p in predictions] == [2, 1, 2]
    expected = plain(tiny_model, corpus)
    found = torch.cat([p["log_likelihoods"] for p in predictions])
    torch.testing.assert_close(found, torch.tensor([log_p for log_p, _ in expected]), atol=1e-4, rtol=1e-4)
    assert torch.cat([p["correct"] for p in predictions]).tolist() == [hit for _, hit in expected]


def test_the_likeliest_word_counts_as_correct(tiny_model, corpus):
    best = tiny_model.likelihood(
        tiny_model.decoder(
            [
                Segment(
                    tiny_model.text_encoder(corpus[1]["token_ids"][None], torch.ones(1, 3, dtype=torch.bool)),
                    None,
                    Attributes("text", "input", TEXT_TO_TEXT),
                )
            ]
        ).segments[0][0, 1],
        tiny_model.vocabulary(TEXT_TO_TEXT),
    ).argmax()
    corpus[1]["labels"][1] = best
    assert tiny_model([corpus[1]])[0]["correct"].tolist() == [True]
    corpus[1]["labels"][1] = (best + 1) % 509
    assert tiny_model([corpus[1]])[0]["correct"].tolist() == [False]


def test_training_learns_the_masked_words_and_reaches_no_image(tiny_model, corpus):
    tiny_model.train()
    optimizer = torch.optim.Adam(tiny_model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        with EventStorage():
            loss = tiny_model(corpus)["loss_word"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None for p in tiny_model.image_encoder.parameters())


def test_a_sample_of_the_vocabulary_gives_a_finite_loss_that_all_words_can_lower(tiny_config, tiny_model, corpus):
    task = tiny_model.tasks["corpus"]
    task.settings = replace(task.settings, vocabulary_sample=20)
    with EventStorage():
        sampled = [tiny_model.train()(corpus)["loss_word"].item() for _ in range(30)]
    task.settings = replace(task.settings, vocabulary_sample=0)
    with EventStorage():
        whole = tiny_model(corpus)["loss_word"].item()
    assert len(set(sampled)) > 1
    assert sum(sampled) / len(sampled) == pytest.approx(whole, rel=0.05)
