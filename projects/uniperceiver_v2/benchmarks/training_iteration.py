"""A whole training iteration, forward, backward and optimizer, in bf16 autocast beside float32.

    python projects/uniperceiver_v2/benchmarks/training_iteration.py [--threads 2] [--quick]

The iterations train detection on the scenes of memory.py. In its medium model (Swin-T's shape, region network of width
256, 2 scenes of 384 pixels) most of the time is in matrix products. The target is for this model. In the tiny model of
configs/digit_scenes (8 scenes of 96 pixels) the time is in many small operations, which take as long in either dtype.
So its row has no target. On a processor without bf16 instructions an iteration of the medium model takes minutes. There
its row is left out, with a note on stderr. training_profile.py shows where the time goes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import harness
import memory
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage


def iteration(size: str, device: str) -> Callable[[bool], None]:
    """One iteration of a model, in bf16 or float32. Both train the same weights."""
    model = build_model(memory.config(size, device, [], compiled=False)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)
    batch = memory.scenes(*memory.SIZES[size])

    def run(bf16: bool) -> None:
        torch.manual_seed(0)
        with EventStorage(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    if not args.quick:
        harness.settings.budget = 15.0  # seconds for three pairs of the medium model, with one or two threads
    for size, target in (("medium", 1.4), ("tiny", None)):
        if size == "medium" and not harness.has_bf16_instructions(args.device):
            print("no bf16 instructions: the medium model is left out", file=sys.stderr)
            continue
        run = iteration(size, args.device)
        yield harness.compare(
            f"training iteration, detection, {size}, bf16",
            lambda run=run: run(True),
            lambda run=run: run(False),
            peer_name="float32",
            at_least=target,
        )


if __name__ == "__main__":
    harness.main(__doc__, rows)
