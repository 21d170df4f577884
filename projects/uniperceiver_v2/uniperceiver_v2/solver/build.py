"""Optimizers from a configuration. Schedules of the rate come from Detectron2's ``build_lr_scheduler``."""

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ..errors import UserError
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

    "TaskBalancedAdamW" takes the sampling ratios s_k and gradient weights ω_k from ``TASKS``. "AdamW" is the baseline
    of the paper's Table 4. It obeys ``SOLVER.CLIP_GRADIENTS`` as in Detectron2. TaskBalancedAdamW does not, as its
    gradients always have the norm ω_k.
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

    - ``SOLVER.BACKBONE_MULTIPLIER``, ``SOLVER.TEXT_ENCODER_MULTIPLIER`` and ``SOLVER.DECODER_MULTIPLIER`` multiply
      the rate of the backbone, the text encoder and the unified decoder. Backbone and text encoder may have a
      layer-wise decay (:func:`_layer_factors`).
    - Matrices and convolutions decay by ``SOLVER.WEIGHT_DECAY``, norms by ``SOLVER.WEIGHT_DECAY_NORM`` and biases by
      ``SOLVER.WEIGHT_DECAY_BIAS`` (0 by default). Embeddings, learned tokens, learned queries and τ never decay. Decay
      would pull them towards zero, which is no neutral value for them.

    Returns:
        groups for an optimizer, each with ``params``, ``lr`` and ``weight_decay``.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[nn.Parameter] = set()
    factors = _layer_factors(cfg, model)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            multiplier = _rate_multiplier(cfg, module_name) * factors.get(module_name, 1.0)
            decay = _weight_decay(cfg, module, name, parameter)
            group = groups.setdefault(
                (multiplier, decay),
                {
                    "params": [],
                    "lr": cfg.SOLVER.BASE_LR * multiplier,
                    "weight_decay": decay,
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
        return cfg.SOLVER.DECODER_MULTIPLIER
    return 1.0


def _layer_factors(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """The factors of the rate by ``SOLVER.BACKBONE_LAYER_DECAY`` and ``SOLVER.TEXT_ENCODER_LAYER_DECAY``, by module
    name; 1 for other modules.

    The factor of a block is the decay to the power of the number of blocks behind it. A module between two blocks, or
    before the first, has the factor of the next block, and a module behind the last one has 1.

    Raises:
        UserError: the blocks of such a part are not known.
    """
    found: dict[str, float] = {}
    for name, part in model.named_modules():
        kind = name.rpartition(".")[2]
        decay = cfg.SOLVER[f"{kind.upper()}_LAYER_DECAY"] if kind in ("backbone", "text_encoder") else 1.0
        if decay == 1:
            continue
        try:
            blocks = part.blocks()
        except (AttributeError, ValueError) as error:
            raise UserError(
                f"SOLVER.{kind.upper()}_LAYER_DECAY: the blocks of the {kind} are not known: {error}"
            ) from error
        behind = {module: number for number, block in enumerate(reversed(blocks)) for module in block.modules()}
        number = 0
        for inner, module in reversed(list(part.named_modules(prefix=name))):
            number = behind.get(module, number)
            found[inner] = decay**number
    return found


def _in_decoder(module_name: str) -> bool:
    """Whether a module belongs to the unified decoder, and not to the region network's decoder."""
    return module_name.split(".")[0] == "decoder"


def _weight_decay(cfg: CfgNode, module: nn.Module, name: str, parameter: nn.Parameter) -> float:
    if isinstance(module, NORMS):
        return cfg.SOLVER.WEIGHT_DECAY_NORM
    if name.endswith("bias"):
        return cfg.SOLVER.WEIGHT_DECAY_BIAS or 0.0
    if parameter.ndim < 2 or "weight" not in name or isinstance(module, nn.Embedding):
        return 0.0
    return cfg.SOLVER.WEIGHT_DECAY
