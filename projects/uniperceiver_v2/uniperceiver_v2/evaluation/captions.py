"""Caption metrics of a model, beside those of two baselines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .caption_metrics import caption_metrics
from .gathering import GatheringEvaluator

_RANDOM = "caption (random training caption)"
_NEAREST = "caption (nearest training image)"


@dataclass(frozen=True)
class CaptionBaselines:
    """Captions of the training set, for two baselines: a random caption, and a caption of the nearest image.

    Attributes:
        features: [N, d], one feature for each training image, of any length.
        captions: the captions of each training image, at least one.
        seed: seed of the random draws.

    Raises:
        ValueError: there are no images, an image has no caption, or the numbers of features and caption lists differ.
    """

    features: Tensor
    captions: Sequence[Sequence[str]]
    seed: int = 0

    def __post_init__(self):
        if not len(self.features) == len(self.captions) > 0:
            raise ValueError(
                f"{len(self.features)} features and captions of {len(self.captions)} training images; "
                "expected as many, at least one"
            )
        empty = [index for index, captions in enumerate(self.captions) if not captions]
        if empty:
            raise ValueError(f"training image {empty[0]} has no caption; expected at least one")

    def random(self, count: int) -> list[str]:
        """``count`` captions, drawn from all captions of the training set."""
        everything = [caption for captions in self.captions for caption in captions]
        chosen = np.random.default_rng(self.seed).integers(len(everything), size=count)
        return [everything[index] for index in chosen]

    def nearest(self, features: Tensor) -> list[str]:
        """For each of the features [Q, d], a random caption of the training image with the highest cosine
        similarity."""
        known = F.normalize(self.features.float().cpu(), dim=1)
        parts = F.normalize(features.float().cpu(), dim=1).split(1024)
        images = [index for part in parts for index in (part @ known.T).argmax(dim=1).tolist()]
        draws = np.random.default_rng(self.seed).random(len(images))
        return [self.captions[image][int(draw * len(self.captions[image]))] for image, draw in zip(images, draws)]


class CaptionEvaluator(GatheringEvaluator):
    """BLEU-1 to 4, METEOR, ROUGE-L, CIDEr and SPICE in percent, see :func:`~.caption_metrics.caption_metrics`.

    Args:
        dataset_name: a registered dataset of captions.
        output_folder: for ``results.json``, for ``coco_captions_results.json`` in COCO's results format, and for
            ``predictions.json``, which lists each caption with its references and baselines. None writes no files.
        baselines: adds two rows to the results, for the random caption and for the nearest image's caption. The
            attribute may also be set later, before the first prediction.

    Attributes:
        spice_models: the folder of SPICE's models; without one there is no SPICE.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None, baselines: CaptionBaselines | None = None):
        super().__init__(dataset_name, output_folder)
        self.baselines = baselines
        self.spice_models = ""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "image_id", "file_name" and "captions" (the references).
            outputs: predictions with "caption" and "log_likelihood". Baselines also need "image_feature" [d].

        Raises:
            ValueError: an image has no reference.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            if not sample["captions"]:
                raise ValueError(f"image {sample['image_id']} has no caption to compare with; expected at least one")
            record = {
                "image_id": sample["image_id"],
                "file_name": sample["file_name"],
                "caption": output["caption"],
                "log_likelihood": float(output["log_likelihood"]),
                "references": list(sample["captions"]),
            }
            if "image_feature" in output:
                record["image_feature"] = output["image_feature"].float().cpu().clone()
            self._records.append(record)

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        rows = {"caption": [record["caption"] for record in records]}
        if self.baselines is not None:
            rows[_RANDOM] = self.baselines.random(len(records))
            rows[_NEAREST] = self.baselines.nearest(torch.stack([record["image_feature"] for record in records]))
        ids = [record["image_id"] for record in records]
        results = [{"image_id": image, "caption": caption} for image, caption in zip(ids, rows["caption"])]
        self._write("coco_captions_results.json", results)
        by_image = [dict(zip(rows, captions)) for captions in zip(*rows.values())]
        readable = [{key: value for key, value in r.items() if key != "image_feature"} for r in records]
        self._write("predictions.json", [{**record, **row} for record, row in zip(readable, by_image)])
        references = {record["image_id"]: record["references"] for record in records}
        return caption_metrics(references, {name: dict(zip(ids, row)) for name, row in rows.items()}, self.spice_models)
