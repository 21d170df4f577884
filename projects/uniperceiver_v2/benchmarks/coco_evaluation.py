"""COCO's AP of boxes and masks: our evaluator beside pycocotools, on as many images and detections as val2017 has.

    python projects/uniperceiver_v2/benchmarks/coco_evaluation.py [--quick]

5,000 images of 640 × 480 pixels have 7 objects and 100 detections each, of 80 categories. Masks are ellipses with
pieces taken out of their borders. Their areas are distributed as COCO's. 250 images are drawn, and repeated with other
scores and wrong categories. Both sides must give the same metrics. Only one pair of runs is made, as pycocotools takes
two minutes. With --quick there are 500 images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import harness
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from pycocotools import mask as mask_api

HEIGHT, WIDTH, CATEGORIES, OBJECTS, DETECTIONS = 480, 640, 80, 7, 100
DRAWN = 250
NAME = "benchmark_coco_evaluation"


def segment(center: np.ndarray, size: np.ndarray, angle: float, bites: np.ndarray) -> dict[str, Any]:
    """The RLE of a mask: an ellipse with discs taken out of its border."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="C")
    cv2.ellipse(mask, center.astype(int).tolist(), np.maximum(size, 2).astype(int).tolist(), angle, 0, 360, 1, -1)
    for turn in bites:
        at = center + size * [np.cos(turn), np.sin(turn)]
        cv2.circle(mask, at.astype(int).tolist(), int(size.min() / 4), 0, -1)
    rle = mask_api.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def objects_of(generator: np.random.Generator) -> list[tuple]:
    """(center, half axes, angle, bites, category) of the objects of an image. Half of them are small, few are large."""
    found = []
    for _ in range(OBJECTS):
        size = np.exp(generator.uniform(np.log(6), np.log(150))) * generator.uniform(0.5, 1, size=2)
        center = generator.uniform((0, 0), (WIDTH, HEIGHT))
        bites = generator.uniform(0, 2 * np.pi, size=4)
        found.append((center, size, generator.uniform(0, 180), bites, int(generator.integers(CATEGORIES))))
    return found


def image(generator: np.random.Generator) -> tuple[list[dict], list[dict]]:
    """Annotations and detections of an image. Every object is detected a few times. :func:`scored` gives most
    detections a wrong category."""
    truth, found = [], []
    objects = objects_of(generator)
    for of in objects:
        rle = segment(*of[:4])
        box = [float(x) for x in mask_api.toBbox(rle)]
        annotation = {"category_id": of[4] + 1, "segmentation": rle, "bbox": box, "iscrowd": 0}
        truth.append({**annotation, "area": float(mask_api.area(rle))})
    for rank in range(DETECTIONS):
        center, size, angle, bites, category = objects[rank % OBJECTS]
        shift = generator.normal(0, 0.05 + 0.02 * (rank // OBJECTS), size=2) * size
        rle = segment(center + shift, size * generator.uniform(0.85, 1.15, size=2), angle, bites)
        box = [float(x) for x in mask_api.toBbox(rle)]
        found.append({"category_id": category, "segmentation": rle, "bbox": box})
    return truth, found


def scored(index: int, found: list[dict], generator: np.random.Generator) -> list[dict]:
    """The detections of an image with scores. Better detections tend to have higher scores."""
    scores = generator.beta(2, 2 + np.arange(DETECTIONS) / OBJECTS).tolist()
    result = [{**detection, "image_id": index, "score": score} for detection, score in zip(found, scores)]
    for detection in result[3 * OBJECTS :]:
        detection["category_id"] = int(generator.integers(CATEGORIES))
    return result


def evaluator(fast: bool, predictions: list[dict]) -> COCOEvaluator:
    evaluator = COCOEvaluator(NAME, ("bbox", "segm"), distributed=False, use_fast_impl=fast)
    evaluator.reset()
    evaluator._predictions = predictions  # in the form in which ``process`` keeps them
    return evaluator


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    logging.getLogger("faster_coco_eval").setLevel(logging.ERROR)
    generator, count = np.random.default_rng(0), 500 if args.quick else 5000
    drawn = [image(generator) for _ in range(DRAWN)]
    annotations, predictions = [], []
    for index in range(count):
        truth, found = drawn[index % DRAWN]
        annotations += [
            {**annotation, "image_id": index, "id": 1 + index * OBJECTS + i} for i, annotation in enumerate(truth)
        ]
        predictions.append({"image_id": index, "instances": scored(index, found, generator)})
    data = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in range(count)],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": f"thing {i}"} for i in range(CATEGORIES)],
    }
    results: dict[bool, dict] = {}

    def evaluate(fast: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            results[fast] = evaluators[fast].evaluate()

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.json"
        file.write_text(json.dumps(data))
        register_coco_instances(NAME, {}, str(file), folder)
        DatasetCatalog.get(NAME)  # sets the ids of the categories
        evaluators = {fast: evaluator(fast, predictions) for fast in (True, False)}
        yield harness.compare(
            f"COCO evaluation, {count:,} images, {DETECTIONS} detections each, boxes and masks",
            lambda: evaluate(True),
            lambda: evaluate(False),
            peer_name="pycocotools",
            at_least=3.0,
            warm_up=False,
        )
    assert results[True]["bbox"]["AP"] > 5 and results[True]["segm"]["AP"] > 5, "the detections are worth nothing"
    for task, metrics in results[False].items():
        np.testing.assert_allclose(list(results[True][task].values()), list(metrics.values()), rtol=1e-6, err_msg=task)


if __name__ == "__main__":
    harness.main(__doc__, rows)
