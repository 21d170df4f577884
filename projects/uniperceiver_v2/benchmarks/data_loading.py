"""Image loading by two workers against the speed of training, and our mapper beside Detectron2's.

    python projects/uniperceiver_v2/benchmarks/data_loading.py [--quick]

There are rows for digit_scenes (96 pixels, no flip) and for JPEGs of 640 × 480 pixels. The JPEGs are drawn here, with
seven objects each. They are resized to 640 to 800 pixels and flipped. All rows are milliseconds for an image.

The loader is our loader for detection with two workers, as in ``make train``. It is measured in a steady state, with
nothing else running. It is compared with an iteration (forward, backward and step) of the model of
configs/digit_scenes, the cheapest model, on the same batches. The mappers run in this process. Both read, decode,
resize and flip an image and prepare boxes and masks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import harness
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.kinds import configured_task
from uniperceiver_v2.solver.build import build_optimizer

PHOTOS = "benchmark_photos"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
AHEAD = 8  # the workers may have this number of batches ready, which are not timed


def register_photos(folder: Path, count: int = 48) -> None:
    """JPEGs of smooth noise and ellipses. The ellipses' outlines are polygons, as most annotations of COCO are."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(count):
        coarse = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        for _ in range(7):
            center, axes = generator.integers(60, 420, 2).tolist(), generator.integers(10, 120, 2).tolist()
            outline = cv2.ellipse2Poly(center, axes, int(generator.integers(180)), 0, 360, 10)
            outline = outline.clip(0, (639, 479)).astype(np.int32)
            cv2.fillPoly(picture, [outline], generator.integers(0, 256, 3).tolist())
            low, high = outline.min(axis=0), outline.max(axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": int(generator.integers(len(NAMES))) + 1,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float(cv2.contourArea(outline)),
                    "iscrowd": 0,
                    "segmentation": [outline.reshape(-1).tolist()],
                }
            )
        Image.fromarray(picture).save(folder / f"{index}.jpg", quality=90)
        images.append({"id": index, "width": 640, "height": 480, "file_name": f"{index}.jpg"})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    register_coco_instances(PHOTOS, {}, str(folder / "annotations.json"), str(folder))


def settings(photos: bool, device: str) -> CfgNode:
    options = ["MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", "2"]
    if photos:
        options += ["TASKS.scenes.DATASETS", f"['{PHOTOS}']", "TASKS.scenes.IMS_PER_BATCH", "2"]
        options += ["INPUT.MIN_SIZE_TRAIN", "(640,672,704,736,768,800)", "INPUT.RANDOM_FLIP", "horizontal"]
    return load_config(str(TINY_CONFIG), options)


def mapping(mapper: Callable[[dict], object], records: list[dict]) -> Callable[[], object]:
    """Each call maps the next record."""
    turn = itertools.cycle(records)
    return lambda: mapper(next(turn))


def seconds_of_loading(cfg: CfgNode, batches: int, round_: int) -> float:
    """Seconds for an image, in a steady state."""
    loader = iter(build_task_train_loader(cfg, "scenes", round_ * 1000))
    for _ in range(AHEAD):
        next(loader)
    seconds = harness.elapsed(lambda: next(loader), batches)
    loader.close()  # ends the workers, which would otherwise slow the model down
    return seconds / cfg.TASKS.scenes.IMS_PER_BATCH


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    logging.getLogger("uniperceiver_v2").setLevel(logging.ERROR)
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        register_photos(Path(folder))
        for photos in (False, True):
            yield from rows_of(
                settings(photos, args.device), "640 to 800 pixels" if photos else "96 pixels", args.quick
            )


def rows_of(cfg: CfgNode, size: str, quick: bool) -> Iterator[harness.Row]:
    task = configured_task(cfg, "scenes")
    records, mapper = task.kind.training_data(cfg, task)
    upstream = DatasetMapper(
        is_train=True,
        augmentations=utils.build_augmentation(cfg, True),
        image_format=cfg.INPUT.FORMAT,
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    count = cfg.TASKS.scenes.IMS_PER_BATCH
    in_turn = itertools.cycle(records)
    batches = itertools.cycle([[mapper(next(in_turn)) for _ in range(count)] for _ in range(4)])

    def iteration() -> None:
        with EventStorage():
            losses = model(next(batches))
        sum(losses.values()).backward()
        optimizer.step(task="scenes")
        optimizer.zero_grad()

    # Wall-clock time, as the processor time of this process does not include workers.
    clock, harness.settings.clock = harness.settings.clock, time.perf_counter
    iteration()
    loading, training = [], []
    for round_ in range(1 if quick else 5):
        loading.append(seconds_of_loading(cfg, 30 if quick else 60, round_))
        training.append(harness.elapsed(iteration, 2 if quick else 4) / count)
    harness.settings.clock = clock
    yield harness.summarise(
        f"an image of {size} from two workers", loading, training, peer_name="training on it", at_least=2.0
    )
    yield harness.compare(
        f"mapping an image of {size}",
        mapping(mapper, records),
        mapping(upstream, records),
        peer_name="detectron2's DatasetMapper",
    )


if __name__ == "__main__":
    harness.main(__doc__, rows)
