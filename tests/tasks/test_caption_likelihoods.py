"""Likelihoods of given captions, with cached images, equal those of captioning's loss."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT
from uniperceiver_v2.tasks import caption_likelihoods
from uniperceiver_v2.tasks.caption_likelihoods import caption_log_likelihoods, tokens_of_images
from uniperceiver_v2.tasks.captioning import decode_captions

TEXTS = ("a red seven to the left of a blue three", "three twos", "a four")


@pytest.fixture
def model(tiny_model):
    torch.manual_seed(1)
    with torch.no_grad():
        for part in (tiny_model.decoder, tiny_model.text_encoder):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.05))
    return tiny_model.eval()


@torch.no_grad()
def test_equals_the_sum_over_words(model, scenes, monkeypatch):
    """Images of three sizes in one padded batch, each with all captions, and in batches of two pairs."""
    monkeypatch.setattr(caption_likelihoods, "PAIRS", 2)
    encoding, _ = model.image_encoder(model.preprocess(scenes))
    captions = [ids[valid] for ids, valid in zip(*model.text_encoder.tokenize(TEXTS))]
    pairs = torch.tensor([(image, caption) for image in range(3) for caption in range(3)])
    found = caption_log_likelihoods(model, tokens_of_images(encoding), captions, pairs)
    words = model.vocabulary(IMAGE_TEXT_TO_TEXT)
    for value, (image, caption) in zip(found, pairs.tolist()):
        ids = captions[caption][None]
        decoded = decode_captions(model, encoding, [image], ids[:, :-1], torch.ones_like(ids[:, 1:], dtype=torch.bool))
        log_probs = model.likelihood.of_directions(decoded, words).log_softmax(-1)
        assert value.item() == pytest.approx(log_probs[0].gather(1, ids[0, 1:, None]).sum().item(), abs=1e-3)
    assert len({round(value, 2) for value in found.tolist()}) == 9


def test_equals_the_loss_of_captioning(model, scenes):
    captions = [ids[valid] for ids, valid in zip(*model.text_encoder.tokenize(TEXTS))]
    batch = [
        {"task": "captioning", "image": x["image"], "caption_token_ids": [caption]}
        for x, caption in zip(scenes, captions)
    ]
    with torch.no_grad(), EventStorage():
        encoding, _ = model.image_encoder(model.preprocess(batch))
        found = caption_log_likelihoods(
            model, tokens_of_images(encoding), captions, torch.tensor([[0, 0], [1, 1], [2, 2]])
        )
        loss = model.tasks["captioning"].losses(model, batch)["loss_caption"]
    words = sum(len(caption) - 1 for caption in captions)
    assert -found.sum().item() / words == pytest.approx(loss.item(), rel=1e-4)
