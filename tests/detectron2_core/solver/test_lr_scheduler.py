"""Schedulers of optimizers with groups of different rates."""

import math

import pytest
import torch
from detectron2.solver import LRMultiplier, WarmupCosineLR, WarmupMultiStepLR, WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, LinearParamScheduler
from torch import nn


def make_optimizer():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    return torch.optim.SGD([{"params": [first], "lr": 5.0}, {"params": [second], "lr": 0.5}], lr=1.0)


def advance(optimizer, scheduler, iterations):
    """The rates of both groups in each of the next iterations."""
    found = []
    for _ in range(iterations):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_multiplier_scales_each_group_from_its_own_rate():
    optimizer = make_optimizer()
    scheduler = LRMultiplier(optimizer, LinearParamScheduler(1.0, 0.0), max_iter=4)
    found = advance(optimizer, scheduler, 4)
    assert found == [pytest.approx([5 * f, 0.5 * f]) for f in (1.0, 0.75, 0.5, 0.25)]


def test_multiplier_goes_on_from_its_state():
    def build(optimizer):
        return LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.1), max_iter=20)

    whole = make_optimizer()
    expected = advance(whole, build(whole), 20)

    first = make_optimizer()
    interrupted = build(first)
    advance(first, interrupted, 8)
    second = make_optimizer()
    resumed = build(second)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(interrupted.state_dict())
    assert advance(second, resumed, 12) == [pytest.approx(rates) for rates in expected[8:]]


def test_multiplier_wants_a_param_scheduler():
    with pytest.raises(ValueError):
        LRMultiplier(make_optimizer(), lambda where: 1.0, max_iter=4)


def test_unknown_warmup_method_is_named():
    with pytest.raises(ValueError, match="sudden"):
        WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.5, warmup_method="sudden")


def test_warmup_climbs_to_the_schedule_where_it_ends():
    schedule = WarmupParamScheduler(LinearParamScheduler(2.0, 1.0), 0.1, 0.5)
    assert schedule(0.0) == pytest.approx(0.2)
    assert schedule(0.25) == pytest.approx((0.2 + 1.5) / 2)
    assert schedule(0.75) == pytest.approx(1.25)


@pytest.mark.parametrize("method", ["linear", "constant"])
def test_warmup_multi_step_lr(method):
    optimizer = make_optimizer()
    scheduler = WarmupMultiStepLR(optimizer, [6, 8], gamma=0.1, warmup_factor=0.2, warmup_iters=4, warmup_method=method)
    for t, found in enumerate(advance(optimizer, scheduler, 10)):
        warmup = 1.0 if t >= 4 else 0.2 if method == "constant" else 0.2 + 0.8 * t / 4
        factor = warmup * 0.1 ** ((t >= 6) + (t >= 8))
        assert found == pytest.approx([5 * factor, 0.5 * factor]), t


def test_warmup_multi_step_lr_wants_increasing_milestones():
    with pytest.raises(ValueError):
        WarmupMultiStepLR(make_optimizer(), [8, 6])


def test_warmup_cosine_lr():
    optimizer = make_optimizer()
    scheduler = WarmupCosineLR(optimizer, 10, warmup_factor=0.2, warmup_iters=4)
    for t, found in enumerate(advance(optimizer, scheduler, 10)):
        factor = min(0.2 + 0.8 * t / 4, 1.0) * 0.5 * (1 + math.cos(math.pi * t / 10))
        assert found == pytest.approx([5 * factor, 0.5 * factor]), t
