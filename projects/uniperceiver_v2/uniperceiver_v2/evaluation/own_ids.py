"""COCO's and LVIS's evaluation of objects whose categories and images have ids of the user's own, such as strings."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools import mask as mask_api

from ..files import write_atomically, write_json

logger = logging.getLogger(__name__)

RESULTS = ("coco_instances_results.json", "lvis_instances_results.json")
PREDICTIONS = "instances_predictions.pth"


class OwnIdsEvaluator(DatasetEvaluator):
    """Evaluates with ids 1, 2, ..., which is all that COCO's and LVIS's programs take, and writes files with the user's
    ids.

    Args:
        dataset_name: a registered dataset with ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``.
        records: its records, whose annotations have indices of categories.
        output_folder: for the evaluator's files. The ground truth with ids 1, 2, ... is among them.
        evaluator: Detectron2's ``COCOEvaluator`` or ``LVISEvaluator``.
    """

    def __init__(
        self,
        dataset_name: str,
        records: Sequence[dict],
        output_folder: str,
        evaluator: Callable[..., DatasetEvaluator],
    ):
        metadata = MetadataCatalog.get(dataset_name)
        self._category_ids = list(metadata.thing_dataset_id_to_contiguous_id)
        self._image_ids = [record["image_id"] for record in records]
        self._number_of = {image_id: number for number, image_id in enumerate(self._image_ids, 1)}
        self._folder = output_folder
        json_file = os.path.join(output_folder, "numbered_ground_truth.json")
        if comm.is_main_process():
            write_json(json_file, _numbered(records, metadata))
        comm.synchronize()
        numbered = f"{dataset_name} (numbered)"
        MetadataCatalog.pop(numbered, None)
        MetadataCatalog.get(numbered).set(
            json_file=json_file,
            thing_classes=list(metadata.thing_classes),
            thing_dataset_id_to_contiguous_id={index + 1: index for index in range(len(metadata.thing_classes))},
        )
        with_masks = all(a.get("segmentation") for record in records for a in record["annotations"])
        self._evaluator = evaluator(numbered, tasks=None if with_masks else ("bbox",), output_dir=output_folder)

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As COCO's evaluator, with the user's image ids."""
        self._evaluator.process([{**x, "image_id": self._number_of[x["image_id"]]} for x in inputs], outputs)

    def evaluate(self) -> Any:
        """
        Returns:
            what COCO's or LVIS's evaluator returns.
        """
        results = self._evaluator.evaluate()
        if comm.is_main_process():
            self._write_own_ids()
        return results

    def _write_own_ids(self) -> None:
        for name in RESULTS:
            path = os.path.join(self._folder, name)
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    found = json.load(file)
                write_json(path, [self._with_own_ids(result) for result in found])
        path = os.path.join(self._folder, PREDICTIONS)
        if os.path.exists(path):
            predictions = [
                {
                    **prediction,
                    "image_id": self._image_ids[prediction["image_id"] - 1],
                    "instances": [
                        {**i, "image_id": self._image_ids[i["image_id"] - 1]} for i in prediction["instances"]
                    ],
                }
                for prediction in torch.load(path, weights_only=True)
            ]
            write_atomically(path, lambda file: torch.save(predictions, file))

    def _with_own_ids(self, result: dict) -> dict:
        return {
            **result,
            "image_id": self._image_ids[result["image_id"] - 1],
            "category_id": self._category_ids[result["category_id"] - 1],
        }


def _numbered(records: Sequence[dict], metadata: Any) -> dict:
    """The content of a JSON in COCO's format, which is LVIS's as well where categories have frequencies."""
    index_of = metadata.thing_dataset_id_to_contiguous_id
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(metadata.thing_classes)]
    for category, frequency in zip(categories, metadata.get("frequencies") or ()):
        if frequency is not None:
            category["frequency"] = frequency
    images, annotations = [], []
    for number, record in enumerate(records, 1):
        image = {key: record[key] for key in ("file_name", "height", "width")}
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key in record:
                image[key] = [index_of[i] + 1 for i in record[key] if i in index_of]
        images.append({"id": number, **image})
        for annotation in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **_annotation(annotation, record)})
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(annotation: dict, record: dict) -> dict:
    box = [float(value) for value in BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)]
    segmentation = annotation.get("segmentation")
    converted = {
        "category_id": annotation["category_id"] + 1,
        "bbox": box,
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "area": annotation["area"] if "area" in annotation else _area(annotation, box, record),
    }
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        segmentation = {**segmentation, "counts": counts.decode() if isinstance(counts, bytes) else counts}
    return {**converted, "segmentation": segmentation} if segmentation else converted


def _area(annotation: dict, box: Sequence[float], record: dict) -> float:
    """The pixels of an object's mask, or of its box if it has no segmentation."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return box[2] * box[3]
    if isinstance(segmentation, list):
        segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, record["height"], record["width"]))
    return float(mask_api.area(segmentation))
