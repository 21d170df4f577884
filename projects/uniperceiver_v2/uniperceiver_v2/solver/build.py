"""Optimizers from a configuration. Rates come from Detectron2: ``detectron2.solver.build_lr_scheduler``."""

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from .task_balanced import TaskBalancedAdamW

NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER`` over :func:`parameter_groups`.

    TaskBalancedAdamW takes s_k and ω_k from ``TASKS``. AdamW is the paper's other arm (its Table 4), with
    ``SOLVER.CLIP_GRADIENTS`` as in Detectron2; normalised gradients leave nothing to clip.
    """
    settings = {
        "lr": cfg.SOLVER.BASE_LR,
        "betas": tuple(cfg.SOLVER.BETAS),
        "eps": cfg.SOLVER.EPS,
        "weight_decay": cfg.SOLVER.WEIGHT_DECAY,
    }
    groups = parameter_groups(cfg, model)
    if cfg.SOLVER.OPTIMIZER == "TaskBalancedAdamW":
        ratios = sampling_ratios(cfg)
        tasks = {name: (ratio, cfg.TASKS[name].GRADIENT_WEIGHT) for name, ratio in ratios.items()}
        return TaskBalancedAdamW(groups, **settings, tasks=tasks)
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(groups, **settings, foreach=True)


def sampling_ratios(cfg: CfgNode) -> dict[str, float]:
    """s_k of every task in ``TASKS.NAMES``, in that order, scaled to sum to 1."""
    ratios = {name: float(cfg.TASKS[name].SAMPLING_RATIO) for name in cfg.TASKS.NAMES}
    total = math.fsum(ratios.values())
    return {name: ratio / total for name, ratio in ratios.items()}


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters, grouped by learning rate and weight decay.

    - ``SOLVER.BACKBONE_MULTIPLIER``, ``SOLVER.TEXT_ENCODER_MULTIPLIER`` and ``SOLVER.DECODER_MULTIPLIER`` scale
      the rate of the backbone, the text encoder and the unified decoder, which stays as it is for the first
      ``SOLVER.DECODER_DELAY`` iterations (:class:`uniperceiver_v2.engine.DelayedStart`). The gates in it, which are
      the routers of its Conditional MoE, have ``SOLVER.GATE_MULTIPLIER`` times its rate.
    - Matrices and convolutions decay by ``SOLVER.WEIGHT_DECAY``, norms by ``SOLVER.WEIGHT_DECAY_NORM``,
      biases by ``SOLVER.WEIGHT_DECAY_BIAS`` (by default not at all). Embeddings, learned tokens and queries,
      and τ never decay: pulled towards zero they would stand for something else.

    Returns:
        groups for an optimizer, each with ``params``, ``lr``, ``weight_decay`` and ``delay``, the iteration in which
        it begins to learn.
    """
    groups: dict[tuple[float, float, int], dict[str, Any]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            multiplier = _rate_multiplier(cfg, module_name)
            decay = _weight_decay(cfg, module, name, parameter)
            delay = cfg.SOLVER.DECODER_DELAY if _in_decoder(module_name) else 0
            group = groups.setdefault(
                (multiplier, decay, delay),
                {
                    "params": [],
                    "lr": cfg.SOLVER.BASE_LR * multiplier,
                    "weight_decay": decay,
                    "delay": delay,
                },
            )
            group["params"].append(parameter)
    return list(groups.values())


def _rate_multiplier(cfg: CfgNode, module_name: str) -> float:
    path = module_name.split(".")
    if "backbone" in path:
        return cfg.SOLVER.BACKBONE_MULTIPLIER
    if "text_encoder" in path:
        return cfg.SOLVER.TEXT_ENCODER_MULTIPLIER
    if _in_decoder(module_name):
        return cfg.SOLVER.DECODER_MULTIPLIER * (cfg.SOLVER.GATE_MULTIPLIER if "router" in path else 1.0)
    return 1.0


def _in_decoder(module_name: str) -> bool:
    """Whether a module belongs to the unified decoder; the region network has a decoder of its own."""
    return module_name.split(".")[0] == "decoder"


def _weight_decay(cfg: CfgNode, module: nn.Module, name: str, parameter: nn.Parameter) -> float:
    if isinstance(module, NORMS):
        return cfg.SOLVER.WEIGHT_DECAY_NORM
    if name.endswith("bias"):
        return cfg.SOLVER.WEIGHT_DECAY_BIAS or 0.0
    if parameter.ndim < 2 or "weight" not in name or isinstance(module, nn.Embedding):
        return 0.0
    return cfg.SOLVER.WEIGHT_DECAY
