"""Rewards of drawn captions: their advantages, the loss word by word, and that training follows them."""

import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from uniperceiver_v2.config import task_defaults
from uniperceiver_v2.data import register_captions
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT
from uniperceiver_v2.tasks import CAPTIONING, CaptioningTask
from uniperceiver_v2.tasks import captioning as captioning_module
from uniperceiver_v2.tasks.captioning import decode_captions
from uniperceiver_v2.tasks.self_critical import DrawnCaptions, Rewards

TEXTS = ("a red seven", "two blue threes")


def task(**settings) -> CaptioningTask:
    return CaptioningTask(CAPTIONING.settings.of({**task_defaults("captioning", "captioning"), **settings}))


@pytest.fixture
def batch(tiny_model, scenes) -> list[dict]:
    ids, valid = tiny_model.text_encoder.tokenize(TEXTS)
    return [
        {"task": "captioning", "image": x["image"], "image_id": index, "caption_token_ids": [i[v]]}
        for index, (x, i, v) in enumerate(zip(scenes, ids, valid))
    ]


def test_an_advantage_is_over_the_mean_of_the_others():
    drawn = DrawnCaptions([], torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]]))
    assert drawn.advantages().tolist() == pytest.approx([1 - 0.25, 0 - 0.75, 0.5 - 0.5, 0, 0, 0])


def test_the_loss_is_that_of_the_formula(tiny_model, batch, monkeypatch):
    """The sum over drawn captions of -advantage · log P, over the number of the references' words."""
    model = tiny_model.eval()
    ids, valid = model.text_encoder.tokenize(("a seven", "two", "three threes", "a blue two"))
    captions, rewards = [i[v] for i, v in zip(ids, valid)], torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    monkeypatch.setattr(captioning_module, "draw_captions", lambda *_, **__: DrawnCaptions(captions, rewards))
    monkeypatch.setattr(captioning_module, "Rewards", lambda *_: None)
    rewarded = task(TRUTH_WEIGHT=1.0, DRAWN_CAPTIONS=2, VOCABULARY_SAMPLE=0)
    with EventStorage() as storage:
        losses = rewarded.losses(model, batch)
        assert storage.latest()["reward"][0] == pytest.approx(rewards.mean().item())
    encoding, _ = model.image_encoder(model.preprocess(batch))
    expected = 0.0
    for caption, image, advantage in zip(captions, (0, 0, 1, 1), (1.0, -1.0, -0.25, 0.25)):
        valid = torch.ones(1, len(caption) - 1, dtype=torch.bool)
        decoded = decode_captions(model, encoding, [image], caption[None, :-1], valid)[0]
        log_probs = model.likelihood.of_directions(decoded, model.vocabulary(IMAGE_TEXT_TO_TEXT)).log_softmax(-1)
        expected -= advantage * log_probs.gather(1, caption[1:, None]).sum()
    words = sum(len(x["caption_token_ids"][0]) - 1 for x in batch)
    assert losses["loss_reward"].item() == pytest.approx((expected / words).item(), rel=1e-4)
    plain = task(VOCABULARY_SAMPLE=0)
    with EventStorage():
        assert losses["loss_caption"].item() == pytest.approx(plain.losses(model, batch)["loss_caption"].item())
    parameters = [p for part in (model.decoder, model.image_encoder.fusion) for p in part.parameters()]
    for own, other in zip(
        torch.autograd.grad(losses["loss_reward"], parameters, allow_unused=True),
        torch.autograd.grad(expected / words, parameters, allow_unused=True),
        strict=True,
    ):
        assert (own is None) == (other is None)
        if own is not None:
            assert torch.allclose(own, other, atol=1e-5 * (1 + other.abs().max()))


def test_training_follows_the_reward(tiny_model, batch):
    """Captions are rewarded for words with the letter "e"."""
    rewarded = task(TRUTH_WEIGHT=1.0, DRAWN_CAPTIONS=6, MAX_LENGTH=5, VOCABULARY_SAMPLE=0)

    def of(captions, sample, text_encoder):
        return [sum("e" in word for word in caption.split()) / max(len(caption.split()), 1) for caption in captions]

    rewarded._rewards = SimpleNamespace(of=of)
    model, seen = tiny_model.train(), []
    optimizer = torch.optim.Adam([*model.decoder.parameters(), *model.text_encoder.parameters()], lr=1e-3)
    torch.manual_seed(0)
    for _ in range(16):
        with EventStorage() as storage:
            optimizer.zero_grad()
            rewarded.losses(model, batch)["loss_reward"].backward()
            optimizer.step()
            seen.append(storage.latest()["reward"][0])
    assert sum(seen[-5:]) / 5 > 0.8 > 1.3 * sum(seen[:3]) / 3
    assert model.text_encoder.training and model.decoder.training, "drawing leaves the mode as it was"


@pytest.fixture
def registered(tmp_path):
    """Two images with captions, and the facts of their scenes."""
    captions, facts = tmp_path / "captions.json", tmp_path / "instances.json"
    images = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in (3, 8)]
    said = [{"id": 1, "image_id": 3, "caption": "a red seven"}, {"id": 2, "image_id": 8, "caption": "a blue two"}]
    captions.write_text(json.dumps({"images": images, "annotations": said}))
    things = [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 1, 20, 20], "color": "red"},
        {"id": 2, "image_id": 8, "category_id": 2, "bbox": [1, 1, 20, 20], "color": "blue"},
    ]
    categories = [{"id": 7, "name": "seven"}, {"id": 2, "name": "two"}]
    facts.write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
    register_captions("rewarded", str(captions), str(tmp_path), scene_facts=str(facts))
    register_captions("rewarded_unknown", str(captions), str(tmp_path))
    yield ["rewarded"]
    for name in ("rewarded", "rewarded_unknown"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_rewards_are_weighted_sums(registered, tiny_model):
    rewards = Rewards(registered, cider=0.5, truth=2.0)
    sample = {"image_id": 3, "references": ["a red seven"]}
    right, wrong, other = rewards.of(["a red seven", "a red two", "a blue two"], sample, tiny_model.text_encoder)
    # "red" and "seven" and what holds them are of one of two images, "a" is of both: it weighs nothing.
    assert right == pytest.approx(0.5 * 7.5 + 2.0)
    assert 0 < wrong < 0.5 * 7.5 and other == 0


def test_scenes_of_two_datasets_have_different_ids(registered, tmp_path):
    """A sample does not say of which dataset it is."""
    facts = json.loads((tmp_path / "instances.json").read_text())
    register_captions("rewarded_too", str(tmp_path / "captions.json"), str(tmp_path), scene_facts=str(tmp_path / "b"))
    try:
        (tmp_path / "b").write_text(json.dumps(facts))
        Rewards([*registered, "rewarded_too"], cider=0, truth=1.0)
        facts["annotations"][1]["color"] = "red"
        (tmp_path / "b").write_text(json.dumps(facts))
        with pytest.raises(UserError, match=r"TRUTH_WEIGHT: image 8 of .* is another scene in another dataset"):
            Rewards([*registered, "rewarded_too"], cider=0, truth=1.0)
    finally:
        DatasetCatalog.remove("rewarded_too")
        MetadataCatalog.remove("rewarded_too")


def test_without_facts_nothing_is_true(registered):
    with pytest.raises(UserError, match=r"TRUTH_WEIGHT.*'rewarded_unknown'"):
        Rewards(["rewarded_unknown"], cider=0, truth=1.0)
