"""Seconds of an iteration of configs/joint on 1 to 256 GPUs, computed from counts and stated rates.

    python projects/uniperceiver_v2/benchmarks/scaling.py [--model swin_large] [--efficiency 0.4] [--launch-us 30]

Counted: operations (joint_operations.py), launches (joint_memory.py) and bytes of gradients, for each task with the
shipped batch. Stated: the rates below. Of an iteration, the device computes, or waits for launches, whichever
takes longer; the optimizer goes once over its numbers; and gradients travel by a ring while the backward pass goes on,
so that only what takes longer than it is seen. A mean over tasks weighs them by their sampling ratios.

The first rows have as few task groups as the batch of detection allows, whose 64 images at most 64 GPUs share. The last
rows have the number of groups with the most draws a second on either network. The groups' gradients then travel as
well, after the backward pass. A group has --least GPUs or more, as its share of the batch has to fit. Every GPU then
holds the gradients of all draws and its own, beside weights, moments and the average: "held". An H100 has 80 GB.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import joint_memory
import joint_operations
import stand_ins
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from uniperceiver_v2.config import sampling_ratios
from uniperceiver_v2.measured import measured

PEAK = 989e12  # bf16 operations a second of an H100, of which --efficiency is reached
BANDWIDTH = 3.35e12  # bytes a second of its memory
IN_NODE = 450e9  # bytes a second between the eight GPUs of a node
NETWORKS = (400e9 / 8, 100e9 / 8)  # bytes a second of each GPU between nodes
MEMORY = 80e9  # bytes
NODE = 8
MOST = 64  # the most GPUs that share a batch: detection's has 64 images
KEPT = 16  # bytes of a parameter: weight, moments and average
NUMBERS = 40  # bytes that a step reads and writes for each parameter: gradient, weight, moments and average


@dataclass
class Task:
    """What is counted of a task: operations of all images and of the candidates of an iteration, launches of a rank,
    and the bytes of its gradient."""

    share: float
    images: float
    candidates: float
    launches: int
    gradient: float


def counted(cfg: CfgNode) -> dict[str, Task]:
    counts, model = joint_operations.Counted(cfg), joint_memory.build(cfg)
    tasks = {}
    for task, share in sampling_ratios(cfg).items():
        image, candidates = joint_operations.of_task(counts, cfg, task)
        batch = cfg.TASKS[task].IMS_PER_BATCH
        inputs = joint_memory.batch_of(cfg, task, batch // NODE)
        with joint_memory.counted(NODE) as alive, EventStorage(), measured():
            joint_memory.train(model, inputs)
        reached = sum(p.numel() for p in model.parameters() if p.grad is not None)
        model.zero_grad()
        operations = batch * joint_operations.trained(image, cfg), joint_operations.trained(candidates, cfg)
        tasks[task] = Task(share, *operations, alive.launches, 4 * reached)
    return tasks


def bandwidth(gpus: int, network: float) -> float:
    """Bytes a second between GPUs: within a node by its own links, and beyond by all of its links to the network."""
    return IN_NODE if gpus <= NODE else min(IN_NODE, network * NODE)


def ring(gradient: float, gpus: int, network: float) -> float:
    """Seconds of an all-reduce."""
    return 2 * (gpus - 1) / gpus * gradient / bandwidth(gpus, network)


@dataclass
class Seconds:
    """Of an iteration: computing, launches, the optimizer, and what is seen of communication on each network."""

    computing: float
    launches: float
    step: float
    seen: tuple[float, ...]

    def whole(self, network: int) -> float:
        return max(self.computing, self.launches) + self.step + self.seen[network]


def seconds(task: Task, gpus: int, groups: int, parameters: int, rate: float, launch: float) -> Seconds:
    members = gpus // groups
    computing = (task.images + task.candidates) / members / rate
    launches = task.launches * launch
    hidden = 2 / 3 * max(computing, launches)  # the backward pass
    seen = []
    for network in NETWORKS:
        own = max(0.0, ring(task.gradient, members, network) - hidden)
        seen.append(own + (groups - 1) * task.gradient / bandwidth(gpus, network))
    return Seconds(computing, launches, NUMBERS * parameters / BANDWIDTH, tuple(seen))


class Run:
    """An iteration of all tasks on average."""

    def __init__(self, tasks: list[Task], gpus: int, groups: int, parameters: int, *rates: float):
        found = [seconds(task, gpus, groups, parameters, *rates) for task in tasks]
        gradients = groups + (groups > 1)  # with several groups, a GPU keeps its own beside the copies of all
        self.held = KEPT * parameters + gradients * max(task.gradient for task in tasks)
        self.gpus, self.groups = gpus, groups
        self.parts = [mean([getattr(x, part) for x in found], tasks) for part in ("computing", "launches", "step")]
        self.seen = [mean([x.seen[i] for x in found], tasks) for i in range(2)]
        self.whole = [mean([x.whole(i) for x in found], tasks) for i in range(2)]

    def row(self, alone: float) -> str:
        gains = " / ".join(f"{alone * self.groups / x:.1f}" for x in self.whole)
        cells = " | ".join(f"{x:.3f}" for x in (*self.parts, *self.seen, *self.whole))
        return f"| {self.gpus} | {self.groups} | {cells} | {gains} | {self.held / 1e9:.1f} |"


def mean(values: list[float], tasks: list[Task]) -> float:
    return sum(value * task.share for value, task in zip(values, tasks, strict=True)) / sum(t.share for t in tasks)


def print_runs(tasks: list[Task], least: int, *rates: float) -> None:
    print(
        "\n| GPUs | draws | computing | launches | step | seen, 400 | seen, 100 "
        "| whole, 400 | whole, 100 | draws a second of one GPU's, 400 / 100 | held, GB |"
    )
    print(11 * "|---:" + "|")
    counts = [2**i for i in range(9)]
    alone = Run(tasks, 1, 1, *rates).whole[0]
    for gpus in counts:
        print(Run(tasks, gpus, math.ceil(gpus / MOST), *rates).row(alone))
    for gpus in counts[2:]:
        runs = [Run(tasks, gpus, groups, *rates) for groups in counts if least * groups <= gpus <= MOST * groups]
        fitting = [run for run in runs if run.held <= MEMORY]
        best = [min(fitting, key=lambda run: run.whole[i] / run.groups) for i in range(2)]
        for run in dict.fromkeys(best):
            print(run.row(alone))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=stand_ins.MODELS, default="swin_large")
    parser.add_argument("--efficiency", type=float, default=0.4, help="of the peak rate")
    parser.add_argument("--launch-us", type=float, default=30.0, help="microseconds that a launch takes the host")
    parser.add_argument("--least", type=int, default=4, help="the fewest GPUs that share a batch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cfg = stand_ins.joint_config(args.model, Path(folder), [])
        parameters = sum(p.numel() for p in joint_memory.build(cfg).parameters())
        tasks = counted(cfg)
    print(f"{args.model}: {parameters / 1e6:.0f} million parameters\n")
    print("| task | batch | TFLOP | of these candidates' | launches | gradient, GB |\n|---|---:|---:|---:|---:|---:|")
    for name, task in tasks.items():
        numbers = f"{(task.images + task.candidates) / 1e12:.0f} | {task.candidates / 1e12:.0f} | {task.launches}"
        print(f"| {name} | {cfg.TASKS[name].IMS_PER_BATCH} | {numbers} | {task.gradient / 1e9:.2f} |")
    print_runs(list(tasks.values()), args.least, parameters, PEAK * args.efficiency, args.launch_us * 1e-6)


if __name__ == "__main__":
    main()
