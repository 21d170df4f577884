"""Mixup and CutMix, written out pixel by pixel, and their soft targets in the loss."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st

from uniperceiver_v2.tasks.mixing import mix, mixing_weights

SIZE = (12, 20)
alphas = st.sampled_from([0.2, 0.8, 1.0, 3.0])


@settings(max_examples=30)
@given(alphas | st.just(0.0), alphas | st.just(0.0), st.integers(1, 5), st.integers(0, 2**31))
def test_each_pixel_and_each_target_is_mixed_by_the_same_share(mixup, cutmix, count, seed):
    torch.manual_seed(seed)
    weights = mixing_weights(count, SIZE, mixup, cutmix)
    if not (mixup or cutmix):
        assert weights is None
        return
    assert weights.shape == (count, 1, *SIZE) and weights.min() >= 0 and weights.max() <= 1
    images, labels = torch.rand(count, 3, 16, 24), torch.randint(4, (count,))
    mixed, targets = mix(images, labels, weights, 4)
    for i in range(count):
        before = i - 1 if i else count - 1
        for y, x in ((0, 0), (5, 9), (11, 19)):
            w = weights[i, 0, y, x]
            expected = w * images[i, :, y, x] + (1 - w) * images[before, :, y, x]
            torch.testing.assert_close(mixed[i, :, y, x], expected)
        share, expected = weights[i].mean().item(), [0.0] * 4
        expected[labels[i]] += share
        expected[labels[before]] += 1 - share
        assert targets[i].tolist() == pytest.approx(expected, abs=1e-6)
    assert mixed[:, :, 12:].equal(images[:, :, 12:]) and mixed[..., 20:].equal(images[..., 20:])  # the padding


def test_mixup_is_even_and_cutmix_a_rectangle():
    even = mixing_weights(50, SIZE, 0.8, 0.0)
    assert (even == even[..., :1, :1]).all() and even[:, 0, 0, 0].unique().numel() == 50
    cut = mixing_weights(200, SIZE, 0.0, 1.0)
    assert set(cut.unique().tolist()) == {0.0, 1.0}
    for weights in cut[:, 0]:
        rows, columns = (weights == 0).any(1), (weights == 0).any(0)
        assert (weights == 0).equal(rows[:, None] & columns)
    assert 0.25 < 1 - cut.mean().item() < 0.45  # of one half on average, borders cut off a part
    both = mixing_weights(400, SIZE, 0.8, 1.0)
    flat = (both == both[..., :1, :1]).all(-1).all(-1).float().mean().item()
    assert 0.45 < flat < 0.65


def test_the_loss_is_the_mean_of_both_classes_by_their_shares(tiny_config, digits):
    tiny_config.TASKS.digits.update({"MIXUP": 0.8, "CUTMIX": 1.0, "LABEL_SMOOTHING": 0.1})
    model = build_model(tiny_config).train()
    torch.manual_seed(3)
    with EventStorage() as storage:
        losses = model(digits)
        accuracy = storage.latest()["label_accuracy"][0]
    torch.manual_seed(3)
    with torch.no_grad():
        images = model.preprocess(digits)
        weights = mixing_weights(4, (32, 32), 0.8, 1.0)
        plain = images.tensor.clone()
        for i in range(4):
            plain[i] = weights[i] * images.tensor[i] + (1 - weights[i]) * images.tensor[i - 1]
        images.tensor = plain
        encoding, _ = model.image_encoder(images)
        names = model.encode_candidates(digits[0]["candidates"])
        log_p = model.likelihood.of_directions(model.decode_image(encoding), names).log_softmax(-1)
    total = hits = 0.0
    for i in range(4):
        share = weights[i].mean().item()
        target = [0.1 / 5] * 5
        target[digits[i]["label"]] += 0.9 * share
        target[digits[i - 1]["label"]] += 0.9 * (1 - share)
        total -= sum(t * p for t, p in zip(target, log_p[i].tolist(), strict=True))
        hits += log_p[i].argmax().item() == target.index(max(target))
    assert losses["loss_label"].item() == pytest.approx(total / 4, rel=1e-4)
    assert accuracy == pytest.approx(hits / 4)
    assert losses["loss_alignment"].isfinite()
