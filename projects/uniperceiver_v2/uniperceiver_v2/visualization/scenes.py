"""Writes PNG files of test images with predictions beside annotations."""

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.structures import Instances
from torch import nn

from ..reading import read_image
from .caption_sheet import text_block
from .draw import draw_annotations, draw_detections, enlarged

HEADER_HEIGHT = 24


def draw_test_scenes(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    dataset_name: str,
    folder: str,
    count: int = 8,
    score_threshold: float = 0.3,
) -> list[str]:
    """Predict on the first images of a test dataset and write a picture of each.

    Args:
        model: maps a batch to a list of {"instances": Instances}.
        loader: the dataset's test loader.
        dataset_name: a registered detection dataset.
        folder: the pictures' folder, created if it does not exist.
        count: the number of pictures.
        score_threshold: detections with a lower score are not drawn.

    Returns:
        the paths of the pictures. Each has the prediction on the left and the annotations on the right.
    """
    names = MetadataCatalog.get(dataset_name).thing_classes
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
    os.makedirs(folder, exist_ok=True)
    paths = []
    with inference_context(model), torch.no_grad():
        for item in itertools.islice(itertools.chain.from_iterable(loader), count):
            instances = model([item])[0]["instances"]
            pair = scene_picture(records[item["image_id"]], instances, names, score_threshold)
            stem = os.path.splitext(os.path.basename(item["file_name"]))[0]
            paths.append(os.path.join(folder, f"{stem}.png"))
            cv2.imwrite(paths[-1], pair[:, :, ::-1])
    return paths


def scene_picture(
    record: dict[str, Any],
    instances: Instances | None = None,
    names: Sequence[str] = (),
    score_threshold: float = 0.3,
    caption: str | None = None,
) -> np.ndarray:
    """Detections in an image beside its annotations, with a caption below.

    Args:
        record: the image's dict in Detectron2's dataset format.
        instances: detections, as :func:`draw_detections` takes them. With None, the picture shows the image alone.
        names: the names of the categories.
        score_threshold: detections with a lower score are not drawn.
        caption: the predicted caption, if there is one.

    Returns:
        uint8 [H', W', 3], RGB.
    """
    image = read_image(record, "RGB")
    if instances is None:
        picture = enlarged(image)
    else:
        predicted = draw_detections(image, instances, names, score_threshold)
        annotated = draw_annotations(image, record, names)
        picture = np.hstack([_with_header(predicted, "prediction"), _with_header(annotated, "annotation")])
    return picture if caption is None else np.vstack([picture, text_block(caption or "(no caption)", picture.shape[1])])


def _with_header(image: np.ndarray, text: str) -> np.ndarray:
    header = np.full((HEADER_HEIGHT, image.shape[1], 3), 255, np.uint8)
    cv2.putText(header, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([header, image])
