"""Retrieval of captions by images and of images by captions, in the Karpathy protocol."""

import torch
from torch import Tensor

from .gathering import GatheringEvaluator
from .retrieval_ranks import Retrieval, hit_probability, retrieve

_RANKS = (1, 5, 10)


class RetrievalEvaluator(GatheringEvaluator):
    """R@1, R@5 and R@10 in percent, over the whole split of all ranks, and the same at chance.

    An image has found its captions if one of them is among the k most similar of all captions; a caption its
    image, if it is among the k most similar images. Candidates of equal similarity stand in random order: what
    is counted is the probability of success. So a model that finds everything alike is at chance, and images
    that share a caption word for word share its hits.

    Args:
        dataset_name: a registered dataset of captions.
        output_folder: for ``results.json`` and ``predictions.json``, which has the ten best captions of each
            image and the ten best images of each caption; None writes neither.
    """

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "image_id", "file_name" and "captions".
            outputs: with "image_feature" [d] and "text_features" [captions, d], all of length 1.

        Raises:
            FloatingPointError: features are not finite.
            ValueError: there are no captions, or not as many features.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            record = {
                "image_id": sample["image_id"],
                "file_name": sample["file_name"],
                "captions": list(sample["captions"]),
                "image_feature": output["image_feature"].float().cpu().clone(),  # a view would carry its batch along
                "text_features": output["text_features"].float().cpu().clone(),
            }
            if not record["captions"] or len(record["captions"]) != len(record["text_features"]):
                raise ValueError(
                    f"image {record['image_id']} has {len(record['captions'])} captions and "
                    f"{len(record['text_features'])} features of them; expected as many, at least one"
                )
            # NaN is greater than nothing: unseen, it would count as found.
            if not (record["image_feature"].isfinite().all() and record["text_features"].isfinite().all()):
                raise FloatingPointError(f"the features of image {record['image_id']} are not finite")
            self._records.append(record)

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        captions_of = torch.tensor([len(record["captions"]) for record in records])
        image_of = torch.arange(len(records)).repeat_interleave(captions_of)  # [captions]
        images = torch.stack([record["image_feature"] for record in records])
        captions = torch.cat([record["text_features"] for record in records])
        found_captions, found_images = retrieve(images, captions, image_of, keep=max(_RANKS))
        self._write("predictions.json", _predictions(records, image_of, found_captions, found_images))
        return {
            "text_retrieval": {f"R@{k}": found_captions.recall(k) for k in _RANKS},
            "image_retrieval": {f"R@{k}": found_images.recall(k) for k in _RANKS},
            "text_retrieval (chance)": _chance(len(captions), captions_of),
            "image_retrieval (chance)": _chance(len(images), torch.ones_like(image_of)),
        }


def _chance(candidates: int, right: Tensor) -> dict[str, float]:
    """Recall if all candidates were alike, from how many are right for each query."""
    nothing = torch.zeros_like(right)
    return {f"R@{k}": 100 * hit_probability(k, nothing, candidates - right, right).mean().item() for k in _RANKS}


def _predictions(records: list[dict], image_of: Tensor, captions: Retrieval, images: Retrieval) -> dict:
    """Readable lists; a caption's "id" is its place in the list of captions, from 0."""
    image_ids = [record["image_id"] for record in records]
    texts = [caption for record in records for caption in record["captions"]]
    return {
        "images": [
            {"image_id": record["image_id"], "file_name": record["file_name"], "best_captions": best, "scores": scores}
            for record, best, scores in zip(records, captions.best.tolist(), _rounded(captions.similarities))
        ],
        "captions": [
            {
                "id": index,
                "image_id": image_ids[owner],
                "caption": text,
                "best_images": [image_ids[i] for i in best],
                "scores": scores,
            }
            for index, (owner, text, best, scores) in enumerate(
                zip(image_of.tolist(), texts, images.best.tolist(), _rounded(images.similarities))
            )
        ],
    }


def _rounded(similarities: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in similarities.tolist()]
