"""Accuracy of classification."""

import torch
from detectron2.data import MetadataCatalog

from .gathering import GatheringEvaluator

_KEPT = 5  # candidates of an image in predictions.json, best first


class ClassificationEvaluator(GatheringEvaluator):
    """Top-1 and top-5 accuracy in percent, over the images of all ranks.

    Args:
        dataset_name: a registered dataset whose metadata has ``thing_classes``.
        output_folder: for ``results.json`` and ``predictions.json``, which lists the five best classes of every image.
            None writes no files.
    """

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "label", "image_id" and "file_name".
            outputs: predictions with "scores" [C], in the order of the dataset's classes. The highest score is the most
                likely class.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            scores, classes = output["scores"].float().topk(min(_KEPT, len(output["scores"])))
            self._records.append(
                {
                    "image_id": sample["image_id"],
                    "file_name": sample["file_name"],
                    "label": sample["label"],
                    "classes": classes.tolist(),
                    "scores": scores.tolist(),
                }
            )

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        names = MetadataCatalog.get(self._dataset_name).thing_classes
        readable = [{**r, "label": names[r["label"]], "classes": [names[c] for c in r["classes"]]} for r in records]
        self._write("predictions.json", readable)
        hits = torch.tensor([[c == r["label"] for c in r["classes"]] for r in records])  # [images, <= 5]
        shares = hits.double().mean(dim=0).cumsum(dim=0) * 100
        return {"classification": {"top1": shares[0].item(), "top5": shares[-1].item()}}
