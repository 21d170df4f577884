"""Accuracy of classification."""

import itertools
import json
import logging
import os

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

logger = logging.getLogger(__name__)

_KEPT = 5  # best candidates of an image


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy in percent, over the images of all ranks.

    Args:
        dataset_name: with ``thing_classes`` in its metadata.
        output_folder: for ``predictions.json``, which has the five best classes of every image; None writes none.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        self._dataset_name = dataset_name
        self._output_folder = output_folder
        self._predictions: list[dict] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "label", "image_id" and "file_name".
            outputs: with "scores" [C], the higher the likelier, in the order of the dataset's classes.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            scores, classes = output["scores"].float().topk(min(_KEPT, len(output["scores"])))
            self._predictions.append(
                {
                    "image_id": sample["image_id"],
                    "file_name": sample["file_name"],
                    "label": sample["label"],
                    "classes": classes.tolist(),
                    "scores": scores.tolist(),
                }
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            {"classification": {"top1": ..., "top5": ...}}; empty without predictions and on other ranks
            than the first.
        """
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return {}
        predictions = sorted(itertools.chain.from_iterable(gathered), key=lambda p: p["image_id"])
        if not predictions:
            logger.warning("no predictions for %s", self._dataset_name)
            return {}
        if self._output_folder is not None:
            self._write(predictions)
        hits = torch.tensor([[c == p["label"] for c in p["classes"]] for p in predictions])  # [images, <= 5]
        shares = hits.double().mean(dim=0).cumsum(dim=0) * 100
        return {"classification": {"top1": shares[0].item(), "top5": shares[-1].item()}}

    def _write(self, predictions: list[dict]) -> None:
        names = MetadataCatalog.get(self._dataset_name).thing_classes
        readable = [{**p, "label": names[p["label"]], "classes": [names[c] for c in p["classes"]]} for p in predictions]
        os.makedirs(self._output_folder, exist_ok=True)
        with open(os.path.join(self._output_folder, "predictions.json"), "w") as file:
            json.dump(readable, file)
