"""A training iteration of the paper's models at full size: operations, time and peak memory of each kind of task.

    OMP_NUM_THREADS=1 python projects/uniperceiver_v2/benchmarks/joint_iterations.py [--models r50] [--tasks coco]

The models are those of configs/joint with random weights, the text encoder RoBERTa-base's sizes included. The data is
that of experiments/joint_miniature.py with 1,000 classes, one image (or text) a batch. Images have the sizes to which
the configuration scales them, and all candidates are there: 80 categories, 1,000 classes, the configured sample of
words. An iteration is forward, backward and TBGN's step in float32, the first of its process.

"TFLOP" are PyTorch's counts of products and convolutions, what activation checkpointing computes again included. They
are counted on the meta device, as counting keeps what checkpointing would give back. "peak" is the process's: weights,
gradients, moments, activations and libraries. Time is processor time on a CPU, wall-clock time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import joint_memory
import stand_ins
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from memory import clock, peak, start_of_peak
from torch.utils.flop_counter import FlopCounterMode

from uniperceiver_v2.data import build_task_train_loader
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.measured import measured
from uniperceiver_v2.solver import build_optimizer

TASKS = ("coco", "imagenet", "coco_captions", "coco_pairs", "texts")  # one of each kind
COLUMNS = "| model | task | image | parameters with gradients | TFLOP | s | peak GiB |"


def write_data(folder: Path) -> None:
    sys.path.insert(0, str(REPOSITORY / "projects/uniperceiver_v2/experiments"))
    try:
        import joint_miniature
    finally:
        sys.path.pop(0)
    joint_miniature.write_tree(folder, images=6, classes=1000, images_of_class=1)


def measure(model_name: str, task: str, folder: Path, device: str) -> dict[str, object]:
    """One iteration of a task, in this process."""
    options = ["MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", "0", f"TASKS.{task}.IMS_PER_BATCH", "1"]
    cfg = stand_ins.joint_config(model_name, folder / "pretrained", options)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    batch = next(iter(build_task_train_loader(cfg, task)))
    start_of_peak(device)
    start = clock(device)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step(task=task)
    seconds = clock(device) - start
    found = {name: round(value.item(), 3) for name, value in losses.items()}
    if not all(torch.tensor(list(found.values())).isfinite()):
        raise FloatingPointError(f"{task}: {found}")
    size = " × ".join(map(str, batch[0]["image"].shape[-2:])) if "image" in batch[0] else ""
    reached = sum(p.numel() for p in model.parameters() if p.grad is not None)
    found |= {"image": size, "reached": reached, "seconds": seconds, "bytes": peak(device)}
    return found | {"flop": operations(cfg, batch)}


def operations(cfg: CfgNode, batch: list[dict]) -> int:
    """Of a forward and a backward pass."""
    model = joint_memory.build(cfg)
    with joint_memory.counted(1), FlopCounterMode(display=False) as counter, EventStorage(), measured():
        joint_memory.train(model, batch)
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=stand_ins.MODELS, default=stand_ins.MODELS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.models[0], args.tasks[0], args.folder, args.device)))
        return
    # The allocator returns freed memory to the system at once, so that the peak is that of what is used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    print(COLUMNS + "\n|---|---|---|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        environment["DETECTRON2_DATASETS"] = str(Path(folder) / "datasets")
        write_data(Path(folder) / "datasets")
        for model in args.models:
            for task in args.tasks:
                program = [sys.executable, __file__, "--models", model, "--tasks", task, "--device", args.device]
                command = [*program, "--folder", folder]
                output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
                row = json.loads(output.splitlines()[-1])
                print(
                    f"| {model} | {task} | {row['image']} | {row['reached'] / 1e6:.0f}M | {row['flop'] / 1e12:.2f} "
                    f"| {row['seconds']:.0f} | {row['bytes'] / 2**30:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
