"""What TaskBalancedAdamW costs beside torch.optim.AdamW: times of a step on one core.

    OMP_NUM_THREADS=1 python projects/uniperceiver_v2/benchmarks/optimizer.py [--repeats 40]

Prints a Markdown table for the parameters of the tiny model (configs/digit_scenes) and for 100 million of BERT-base's
shapes. "reached" is the share of the parameters that have a gradient; AdamW(foreach=True) is given gradients of zero
for the rest, as they are to move on too. The two step in turn; the ratio is the median over these pairs, with
quartiles. Times are the processor's, so that neighbours on the machine count little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.solver import TaskBalancedAdamW
from uniperceiver_v2.solver.build import parameter_groups

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "digit_scenes" / "uniperceiver_v2_tiny.yaml"
# What language modelling reaches of the tiny model, and an upper half of the large one.
REACHED = {"tiny": ("text_encoder", "decoder", "likelihood"), "100M": tuple(f"layers.{i}." for i in range(6, 12))}


def large_model() -> nn.Module:
    """100 million parameters: 12 layers of width 768, and 20 thousand words."""
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(768, 12, 3072, device="meta"), 12, enable_nested_tensor=False
    )
    model.embedding = nn.Embedding(20_000, 768, device="meta")
    return model.to_empty(device="cpu")


def groups_with_gradients(cfg: CfgNode, model: nn.Module, reached: tuple[str, ...], rest: bool) -> list[dict[str, Any]]:
    """The model's groups over parameters of their own; those that are not reached have zeros, or no gradient."""
    of_task = {p for name, p in model.named_parameters() if name.startswith(reached)}
    groups = parameter_groups(cfg, model)
    for group in groups:
        parameters = []
        for p in group["params"]:
            parameter = nn.Parameter(torch.randn(p.shape))
            if p in of_task:
                parameter.grad = torch.randn(p.shape)
            elif rest:
                parameter.grad = torch.zeros(p.shape)
            parameters.append(parameter)
        group["params"] = parameters
    return groups


def seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def row(name: str, cfg: CfgNode, model: nn.Module, reached: tuple[str, ...], repeats: int) -> str:
    settings = {"lr": cfg.SOLVER.BASE_LR, "betas": tuple(cfg.SOLVER.BETAS), "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    balanced = TaskBalancedAdamW(groups_with_gradients(cfg, model, reached, False), **settings, tasks={"a": (0.5, 1.0)})
    plain = torch.optim.AdamW(groups_with_gradients(cfg, model, reached, True), **settings, foreach=True)
    steps = {"balanced": lambda: balanced.step(task="a"), "plain": plain.step}
    for step in [*steps.values()] * 3:
        step()
    times = []
    for repeat in range(repeats):
        order = list(steps) if repeat % 2 else list(reversed(steps))
        times.append({kind: seconds(steps[kind]) for kind in order})
    lower, middle, upper = statistics.quantiles((t["balanced"] / t["plain"] for t in times), n=4)
    medians = " | ".join(f"{1e3 * statistics.median(t[kind] for t in times):.2f}" for kind in ("plain", "balanced"))
    found = [p for group in balanced.param_groups for p in group["params"]]
    share = sum(p.numel() for p in found if p.grad is not None) / sum(p.numel() for p in found)
    return f"| {name} | {len(found)} | {share:.0%} | {medians} | {middle:.3f} ({lower:.3f} to {upper:.3f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40, help="pairs of steps of the large model")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cfg = load_config(str(CONFIG))
    print("| parameters | tensors | reached | AdamW ms | TaskBalancedAdamW ms | ratio |\n|---|---|---|---|---|---|")
    for name, build, count in (("tiny", lambda: build_model(cfg), 5 * repeats), ("100M", large_model, repeats)):
        model = build()
        for reached in (("",), REACHED[name]):
            print(row(name, cfg, model, reached, count), flush=True)


if __name__ == "__main__":
    main()
