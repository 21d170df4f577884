"""Retrieval: the contrastive likelihood compared with its plain formula, and the predictions."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.decoder import IMAGE_TO_TEXT

CAPTIONS = ("a red seven", "two blue threes", "a nine above a two", "four digits")


@pytest.fixture
def pairs(tiny_model) -> list[dict]:
    """Four images of one size, each with one caption."""
    tokenizer = tiny_model.text_encoder.tokenizer
    return [
        {
            "task": "pairs",
            "image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8),
            "file_name": f"{index}.png",
            "caption_token_ids": [torch.tensor(tokenizer(caption)["input_ids"])],
        }
        for index, caption in enumerate(CAPTIONS)
    ]


def cosines(model, pairs: list[dict]) -> list[list[float]]:
    """Cosines of every image with every caption, each encoded alone, in Python's floats."""
    images, texts = [], []
    with torch.no_grad():
        for pair in pairs:
            encoding, _ = model.image_encoder(model.preprocess([pair]))
            images.append(model.decode_image(encoding)[0].double().tolist())
            token_ids = pair["caption_token_ids"][0]
            valid = torch.ones_like(token_ids, dtype=torch.bool)
            text = model.encode_texts(token_ids[None], valid[None], IMAGE_TO_TEXT)[0]
            texts.append(text.double().tolist())
    return [[sum(a * b for a, b in zip(x, y)) / math.hypot(*x) / math.hypot(*y) for y in texts] for x in images]


def plain_loss(rows: list[list[float]], left_out: set[tuple[int, int]] = frozenset()) -> float:
    """Half the mean over rows of -log softmax at the diagonal, plus half the same over columns."""
    count, total = len(rows), 0.0
    for i in range(count):
        for line in (
            [rows[i][j] for j in range(count) if (i, j) not in left_out],
            [rows[j][i] for j in range(count) if (j, i) not in left_out],
        ):
            total += math.log(sum(math.exp(value) for value in line)) - rows[i][i]
    return total / (2 * count)


def loss_of(model, pairs: list[dict]) -> torch.Tensor:
    with EventStorage():
        return model.train()(pairs)["loss_contrastive"]


def test_loss_equals_the_plain_formula(tiny_model, pairs):
    found = loss_of(tiny_model, pairs).item()
    tau = tiny_model.likelihood.temperature.item()
    logits = [[value / tau for value in row] for row in cosines(tiny_model.eval(), pairs)]
    assert found == pytest.approx(plain_loss(logits), rel=1e-4)


@pytest.mark.parametrize("what", ["file_name", "caption_token_ids"])
def test_another_pair_of_the_same_image_or_caption_is_no_wrong_answer(tiny_model, pairs, what):
    pairs[2][what] = pairs[0][what]
    found = loss_of(tiny_model, pairs).item()
    tau = tiny_model.likelihood.temperature.item()
    logits = [[value / tau for value in row] for row in cosines(tiny_model.eval(), pairs)]
    assert found == pytest.approx(plain_loss(logits, {(0, 2), (2, 0)}), rel=1e-4)
    assert found < plain_loss(logits)


def test_several_captions_of_an_image_are_all_right_for_it(tiny_model, pairs):
    """Each caption is compared with every image, and each image with one of its captions and those of other images."""
    texts = [pair["caption_token_ids"][0] for pair in pairs]
    of_images = [(0, 1), (2, 3), (1, 2)]  # the third image says what the others say as well
    inputs = [{**pair, "caption_token_ids": [texts[t] for t in own]} for pair, own in zip(pairs, of_images)]
    found = loss_of(tiny_model, inputs).item()

    tau = tiny_model.likelihood.temperature.item()
    logits = [[value / tau for value in row] for row in cosines(tiny_model.eval(), pairs)]
    total = 0.0
    for image, own in enumerate(of_images):
        for text in own:
            wrong_texts = [t for other in of_images if other != own for t in other if t != text]
            wrong_images = [i for i, said in enumerate(of_images) if i != image and text not in said]
            right = logits[image][text]
            total += math.log(math.exp(right) + sum(math.exp(logits[image][t]) for t in wrong_texts)) - right
            total += math.log(math.exp(right) + sum(math.exp(logits[i][text]) for i in wrong_images)) - right
    assert found == pytest.approx(total / 12, rel=1e-4)


def test_predictions_are_unit_vectors_with_the_cosines_of_the_likelihood(tiny_model, pairs):
    ids = [pair["caption_token_ids"][0] for pair in pairs]
    expected = torch.tensor(cosines(tiny_model, pairs))
    inputs = [
        {**pairs[0], "task": "retrieval", "caption_token_ids": ids[:3]},
        {**pairs[1], "task": "retrieval", "caption_token_ids": ids[3:]},
    ]
    first, second = tiny_model(inputs)
    assert (first["text_features"].shape[0], second["text_features"].shape[0]) == (3, 1)
    texts = torch.cat((first["text_features"], second["text_features"]))
    images = torch.stack((first["image_feature"], second["image_feature"]))
    torch.testing.assert_close(images @ texts.T, expected[:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(4))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_step_of_training_reaches_both_encoders_the_decoder_and_the_temperature(tiny_model, pairs):
    loss_of(tiny_model, pairs).backward()
    reached = {name.split(".")[0] for name in gradients(tiny_model)}
    assert reached >= {"image_encoder", "text_encoder", "decoder", "likelihood"}
