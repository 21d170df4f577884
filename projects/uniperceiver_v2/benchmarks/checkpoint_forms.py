"""How long a checkpoint of a sharded run holds up training: one file or parts, written at once or in the background.

    python projects/uniperceiver_v2/benchmarks/checkpoint_forms.py [--ranks 2] [--millions 0] [--repeats 5]

The processes (gloo, one thread each) divide the small model among them, or with --millions a model of so many million
parameters in 16 layers. The checkpoint is that of a training: parameters, their average, and two moments, 16 bytes for
a parameter. The ways alternate. The program prints a Markdown table of medians. Training stands still until ``save``
has returned in all processes. "until written" ends when ``last_checkpoint`` names the checkpoint. "to read" is the time
of a resume by as many processes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch import nn

import uniperceiver_v2  # noqa: F401  (registers the model)
from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.checkpoint.parts import PartsWriter
from uniperceiver_v2.config import load_config
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.engine.sharding import shard_model
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.shards import divided_like

WAYS = [(form, in_background) for form in ("file", "parts") for in_background in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--millions", type=int, default=0, help="parameters; 0 for the small model")
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints of each way")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (args, folder), nprocs=args.ranks)


def measure(rank: int, args: argparse.Namespace, folder: str) -> None:
    """The program of one process. The first one prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=args.ranks)
    comm.create_local_process_group(args.ranks)
    model = build(args.millions)
    shard_model(model, "full")
    state = State(model)
    found: dict[tuple[str, bool], list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(args.repeats + 1):
        for form, in_background in WAYS:
            output = Path(folder, "output")
            writer = PartsWriter() if form == "parts" else None
            checkpointer = AtomicCheckpointer(
                model, str(output), state=state, in_background=in_background, parts=writer
            )
            dist.barrier()
            start = time.perf_counter()
            checkpointer.save("model_0000001")
            dist.barrier()
            seconds = [time.perf_counter() - start]
            checkpointer.wait()
            dist.barrier()
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            checkpointer.resume_or_load("", resume=True)
            dist.barrier()
            found[form, in_background].append([*seconds, time.perf_counter() - start])
            if rank == 0:
                shutil.rmtree(output)
    if rank == 0:
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{args.ranks} processes, {millions:.1f} million parameters, {16 * millions / 1.048576:.0f} MiB\n")
        print("| written | s training stands still | s until written | s to read |\n|---|---:|---:|---:|")
        for (form, in_background), rows in found.items():
            medians = (statistics.median(values) for values in zip(*rows[1:]))  # the first one warms up
            where = " in the background" if in_background else ""
            print(f"| {form}{where} | {' | '.join(f'{value:.3f}' for value in medians)} |")


def build(millions: int) -> nn.Module:
    """The small model, or a stack of layers, with the same weights in all processes."""
    torch.manual_seed(0)
    if millions == 0:
        cfg = load_config(str(TINY_CONFIG), ["MODEL.DEVICE", "cpu"], training=False, datasets=False)
        return UniPerceiverTrainer.build_model(cfg)
    width = int((millions * 1e6 / 16) ** 0.5)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(16)])


class State:
    """The state beside the model: an average and two moments of each parameter, divided as the parameters are."""

    def __init__(self, model: nn.Module):
        self._tensors = [{name: p.detach().clone() for name, p in model.named_parameters()} for _ in range(3)]

    def state_dict(self) -> dict:
        return {"tensors": self._tensors}

    def load_state_dict(self, state: dict) -> None:
        for own, given in zip(self._tensors, state["tensors"]):
            for name, value in own.items():
                value.copy_(divided_like(given[name], value))


if __name__ == "__main__":
    main()
