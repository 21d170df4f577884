"""Retrieval: images and captions are compared as wholes, each with the other side's batch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from ..modeling.decoder import IMAGE_TO_TEXT
from ..ranks import gather_from_ranks, sum_over_ranks
from .task import Task, log_accuracy, register_task

if TYPE_CHECKING:
    from ..modeling.model import UniPerceiver


@register_task("retrieval")
class RetrievalTask(Task):
    """Image-text retrieval, learned by contrast: the candidates of an image are all captions of the batch, those of a
    caption all images, gathered over all ranks unless GATHER_FEATURES is off.

    Inputs: "image", in training "file_name" and "token_ids" [T] of one caption, in evaluation "caption_token_ids", a
    list of them. Predictions: "image_feature" [d] and "text_features" [n,d], of length 1: products are cosines.
    """

    def losses(self, model: UniPerceiver, inputs: list[dict]) -> dict[str, Tensor]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        images = model.decode_image(encoding)
        texts = model.encode_texts(*model.text_encoder.pad([x["token_ids"] for x in inputs]), IMAGE_TO_TEXT)
        keys, rows = _keys(inputs).to(images.device), torch.arange(len(inputs), device=images.device)
        all_images, all_texts, all_keys, own = images, texts, keys, rows
        if self.settings["GATHER_FEATURES"] and comm.get_world_size() > 1:
            all_images, all_texts = gather_from_ranks(torch.cat((images, texts), dim=1)).chunk(2, dim=1)
            all_keys, own = gather_from_ranks(keys), rows + comm.get_rank() * len(inputs)
        # Another pair with the same image or the same caption is no wrong answer and must not be counted as one.
        same = (keys[:, None] == all_keys).any(-1).index_put((rows, own), torch.zeros_like(rows, dtype=torch.bool))
        to_text = model.likelihood(images, all_texts).masked_fill(same, -torch.inf)
        to_image = model.likelihood(texts, all_images).masked_fill(same, -torch.inf)
        hits = (to_text.argmax(1) == own).sum() + (to_image.argmax(1) == own).sum()
        log_accuracy("pair_accuracy", *sum_over_ranks(hits, torch.tensor(2 * len(inputs), device=hits.device)))
        return {"loss_contrastive": (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2}

    def predict(self, model: UniPerceiver, inputs: list[dict]) -> list[dict]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        images = F.normalize(model.decode_image(encoding).float(), dim=-1)
        captions = [ids for x in inputs for ids in x["caption_token_ids"]]
        texts = F.normalize(model.encode_texts(*model.text_encoder.pad(captions), IMAGE_TO_TEXT).float(), dim=-1)
        counts = [len(x["caption_token_ids"]) for x in inputs]
        return [
            {"image_feature": image, "text_features": features} for image, features in zip(images, texts.split(counts))
        ]


def _keys(inputs: list[dict]) -> Tensor:
    """[B,2] int64, equal where image or caption are."""
    return torch.tensor([(_key(x["file_name"].encode()), _key(x["token_ids"].cpu().numpy().tobytes())) for x in inputs])


def _key(content: bytes) -> int:
    """63 bits that stand for some content, the same on every rank."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
