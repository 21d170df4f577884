"""A few test images with their predictions beside their annotations, as PNG files."""

import itertools
import os
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.evaluation import inference_context
from torch import nn

from .draw import draw_annotations, draw_detections

HEADER_HEIGHT = 24


def draw_test_scenes(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    dataset_name: str,
    folder: str,
    count: int = 8,
    score_threshold: float = 0.3,
) -> list[str]:
    """Detect in the first images of a test dataset and write one picture of each.

    Args:
        model: batch -> list of {"instances": Instances}.
        loader: the dataset's test loader.
        dataset_name: a registered detection dataset.
        folder: where the pictures go; made if need be.
        count: of pictures.
        score_threshold: of the detections drawn.

    Returns:
        the files written: prediction on the left, annotations on the right.
    """
    names = MetadataCatalog.get(dataset_name).thing_classes
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
    os.makedirs(folder, exist_ok=True)
    paths = []
    with inference_context(model), torch.no_grad():
        for item in itertools.islice(itertools.chain.from_iterable(loader), count):
            instances = model([item])[0]["instances"]
            image = utils.read_image(item["file_name"], format="RGB")
            predicted = draw_detections(image, instances, names, score_threshold)
            annotated = draw_annotations(image, records[item["image_id"]], names)
            pair = np.hstack([_with_header(predicted, "prediction"), _with_header(annotated, "annotation")])
            stem = os.path.splitext(os.path.basename(item["file_name"]))[0]
            paths.append(os.path.join(folder, f"{stem}.png"))
            cv2.imwrite(paths[-1], pair[:, :, ::-1])
    return paths


def _with_header(image: np.ndarray, text: str) -> np.ndarray:
    header = np.full((HEADER_HEIGHT, image.shape[1], 3), 255, np.uint8)
    cv2.putText(header, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([header, image])
