"""Classification: losses equal equation (7), and probabilities."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from uniperceiver_v2.shared_noise import noise_of_step
from uniperceiver_v2.tasks import CLASSIFICATION, ClassificationTask


def train_losses(model, batch: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        return model.train()(batch)


def representations(model, batch: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """The representations of <SPE> for the images and for the names."""
    encoding, _ = model.image_encoder(model.preprocess(batch))
    return model.decode_image(encoding), model.encode_candidates(batch[0]["candidates"])


def equation_7(inputs, candidates, labels: list[int], temperature: float, smoothing: float) -> float:
    """With label smoothing's target probability of each candidate in place of the label."""
    total = 0.0
    for x, label in zip(inputs.double(), labels, strict=True):
        logits = [float(x @ y / (x.norm() * y.norm())) / temperature for y in candidates.double()]
        normaliser = math.log(sum(math.exp(z) for z in logits))
        for c, logit in enumerate(logits):
            total += (smoothing / len(logits) + (1 - smoothing) * (c == label)) * (normaliser - logit)
    return total / len(labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_equation_7_with_label_smoothing(tiny_config, digits, smoothing):
    tiny_config.TASKS.digits.LABEL_SMOOTHING = smoothing
    tiny_config.TASKS.digits.ALIGNMENT_WEIGHT = 0.5
    model, labels = build_model(tiny_config), [x["label"] for x in digits]
    with torch.no_grad():
        images, names = representations(model, digits)
        encoding, _ = model.image_encoder(model.preprocess(digits))
        alignment_targets = model.alignment_targets(digits[0]["candidates"])
    losses, temperature = train_losses(model, digits), model.likelihood.temperature.item()
    expected = equation_7(images, names, labels, temperature, smoothing)
    assert losses["loss_label"].item() == pytest.approx(expected, rel=1e-4)
    aligned = equation_7(encoding.mean_global_token(), alignment_targets, labels, temperature, smoothing)
    assert losses["loss_alignment"].item() == pytest.approx(0.5 * aligned, rel=1e-4)


def test_loss_teaches_every_part_that_it_needs(tiny_model, digits):
    train_losses(tiny_model, digits)["loss_label"].backward()
    for part in ("image_encoder.backbone", "image_encoder.fusion", "image_encoder.global_tokens"):
        assert any(p.grad is not None and p.grad.any() for p in tiny_model.get_submodule(part).parameters()), part
    for part in ("text_encoder", "decoder", "likelihood"):
        gradients = [p.grad for p in tiny_model.get_submodule(part).parameters()]
        assert any(g is not None and g.any() for g in gradients), part
        assert all(g is None or g.isfinite().all() for g in gradients), part


def test_accuracy_is_logged(tiny_model, digits):
    predictions = [x["scores"].argmax().item() for x in tiny_model(digits)]
    with EventStorage() as storage:
        tiny_model.train()(digits)
        logged = storage.latest()["label_accuracy"][0]
    assert logged == pytest.approx(sum(p == x["label"] for p, x in zip(predictions, digits, strict=True)) / 4)


def test_a_batch_is_learned(tiny_model, digits):
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=2e-3)
    history = []
    for _ in range(40):
        loss = sum(train_losses(tiny_model, digits).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
    found = [x["scores"].argmax().item() for x in tiny_model.eval()(digits)]
    assert sum(p == x["label"] for p, x in zip(found, digits, strict=True)) >= 3


@torch.no_grad()
def test_probabilities(tiny_model, digits):
    images, names = representations(tiny_model, digits)
    cosines = torch.nn.functional.cosine_similarity(images[:, None].double(), names.double(), dim=-1)
    expected = (cosines / tiny_model.likelihood.temperature.double()).softmax(-1)
    for prediction, probabilities in zip(tiny_model(digits), expected, strict=True):
        assert prediction.keys() == {"scores"}
        assert prediction["scores"].shape == (5,)
        assert prediction["scores"].sum().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(prediction["scores"].double(), probabilities, atol=1e-5, rtol=1e-4)


def test_a_label_set_of_the_users_own(tiny_model, digits):
    for item in digits:
        item["candidates"] = ("seven", "two")
    found = tiny_model(digits)
    assert [x["scores"].shape for x in found] == [(2,)] * 4
    for item in digits:
        item["candidates"] = ("two", "seven")
    for a, b in zip(found, tiny_model(digits), strict=True):
        torch.testing.assert_close(a["scores"], b["scores"].flip(0))


def test_names_are_put_into_the_prompt(tiny_config, digits):
    tiny_config.TASKS.digits.PROMPT = "a picture of a {}"
    model = build_model(tiny_config).eval()
    model.tasks["plain"] = ClassificationTask(CLASSIFICATION.task_of("plain").settings)
    plain = [
        {**x, "task": "plain", "candidates": tuple(f"a picture of a {n}" for n in x["candidates"])} for x in digits
    ]
    bare = [{**x, "task": "plain"} for x in digits]
    for a, b, c in zip(model(digits), model(plain), model(bare), strict=True):
        torch.testing.assert_close(a["scores"], b["scores"])
        assert not torch.allclose(a["scores"], c["scores"])


@pytest.mark.parametrize("names", [None, ()])
def test_candidates_are_needed(tiny_model, digits, names):
    digits[0]["candidates"] = names
    with pytest.raises(ValueError, match="candidates"):
        tiny_model(digits)


@torch.no_grad()
def test_an_ensemble_answers_by_the_mean_direction(tiny_config, digits):
    tiny_config.TASKS.digits.update({"PROMPT": "a {}", "FURTHER_PROMPTS": ["the digit {}", "{}"]})
    model = build_model(tiny_config).eval()
    images, _ = representations(model, digits)
    prompts = ("a {}", "the digit {}", "{}")
    texts = [tuple(prompt.format(name) for name in digits[0]["candidates"]) for prompt in prompts]
    mean = sum(model.encode_candidates(of_prompt).double() for of_prompt in texts)
    cosines = torch.nn.functional.cosine_similarity(images[:, None].double(), mean, dim=-1)
    expected = (cosines / model.likelihood.temperature.double()).softmax(-1)
    found = torch.stack([x["scores"] for x in model(digits)]).double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_training_draws_a_prompt_of_the_ensemble(tiny_config, digits, monkeypatch):
    """The same for all ranks, whose generators differ, and all prompts about equally often."""
    tiny_config.TASKS.digits.update({"PROMPT": "a {}", "FURTHER_PROMPTS": ["the digit {}", "{}"]})
    model, seen = build_model(tiny_config), []
    encode = model.encode_candidates_and_alignment_targets
    monkeypatch.setattr(
        model,
        "encode_candidates_and_alignment_targets",
        lambda texts, shared: seen.append(texts[0]) or encode(texts, shared=shared),
    )
    for seed in range(2):
        torch.manual_seed(seed)
        with noise_of_step(0, 5):
            train_losses(model, digits)
    assert seen[0] == seen[1]
    task, name = model.tasks["digits"], digits[0]["candidates"][0]
    drawn = []
    for step in range(300):
        with noise_of_step(0, step):
            drawn += task._drawn((name,))
    counts = [drawn.count(prompt.format(name)) for prompt in ("a {}", "the digit {}", "{}")]
    assert sum(counts) == 300 and min(counts) > 70
