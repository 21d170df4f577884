from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

_NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """Values of ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``: clip each entry, or the norm of each parameter's gradient."""

    VALUE = "value"
    NORM = "norm"


def maybe_add_gradient_clipping(cfg, optimizer):
    """Give the optimizer a ``step`` that first clips gradients by ``cfg.SOLVER.CLIP_GRADIENTS``.

    Args:
        cfg: CfgNode.
        optimizer: an optimizer, which is changed in place, or an optimizer class.

    Returns:
        The given optimizer, or a subclass of the given class. Without clipping, ``optimizer`` unchanged.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    clip_type = GradientClipType(cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE)
    limit = float(cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
    norm_type = float(cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE)
    base = type(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else optimizer

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if clip_type is GradientClipType.VALUE:
                    nn.utils.clip_grad_value_(parameter, limit)
                else:
                    nn.utils.clip_grad_norm_(parameter, limit, norm_type)
        return base.step(self, closure)

    clipping = type(base.__name__ + "WithGradientClip", (base,), {"step": step})
    if isinstance(optimizer, torch.optim.Optimizer):
        # The optimizer keeps its groups and its state. Only ``step`` changes.
        optimizer.__class__ = clipping
        return optimizer
    return clipping


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with the settings of ``cfg.SOLVER``, and with gradient clipping if it is enabled."""
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.SGD(
        params,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of the model, each once, in as few groups as possible.

    Args:
        model: the model.
        base_lr, weight_decay: of every group. None leaves them to the optimizer.
        weight_decay_norm: the weight decay of normalisation layers.
        bias_lr_factor: a factor on the rate of parameters with the name ``bias``.
        weight_decay_bias: the weight decay of parameters with the name ``bias``.
        lr_factor_func: maps a full parameter name to a factor on the rate.
        overrides: settings by a parameter's own name, for example ``{"embedding": {"lr": 0.01}}``. They take
            precedence.

    Raises:
        ValueError: ``base_lr`` is missing, or ``overrides`` and the bias settings both set ``bias``.
    """
    overrides = dict(overrides or {})
    defaults = {"lr": base_lr, "weight_decay": weight_decay}
    defaults = {key: value for key, value in defaults.items() if value is not None}
    bias = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor requires base_lr")
        bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    if bias:
        if "bias" in overrides:
            raise ValueError("Conflicting overrides for 'bias'")
        overrides["bias"] = bias
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func requires base_lr")

    params, seen = [], set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            settings = dict(defaults)
            if weight_decay_norm is not None and isinstance(module, _NORM_LAYERS):
                settings["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                settings["lr"] *= lr_factor_func(f"{module_name}.{name}")
            settings.update(overrides.get(name, {}))
            params.append({"params": [parameter], **settings})
    return reduce_param_groups(params)


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge parameter groups with equal settings, as multi-tensor optimizers are fast with few, large groups.

    If a parameter is in several groups, later settings take precedence.
    """
    settings_of = defaultdict(dict)
    for group in params:
        for parameter in group["params"]:
            settings_of[parameter].update({key: value for key, value in group.items() if key != "params"})
    merged = defaultdict(list)
    for parameter, settings in settings_of.items():
        merged[tuple(settings.items())].append(parameter)
    return [{"params": parameters, **dict(settings)} for settings, parameters in merged.items()]


def build_lr_scheduler(cfg, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule with the name ``cfg.SOLVER.LR_SCHEDULER_NAME``, after the warm-up of ``cfg.SOLVER``.

    Raises:
        ValueError: the name is neither WarmupMultiStepLR nor WarmupCosineLR.
    """
    solver = cfg.SOLVER
    schedule = WarmupParamScheduler(
        _schedule_after_warmup(solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _schedule_after_warmup(solver) -> ParamScheduler:
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) != len(solver.STEPS):
            logging.getLogger(__name__).warning("Ignoring the SOLVER.STEPS beyond SOLVER.MAX_ITER.")
        return MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    if name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        assert 0.0 <= end <= 1.0, f"SOLVER.BASE_LR_END is outside of 0..BASE_LR: {solver.BASE_LR_END}"
        return CosineParamScheduler(1, end)
    raise ValueError(f"Unknown LR scheduler: {name}")
