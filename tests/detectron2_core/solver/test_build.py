"""Parameter groups, optimizer, gradient clipping and schedules from a config."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.LayerNorm(3)
        self.batch_norm = nn.BatchNorm1d(3)
        self.embedding = nn.Parameter(torch.ones(4))


def settings_by_name(model, groups):
    """{parameter name: settings}; fails if a parameter is in several groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            assert name not in found
            found[name] = {key: value for key, value in group.items() if key != "params"}
    return found


def test_every_trainable_parameter_is_in_one_group_by_default():
    model = Net()
    model.linear.bias.requires_grad_(False)
    model.tied = model.linear
    groups = get_default_optimizer_params(model)
    assert len(groups) == 1
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert settings_by_name(model, groups) == {name: {} for name in trainable}


def test_settings_of_norms_biases_names_and_overrides():
    model = Net()
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=0.1,
        weight_decay_norm=0.0,
        bias_lr_factor=2.0,
        weight_decay_bias=0.5,
        lr_factor_func=lambda name: 10.0 if name.startswith("linear.") else 1.0,
        overrides={"embedding": {"lr": 0.25}},
    )
    bias = {"lr": 2.0, "weight_decay": 0.5}
    norm = {"lr": 1.0, "weight_decay": 0.0}
    assert settings_by_name(model, groups) == {
        "linear.weight": {"lr": 10.0, "weight_decay": 0.1},
        "linear.bias": bias,
        "norm.weight": norm,
        "norm.bias": bias,
        "batch_norm.weight": norm,
        "batch_norm.bias": bias,
        "embedding": {"lr": 0.25, "weight_decay": 0.1},
    }
    assert len(groups) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 1.0},
        {"weight_decay_bias": 0.0, "overrides": {"bias": {"lr": 1.0}}},
    ],
)
def test_settings_that_cannot_be_followed_are_refused(arguments):
    with pytest.raises(ValueError):
        get_default_optimizer_params(Net(), **arguments)


def test_reduce_param_groups_merges_equal_settings_and_lets_later_ones_win():
    first, second, third = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    groups = reduce_param_groups(
        [
            {"params": [first, second], "lr": 1.0, "weight_decay": 4.0},
            {"params": [third], "lr": 2.0, "weight_decay": 4.0},
            {"params": [second], "lr": 2.0},
        ]
    )
    merged = {group["lr"]: group for group in groups}
    assert merged.keys() == {1.0, 2.0}
    assert all(group["weight_decay"] == 4.0 for group in groups)
    assert merged[1.0]["params"] == [first]
    assert {id(p) for p in merged[2.0]["params"]} == {id(second), id(third)}


def test_build_optimizer_is_sgd_by_the_config():
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.MOMENTUM = 0.75
    cfg.SOLVER.WEIGHT_DECAY = 0.25
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.125
    model = Net()
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    settings = settings_by_name(model, optimizer.param_groups)
    assert settings.keys() == dict(model.named_parameters()).keys()
    for name, group in settings.items():
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.5, 0.75, False)
        assert group["weight_decay"] == (0.125 if "norm" in name else 0.25), name


def clip_config(clip_type, value, norm_type=2.0):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = norm_type
    return cfg


@pytest.mark.parametrize(
    "clip_type, norm_type, first, second",
    [
        ("value", 2.0, [1.0, -1.0], [0.5, 1.0]),
        # Each parameter has its own norm: (3, -4) has 5, (0.5, 12) has 12.01.
        ("norm", 2.0, [0.6, -0.8], [0.5 / math.hypot(0.5, 12), 12 / math.hypot(0.5, 12)]),
        ("norm", math.inf, [0.75, -1.0], [0.5 / 12, 1.0]),
    ],
)
@pytest.mark.parametrize("given", ["instance", "class"])
def test_clipped_gradients_are_what_the_optimizer_steps_by(clip_type, norm_type, first, second, given):
    cfg = clip_config(clip_type, 1.0, norm_type)
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    if given == "instance":
        plain = torch.optim.SGD(parameters, lr=1.0)
        optimizer = maybe_add_gradient_clipping(cfg, plain)
        assert optimizer is plain
    else:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(parameters, lr=1.0)
    assert isinstance(optimizer, torch.optim.SGD)
    parameters[0].grad = torch.tensor([3.0, -4.0])
    parameters[1].grad = torch.tensor([0.5, 12.0])
    optimizer.step()
    torch.testing.assert_close(-parameters[0].data, torch.tensor(first))
    torch.testing.assert_close(-parameters[1].data, torch.tensor(second))


def test_without_clipping_the_optimizer_stays_as_it_is():
    cfg = get_cfg()
    assert maybe_add_gradient_clipping(cfg, torch.optim.AdamW) is torch.optim.AdamW


def test_a_clipping_optimizer_takes_a_scheduler_and_a_checkpoint():
    cfg = clip_config("value", 1.0)
    cfg.SOLVER.MAX_ITER = 10
    model = Net()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    scheduler.step()
    other = build_optimizer(cfg, Net())
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def rates(cfg):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    found = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def solver_config(name, **changes):
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.BASE_LR = 5.0
    cfg.SOLVER.MAX_ITER = 30
    cfg.SOLVER.WARMUP_ITERS = 5
    cfg.SOLVER.WARMUP_FACTOR = 0.001
    cfg.SOLVER.STEPS = (10, 15, 20)
    for key, value in changes.items():
        setattr(cfg.SOLVER, key, value)
    return cfg


def test_multi_step_schedule():
    found = rates(solver_config("WarmupMultiStepLR"))
    expected = [5 * (0.001 + 0.999 * t / 5) for t in range(5)]
    expected += [5.0] * 5 + [0.5] * 5 + [0.05] * 5 + [0.005] * 10
    assert found == pytest.approx(expected)


def test_multi_step_schedule_ignores_steps_after_the_end_and_can_stay_constant_in_warmup():
    found = rates(solver_config("WarmupMultiStepLR", STEPS=(10, 40), WARMUP_METHOD="constant"))
    assert found == pytest.approx([0.005] * 5 + [5.0] * 5 + [0.5] * 20)


def test_cosine_schedule_and_its_end():
    found = rates(solver_config("WarmupCosineLR", BASE_LR_END=1.0))

    def cosine(t):
        return 1 + (5 - 1) * 0.5 * (1 + math.cos(math.pi * t / 30))

    warmup = [0.005 + (cosine(5) - 0.005) * t / 5 for t in range(5)]
    assert found == pytest.approx(warmup + [cosine(t) for t in range(5, 30)])


def test_cosine_schedule_squeezed_into_the_time_after_warmup():
    found = rates(solver_config("WarmupCosineLR", RESCALE_INTERVAL=True))
    warmup = [0.005 + (5 - 0.005) * t / 5 for t in range(5)]
    after = [2.5 * (1 + math.cos(math.pi * t / 25)) for t in range(25)]
    assert found == pytest.approx(warmup + after)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="NoSuchLR"):
        rates(solver_config("NoSuchLR"))
