"""Question answering: its loss against the plain formula, and what an answer depends on."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT

ANSWERS = ("yes", "no", "red", "2")
QUESTIONS = [["how many digits are there?", "is there a red seven?"], ["what color is the two?"]]


@pytest.fixture
def asked(tiny_model) -> list[dict]:
    """Two images with two questions and one, and scores of which some are shared by two answers."""
    scores = torch.tensor([[0, 0, 0, 1], [0.9, 0.3, 0, 0], [0.6, 0, 1, 0]])
    found = []
    for index, questions in enumerate(QUESTIONS):
        image = torch.full((3, 64, 64), 60, dtype=torch.uint8)
        image[index, 10:40, 8 + 20 * index : 40] = 200
        ids = [row[valid] for row, valid in zip(*tiny_model.text_encoder.tokenize(questions), strict=True)]
        own = scores[:2] if index == 0 else scores[2:]
        item = {"task": "question_answering", "image": image, "candidates": ANSWERS, "questions": questions}
        found.append({**item, "question_token_ids": ids, "answer_scores": own})
    return found


def probabilities(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([x["scores"] for x in model.eval()(batch)])


def test_the_loss_is_the_plain_formula(tiny_model, asked):
    expected = 0.0
    for item, own in zip(asked, probabilities(tiny_model, asked).split([2, 1]), strict=True):
        for scores, found in zip(item["answer_scores"], own, strict=True):
            for score, p in zip(scores, found, strict=True):
                expected -= score / scores.sum() * torch.log(p) / 3
    for router in [x for x in tiny_model.modules() if type(x).__name__ == "Router"]:
        router.noise = lambda attributes: [0.0] * 3
    with EventStorage() as storage:
        losses = tiny_model.train()(asked)
        assert "answer_accuracy" in storage.latest()
    assert losses.keys() == {"loss_answer"}
    torch.testing.assert_close(losses["loss_answer"], expected, rtol=1e-4, atol=1e-5)
    losses["loss_answer"].backward()
    reached = {name.split(".")[0] for name, p in tiny_model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"image_encoder", "text_encoder", "decoder", "likelihood"}
    assert tiny_model.loss_count(asked) == 3


def test_an_answer_depends_on_image_and_question_alone(tiny_model, asked):
    together = probabilities(tiny_model, asked)
    assert together.shape == (3, 4)
    torch.testing.assert_close(together.sum(-1), torch.ones(3))
    alone = torch.cat([probabilities(tiny_model, [item]) for item in asked])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    # Another question about the image, another image for the question.
    exchanged = [{**asked[0], "question_token_ids": [*reversed(asked[0]["question_token_ids"])]}]
    torch.testing.assert_close(probabilities(tiny_model, exchanged), together[[1, 0]], rtol=1e-4, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-4
    other = [{**asked[0], "image": asked[1]["image"]}]
    assert (probabilities(tiny_model, other)[0] - together[0]).abs().max() > 1e-5


def test_the_input_is_an_image_with_a_whole_question(tiny_model, asked, monkeypatch):
    """No word of the question is hidden from <SPE> or from another word, and answers are targets of this task."""
    seen = []
    read, texts = tiny_model.decoder.read_spe, tiny_model.text_encoder.forward
    monkeypatch.setattr(tiny_model.decoder, "read_spe", lambda segments: seen.append(segments) or read(segments))

    def whole(ids, valid, causal=False):
        assert not causal
        return texts(ids, valid)

    monkeypatch.setattr(tiny_model.text_encoder, "forward", whole)
    probabilities(tiny_model, asked)
    inputs = next(segments for segments in seen if segments[0].attributes.role == "input")
    assert [(s.attributes.modality, s.attributes.causal) for s in inputs] == [
        ("image", False),
        ("image", False),
        ("text", False),
    ]
    (targets,) = next(segments for segments in seen if segments[0].attributes.role == "target")
    assert {s.attributes.task for s in (*inputs, targets)} == {IMAGE_TEXT_TO_TEXT}
    assert len(targets.tokens) == len(ANSWERS) and len(inputs[0].tokens) == 3
