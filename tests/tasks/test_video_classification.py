"""Video classification: a clip is all of its frames, in their order, and is classified as an image is."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.layers.position_encoding import sine_encoding
from uniperceiver_v2.tasks.video_classification import VideoClassificationSettings, VideoClassificationTask, of_clips

NAMES = ("a seven moving left", "a seven moving right", "a two rising")


@pytest.fixture
def clips(tiny_model) -> list[dict]:
    """Three clips of four frames, in each of which a bright square moves."""
    tiny_model.tasks["video_classification"] = VideoClassificationTask(VideoClassificationSettings(frames=4))
    found = []
    for label in range(3):
        frames = torch.full((4, 3, 32, 32), 60, dtype=torch.uint8)
        for time, frame in enumerate(frames):
            place = 4 + 5 * (time if label else 3 - time)
            frame[label, 10:20, place : place + 8] = 220
        found.append({"task": "video_classification", "frames": frames, "candidates": NAMES, "label": label})
    return found


def probabilities(model, batch):
    with torch.no_grad():
        return torch.stack([x["scores"] for x in model.eval()(batch)])


def test_a_clip_has_the_tokens_of_all_frames_with_their_times(tiny_model, clips):
    with torch.no_grad():
        task = tiny_model.tasks["video_classification"]
        encoding, _ = tiny_model.image_encoder(task.images(tiny_model, clips))
        found = of_clips(encoding, 3)
    count = encoding.proposal_tokens.shape[1]
    assert found.proposal_tokens.shape == (3, 4 * count, 32)
    assert found.global_valid.shape == found.global_tokens.shape[:2]
    for clip, frame in ((0, 0), (1, 3), (2, 2)):
        when = sine_encoding(torch.tensor([(frame + 0.5) / 4]), 32)
        own = found.proposal_tokens[clip, frame * count : (frame + 1) * count]
        torch.testing.assert_close(own, encoding.proposal_tokens[4 * clip + frame] + when)


def test_the_loss_is_that_of_the_probabilities(tiny_model, clips):
    expected = -probabilities(tiny_model, clips).log().diagonal().mean()
    with torch.no_grad(), EventStorage() as storage:
        losses = tiny_model.tasks["video_classification"].losses(tiny_model, clips)
        assert "label_accuracy" in storage.latest()
    torch.testing.assert_close(losses["loss_label"], expected, rtol=1e-4, atol=1e-5)
    assert losses.keys() == {"loss_label", "loss_alignment"}
    with EventStorage():
        sum(tiny_model.train()(clips).values()).backward()
    reached = {name.split(".")[0] for name, p in tiny_model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"image_encoder", "text_encoder", "decoder", "likelihood"}
    assert tiny_model.loss_count(clips) == 3


def test_scores_depend_on_the_order_of_frames_and_on_no_other_clip(tiny_model, clips):
    together = probabilities(tiny_model, clips)
    torch.testing.assert_close(together.sum(-1), torch.ones(3))
    torch.testing.assert_close(probabilities(tiny_model, clips[1:2])[0], together[1], rtol=1e-4, atol=1e-6)
    backwards = [{**item, "frames": item["frames"].flip(0)} for item in clips]
    assert (probabilities(tiny_model, backwards) - together).abs().max() > 1e-5


def test_frames_of_a_clip_are_mixed_alike(tiny_model, clips, monkeypatch):
    """Mixup blends a clip with its neighbour, frame by frame, with one share."""
    settings = VideoClassificationSettings(frames=4, mixup=1.0)
    task, seen = VideoClassificationTask(settings), []
    encode = task.encode
    monkeypatch.setattr(
        task, "encode", lambda model, images, count: seen.append(images) or encode(model, images, count)
    )
    with torch.no_grad(), EventStorage():
        losses = task.losses(tiny_model.train(), clips)
    assert losses["loss_label"].isfinite()
    own = task.images(tiny_model, clips).tensor.view(3, 4, 3, 32, 32)
    mixed = seen[0].tensor.view(3, 4, 3, 32, 32)
    for clip in range(3):
        other = own[clip - 1]
        share = ((mixed[clip] - other) * (own[clip] - other)).sum() / ((own[clip] - other) ** 2).sum()
        assert 0 <= share <= 1
        torch.testing.assert_close(mixed[clip], share * own[clip] + (1 - share) * other, rtol=1e-4, atol=1e-4)
