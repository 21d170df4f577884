"""Retrieval of captions by images and of images by captions, in the Karpathy protocol."""

import torch
from torch import Tensor

from .gathering import GatheringEvaluator
from .reranking import Reranking, rerank
from .retrieval_ranks import Retrieval, hit_probability, retrieve

RANKS = (1, 5, 10)
_LISTED = 10  # candidates of a query in predictions.json


class RetrievalEvaluator(GatheringEvaluator):
    """R@1, R@5 and R@10 in percent, over the whole split of all ranks, and the values at chance.

    A query image counts as found at k if one of its captions is among the k most similar of all captions. A query
    caption counts as found at k if its image is among the k most similar of all images.

    Candidates of equal similarity stand in random order, and the metric is the expected recall over these orders. So a
    model that gives all candidates the same similarity gets the values at chance. If several images have the same
    caption, word for word, a query with this caption counts as a fraction of a hit.

    With ``reranking`` the best candidates by cosine are compared again, see :func:`~.reranking.rerank`. Their scores in
    ``predictions.json`` are then no cosines.

    Args:
        dataset_name: a registered dataset of captions.
        output_folder: for ``results.json`` and ``predictions.json``, which lists the ten best captions of each image
            and the ten best images of each caption. None writes no files.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        super().__init__(dataset_name, output_folder)
        self.reranking: Reranking | None = None

    @property
    def dataset_name(self) -> str:
        return self._dataset_name

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "image_id", "file_name" and "captions"; "caption_token_ids" for reranking.
            outputs: predictions with "image_feature" [d] and "text_features" [captions, d], all normalised to length 1;
                "image_tokens" [T,d] for reranking.

        Raises:
            FloatingPointError: features are not finite.
            ValueError: a sample has no captions, or the number of its text features differs from that of its captions.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            record = {
                "image_id": sample["image_id"],
                "file_name": sample["file_name"],
                "captions": list(sample["captions"]),
                # Copies, as views would keep the whole batch in memory.
                "image_feature": output["image_feature"].float().cpu().clone(),
                "text_features": output["text_features"].float().cpu().clone(),
            }
            if not record["captions"] or len(record["captions"]) != len(record["text_features"]):
                raise ValueError(
                    f"image {record['image_id']} has {len(record['captions'])} captions and "
                    f"{len(record['text_features'])} features of them; expected as many, at least one"
                )
            # Comparisons with NaN are false: no candidate would rank before it, and it would count as found.
            if not (record["image_feature"].isfinite().all() and record["text_features"].isfinite().all()):
                raise FloatingPointError(f"the features of image {record['image_id']} are not finite")
            if self.reranking:
                record["caption_token_ids"] = sample["caption_token_ids"]
                record["image_tokens"] = output["image_tokens"].half().cpu().clone()  # they fill most of the memory
            self._records.append(record)

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        captions_of = torch.tensor([len(record["captions"]) for record in records])
        image_of = torch.arange(len(records)).repeat_interleave(captions_of)  # [captions]
        images = torch.stack([record["image_feature"] for record in records])
        captions = torch.cat([record["text_features"] for record in records])
        found = retrieve(
            images, captions, image_of, keep=max(*RANKS, self.reranking.candidates if self.reranking else 0)
        )
        found_captions, found_images = self._reranked(records, *found, image_of) if self.reranking else found
        self._write("predictions.json", _predictions(records, image_of, found_captions, found_images))
        return {
            "text_retrieval": {f"R@{k}": found_captions.recall(k) for k in RANKS},
            "image_retrieval": {f"R@{k}": found_images.recall(k) for k in RANKS},
            "text_retrieval (chance)": _chance(len(captions), captions_of),
            "image_retrieval (chance)": _chance(len(images), torch.ones_like(image_of)),
        }

    def _reranked(
        self, records: list[dict], captions: Retrieval, images: Retrieval, image_of: Tensor
    ) -> tuple[Retrieval, Retrieval]:
        tokens = [record["image_tokens"] for record in records]
        token_ids = [ids for record in records for ids in record["caption_token_ids"]]
        texts = [caption for record in records for caption in record["captions"]]

        def log_likelihoods(pairs: Tensor) -> Tensor:
            return self.reranking.log_likelihoods(tokens, token_ids, pairs)

        return rerank(captions, images, image_of, texts, self.reranking.temperature, log_likelihoods)


def _chance(candidates: int, right: Tensor) -> dict[str, float]:
    """Recall if all candidates were equally similar. ``right`` [Q] is the number of right candidates of each query."""
    nothing = torch.zeros_like(right)
    return {f"R@{k}": 100 * hit_probability(k, nothing, candidates - right, right).mean().item() for k in RANKS}


def _predictions(records: list[dict], image_of: Tensor, captions: Retrieval, images: Retrieval) -> dict:
    """Lists for ``predictions.json``. A caption's "id" is its index in the list of all captions, from 0."""
    image_ids = [record["image_id"] for record in records]
    texts = [caption for record in records for caption in record["captions"]]
    return {
        "images": [
            {"image_id": record["image_id"], "file_name": record["file_name"], "best_captions": best, "scores": scores}
            for record, best, scores in zip(records, captions.best[:, :_LISTED].tolist(), _rounded(captions))
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
                zip(image_of.tolist(), texts, images.best[:, :_LISTED].tolist(), _rounded(images))
            )
        ],
    }


def _rounded(found: Retrieval) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in found.similarities[:, :_LISTED].tolist()]
