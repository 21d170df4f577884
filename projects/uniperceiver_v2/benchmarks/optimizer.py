"""The cost of a step of TaskBalancedAdamW beside torch.optim.AdamW(foreach=True).

    python projects/uniperceiver_v2/benchmarks/optimizer.py [--quick]

There are rows for the parameters of the tiny model (configs/digit_scenes) and for 100 million parameters of BERT-base's
shapes. Either all parameters have gradients, or only those that one task uses. For the unused parameters AdamW gets
gradients of zero, so that it updates them, too. The bytes that must move are each parameter and its two moments, read
and written, and its gradient. TaskBalancedAdamW reads the gradient twice, as it needs the norm first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import harness
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.solver import TaskBalancedAdamW
from uniperceiver_v2.solver.build import parameter_groups

# The parts of the tiny model that language modelling uses, and the upper half of the large model.
REACHED = {"tiny": ("text_encoder", "decoder", "likelihood"), "100M": tuple(f"layers.{i}." for i in range(6, 12))}


def large_model() -> nn.Module:
    """A model with 100 million parameters: 12 layers of width 768, and 20 thousand words."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, device="meta")
    model = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    model.embedding = nn.Embedding(20_000, 768, device="meta")
    return model


def groups_with_gradients(
    cfg: CfgNode, model: nn.Module, reached: tuple[str, ...], rest: bool, device: str
) -> list[dict[str, Any]]:
    """The model's parameter groups with new random parameters. Those outside ``reached`` have a gradient of zero if
    ``rest``, or no gradient."""
    of_task = {p for name, p in model.named_parameters() if name.startswith(reached)}
    groups = parameter_groups(cfg, model)
    for group in groups:
        parameters = []
        for p in group["params"]:
            parameter = nn.Parameter(torch.randn(p.shape, device=device))
            if p in of_task:
                parameter.grad = torch.randn(p.shape, device=device)
            elif rest:
                parameter.grad = torch.zeros(p.shape, device=device)
            parameters.append(parameter)
        group["params"] = parameters
    return groups


def row(name: str, cfg: CfgNode, model: nn.Module, reached: tuple[str, ...], device: str) -> harness.Row:
    settings = {"lr": cfg.SOLVER.BASE_LR, "betas": tuple(cfg.SOLVER.BETAS), "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    groups = groups_with_gradients(cfg, model, reached, False, device)
    balanced = TaskBalancedAdamW(groups, **settings, tasks={"a": (0.5, 1.0)})
    plain = torch.optim.AdamW(groups_with_gradients(cfg, model, reached, True, device), **settings, foreach=True)
    parameters = [p for group in balanced.param_groups for p in group["params"]]
    with_gradient = sum(p.nbytes for p in parameters if p.grad is not None)
    share = with_gradient / sum(p.nbytes for p in parameters)
    return harness.compare(
        f"TBGN step, {name}, {len(parameters)} tensors" + (f", {share:.0%} reached" if share < 1 else ""),
        lambda: balanced.step(task="a"),
        plain.step,
        peer_name="AdamW(foreach=True)",
        at_most=1.1,
        moved=6 * sum(p.nbytes for p in parameters) + 2 * with_gradient,
    )


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    cfg = load_config(str(TINY_CONFIG), ["MODEL.DEVICE", args.device])
    for name, build in (("tiny", lambda: build_model(cfg)), ("100M", large_model)):
        model = build()
        for reached in (("",), REACHED[name]):
            yield row(name, cfg, model, reached, args.device)


if __name__ == "__main__":
    harness.main(__doc__, rows)
