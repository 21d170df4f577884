"""Averaging of gradients when tasks use different parts of the model: ours in the backward pass, ours after it, and
DistributedDataParallel.

    python projects/uniperceiver_v2/benchmarks/gradient_averaging.py [--ranks 2] [--repeats 15]

DistributedDataParallel searches each step's graph for unused parameters. Two processes on the CPU (gloo) train the
small model on a batch of each task: forward pass, backward pass and averaging. Steps of the three alternate. Each
process has one thread. The program prints a Markdown table: ratios of the medians of seconds and of the first process's
processor time, and the share of the bytes that were sent before the backward pass was over.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
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
    parser.add_argument("--repeats", type=int, default=15, help="steps of each task by each of the three")
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
    ways = {"ours": ours(model), "after": ours(model, overlapped=False), "DDP": ddp(model)}
    if rank == 0:
        print(
            "| task | ms, ours | ours / after it | ours / DDP | processor: ours / after it | ours / DDP | sent early |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|")
    for task in cfg.TASKS.NAMES:
        batch = next(iter(build_task_train_loader(cfg, task)))
        seconds = {name: [] for name in ways}
        worked = {name: [] for name in ways}
        with EventStorage():
            for _ in range(repeats + 2):
                for name, step in ways.items():
                    model.zero_grad()
                    dist.barrier()
                    start, start_of_work = time.perf_counter(), time.process_time()
                    step(task, batch)
                    dist.barrier()
                    seconds[name].append(time.perf_counter() - start)
                    worked[name].append(time.process_time() - start_of_work)
        early = bytes_sent_early(model, functools.partial(ways["ours"], task, batch))
        if rank == 0:
            ratios = " | ".join(f"{ratio:.2f}" for times in (seconds, worked) for ratio in ratios_of(times))
            print(
                f"| {task} | {1e3 * statistics.median(seconds['ours'][2:]):.0f} | {ratios} | {early:.0%} |", flush=True
            )
    dist.destroy_process_group()


def ratios_of(times: dict[str, list[float]]) -> tuple[float, float]:
    """Medians of our time over the two others', without the first two steps."""
    ours, after, ddp = (statistics.median(times[name][2:]) for name in ("ours", "after", "DDP"))
    return ours / after, ours / ddp


def bytes_sent_early(model: nn.Module, step: Callable[[], None]) -> float:
    """The share of a step's bytes that this rank has sent before its backward pass was over."""
    sent = {True: 0, False: 0}

    def all_reduce(tensor: Tensor, *args, **options) -> dist.Work | None:
        sent[in_backward] += tensor.nbytes
        return usual(tensor, *args, **options)

    def average(self: GradientAverager, numbers: list[float]) -> list[float]:
        nonlocal in_backward
        in_backward = False
        return usual_average(self, numbers)

    in_backward, usual, usual_average = True, dist.all_reduce, GradientAverager.average
    model.zero_grad()
    with (
        EventStorage(),
        mock.patch.object(dist, "all_reduce", all_reduce),
        mock.patch.object(GradientAverager, "average", average),
    ):
        step()
    return sent[True] / sum(sent.values())


def ours(model: nn.Module, overlapped: bool = True) -> Callable[[str, list[dict]], None]:
    """A step as in the trainer. Without ``overlapped``, all gradients are sent after the backward pass."""
    averager = GradientAverager(model.parameters())

    def step(task: str, batch: list[dict]) -> None:
        if overlapped:
            averager.expect_last_backward(task)
        sum(model(batch).values()).backward()
        averager.average([0.0])

    return step


def ddp(model: nn.Module) -> Callable[[str, list[dict]], None]:
    """A step with PyTorch's DistributedDataParallel."""
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    def step(task: str, batch: list[dict]) -> None:
        sum(wrapped(batch).values()).backward()

    return step


if __name__ == "__main__":
    main()
