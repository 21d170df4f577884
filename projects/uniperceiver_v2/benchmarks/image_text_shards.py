"""Reading image-text pairs from shards against the speed at which the tiny model trains on them.

    OMP_NUM_THREADS=1 python projects/uniperceiver_v2/benchmarks/image_text_shards.py [--pairs 10000 --iterations 10]

The program writes pairs as shards of 1,000 into a temporary folder: training images and captions of digit_scenes,
repeated. It prints a Markdown table with the images per second of a task's loader without workers and with two workers,
the images per second of training without waiting for data, and the ratios of the two. Images have the size on which the
model trains. Times are wall-clock times. Workers are useful only if there are cores for them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import tarfile
import tempfile
import time
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

import uniperceiver_v2  # noqa: F401  (registers datasets and model)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, load_dataset, register_image_text_shards
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.files import TINY_CONFIG

SHARD_SIZE = 1000
KINDS = {"captioning": "scene_captions", "retrieval": "scene_pairs"}  # the tiny configuration's tasks
NAME = "generated_pairs"


def write_shards(folder: str, count: int) -> None:
    """Write ``count`` pairs in img2dataset's layout."""
    scenes = load_dataset("digit_scenes_captions_train")
    images = [Path(scene["file_name"]).read_bytes() for scene in scenes]
    for first in range(0, count, SHARD_SIZE):
        with tarfile.open(os.path.join(folder, f"{first // SHARD_SIZE:05d}.tar"), "w") as tar:
            for number in range(first, min(first + SHARD_SIZE, count)):
                repeat, scene = divmod(number, len(scenes))
                captions = scenes[scene]["captions"]
                caption = captions[repeat % len(captions)].encode()
                for suffix, content in (("png", images[scene]), ("json", b"{}"), ("txt", caption)):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def configuration(workers: int) -> CfgNode:
    tasks = [part for task in KINDS.values() for part in (f"TASKS.{task}.DATASETS", f"['{NAME}']")]
    workers_and_tests = ["DATALOADER.NUM_WORKERS", str(workers), "DATASETS.TEST", "()"]
    return load_config(str(TINY_CONFIG), ["TASKS.NAMES", str(list(KINDS.values())), *workers_and_tests, *tasks])


def read_rate(task: str, workers: int, pairs: int) -> float:
    """Images per second over one epoch. The first two batches are not timed, as workers start and indices are read
    then."""
    cfg = configuration(workers)
    batches = iter(build_task_train_loader(cfg, task))
    for _ in range(2):
        next(batches)
    count = pairs // cfg.TASKS[task].IMS_PER_BATCH
    start = time.perf_counter()
    images = sum(len(batch) for batch in itertools.islice(batches, count))
    return images / (time.perf_counter() - start)


def training_rate(task: str, iterations: int) -> float:
    """Images per second of the forward pass, the backward pass and the optimizer's step, with batches in memory."""
    cfg = configuration(0)
    torch.manual_seed(0)
    model = UniPerceiverTrainer.build_model(cfg).train()
    optimizer = UniPerceiverTrainer.build_optimizer(cfg, model)
    batches = list(itertools.islice(build_task_train_loader(cfg, task), iterations + 1))
    with EventStorage():
        for number, batch in enumerate(batches):
            if number == 1:  # the first iteration is a warm-up
                start = time.perf_counter()
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step(task=task)
    return sum(len(batch) for batch in batches[1:]) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--iterations", type=int, default=10, help="of training, for each task")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_shards(folder, args.pairs)
        register_image_text_shards(NAME, os.path.join(folder, "*.tar"))
        start = time.perf_counter()
        load_dataset(NAME)
        print(f"{args.pairs} pairs; their shards' headers were read in {time.perf_counter() - start:.1f} s\n")
        print("| task | read, no worker | ratio | read, two workers | ratio | trained on |\n|---|---|---|---|---|---|")
        for kind, task in KINDS.items():
            trained = training_rate(task, args.iterations)
            read = [read_rate(task, workers, args.pairs) for workers in (0, 2)]
            cells = " | ".join(f"{rate:.0f} images/s | {rate / trained:.1f}" for rate in read)
            print(f"| {kind} | {cells} | {trained:.0f} images/s |", flush=True)


if __name__ == "__main__":
    main()
