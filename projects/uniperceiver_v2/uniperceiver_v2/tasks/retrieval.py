"""Retrieval: whole images are compared with whole captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..data import captioned_images, load_captions
from ..data.datasets.records import Records
from ..data.datasets.shards import ShardRecords
from ..data.datasets.texts import build_tokenizer
from ..data.mappers.captions import PairMapper, RetrievalMapper
from ..data.samples import CaptionedSample
from ..evaluation import RetrievalEvaluator, SceneRetrievalEvaluator
from ..kinds import ConfiguredTask, TaskKind, TaskSettings, setting
from ..modeling.decoder import IMAGE_TO_TEXT
from ..modeling.model import UniPerceiver
from ..ranks import gather_from_ranks, group_size, rank_in_group, sum_over_ranks
from .task import Task, log_accuracy


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings(TaskSettings):
    """Settings of retrieval. Images are resized as in detection, but not flipped or cropped, as captions say left
    and right."""

    gather_features: bool = setting(
        True, "compare with the batches of all ranks; otherwise with the rank's own share alone"
    )


class RetrievalTask(Task):
    """Image-text retrieval with a contrastive loss.

    The candidates of an image are all captions of the batch, and the candidates of a caption are all images of the
    batch. With ``GATHER_FEATURES`` the batch is that of all ranks.

    Inputs: :class:`~uniperceiver_v2.data.samples.CaptionedSample`, in training with one caption each. Predictions:
    "image_feature" [d] and "text_features" [n,d], normalised to length 1, so that products are cosines.
    """

    def losses(self, model: UniPerceiver, inputs: Sequence[CaptionedSample]) -> dict[str, Tensor]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        images = model.decode_image(encoding)
        texts = model.encode_texts(*model.text_encoder.pad([x["caption_token_ids"][0] for x in inputs]), IMAGE_TO_TEXT)
        keys, rows = _keys(inputs).to(images.device), torch.arange(len(inputs), device=images.device)
        all_images, all_texts, all_keys, own = images, texts, keys, rows
        if self.settings.gather_features and group_size() > 1:
            all_images, all_texts = gather_from_ranks(torch.cat((images, texts), dim=1)).chunk(2, dim=1)
            all_keys, own = gather_from_ranks(keys), rows + rank_in_group() * len(inputs)
        # Another pair with the same image or the same caption is no wrong candidate, so it is left out.
        same = (keys[:, None] == all_keys).any(-1).index_put((rows, own), torch.zeros_like(rows, dtype=torch.bool))
        to_text = model.likelihood(images, all_texts).masked_fill(same, -torch.inf)
        to_image = model.likelihood(texts, all_images).masked_fill(same, -torch.inf)
        hits = (to_text.argmax(1) == own).sum() + (to_image.argmax(1) == own).sum()
        log_accuracy("pair_accuracy", *sum_over_ranks(hits, torch.tensor(2 * len(inputs), device=hits.device)))
        return {"loss_contrastive": (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2}

    def predict(self, model: UniPerceiver, inputs: Sequence[CaptionedSample]) -> list[dict]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        images = F.normalize(model.decode_image(encoding).float(), dim=-1)
        captions = [ids for x in inputs for ids in x["caption_token_ids"]]
        texts = F.normalize(model.encode_texts(*model.text_encoder.pad(captions), IMAGE_TO_TEXT).float(), dim=-1)
        counts = [len(x["caption_token_ids"]) for x in inputs]
        return [
            {"image_feature": image, "text_features": features} for image, features in zip(images, texts.split(counts))
        ]


def _keys(inputs: Sequence[CaptionedSample]) -> Tensor:
    """[B,2] int64: a key of the image and a key of the caption. Equal keys mean equal images or captions."""
    return torch.tensor(
        [(_key(x["file_name"].encode()), _key(x["caption_token_ids"][0].cpu().numpy().tobytes())) for x in inputs]
    )


def _key(content: bytes) -> int:
    """A hash of 63 bits, the same on every rank."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records | ShardRecords, PairMapper]:
    tokenizer = build_tokenizer(cfg)
    return captioned_images(task.settings.datasets, tokenizer), PairMapper(cfg, task.name, tokenizer)


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, RetrievalMapper]:
    tokenizer = build_tokenizer(cfg)
    return load_captions(dataset_name, tokenizer), RetrievalMapper(cfg, task.name, tokenizer)


def _evaluator(name: str, folder: str) -> RetrievalEvaluator:
    """With an oracle's recall beside the model's where the scenes' facts are known."""
    facts = MetadataCatalog.get(name).get("scene_facts")
    return RetrievalEvaluator(name, folder) if facts is None else SceneRetrievalEvaluator(name, folder, facts)


RETRIEVAL = TaskKind(
    name="retrieval",
    settings=RetrievalSettings,
    task=RetrievalTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"retrieval": _evaluator},
    columns={"R@1": 1, "R@5": 1, "R@10": 1},
)
