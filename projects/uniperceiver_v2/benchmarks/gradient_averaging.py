"""Averaging of gradients when tasks use different parts of the model: ours beside DistributedDataParallel.

    python projects/uniperceiver_v2/benchmarks/gradient_averaging.py [--ranks 2] [--repeats 15]

DistributedDataParallel searches each step's graph for unused parameters. Two processes on the CPU (gloo) train the
small model on a batch of each task: forward pass, backward pass and averaging. Steps of both sides alternate. Each
process has one thread. The program prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.engine.gradients import GradientAverager
from uniperceiver_v2.files import TINY_CONFIG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each task by each of the two")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (args.ranks, args.repeats, folder), nprocs=args.ranks)


def measure(rank: int, ranks: int, repeats: int, folder: str) -> None:
    """The program of one process: all tasks, one after the other. The first process prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks)
    comm.create_local_process_group(ranks)
    cfg = load_config(str(TINY_CONFIG), ["MODEL.DEVICE", "cpu"], training=True, world_size=ranks)
    torch.manual_seed(0)
    model = UniPerceiverTrainer.build_model(cfg).train()
    ways = {"ours": ours(model), "DDP": ddp(model)}
    if rank == 0:
        print("| task | ms a step, ours | ms, DDP that searches | ours / DDP |\n|---|---:|---:|---:|")
    for task in cfg.TASKS.NAMES:
        batch = next(iter(build_task_train_loader(cfg, task)))
        times = {name: [] for name in ways}
        with EventStorage():
            for _ in range(repeats + 2):
                for name, step in ways.items():
                    model.zero_grad()
                    dist.barrier()
                    start = time.perf_counter()
                    step(batch)
                    dist.barrier()
                    times[name].append(1000 * (time.perf_counter() - start))
        a, b = (statistics.median(times[name][2:]) for name in ("ours", "DDP"))
        if rank == 0:
            print(f"| {task} | {a:.1f} | {b:.1f} | {a / b:.2f} |", flush=True)
    dist.destroy_process_group()


def ours(model: nn.Module) -> Callable[[list[dict]], None]:
    """A step as in the trainer."""
    averager = GradientAverager(model.parameters())

    def step(batch: list[dict]) -> None:
        sum(model(batch).values()).backward()
        averager.average([0.0])

    return step


def ddp(model: nn.Module) -> Callable[[list[dict]], None]:
    """A step with PyTorch's DistributedDataParallel."""
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    def step(batch: list[dict]) -> None:
        sum(wrapped(batch).values()).backward()

    return step


if __name__ == "__main__":
    main()
