"""Retrieval: whole images are compared with whole captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context
from torch import Tensor, nn

from ..data import captioned_images, load_captions
from ..data.datasets.records import Records
from ..data.datasets.shards import ShardRecords
from ..data.datasets.texts import build_tokenizer
from ..data.mappers.captions import PairMapper, RetrievalMapper
from ..data.samples import CaptionedSample
from ..evaluation import RetrievalEvaluator, SceneRetrievalEvaluator
from ..evaluation.reranking import Reranking
from ..evaluation.retrieval import RANKS
from ..kinds import ConfiguredTask, TaskKind, evaluating_task, setting
from ..modeling.decoder import IMAGE_TO_TEXT
from ..modeling.image_encoder import ImageEncoding
from ..modeling.model import UniPerceiver
from ..ranks import gather_from_ranks, group_size, rank_in_group, sum_over_ranks
from ..transfer import send
from .caption_likelihoods import caption_log_likelihoods, tokens_of_images
from .task import CaptionedImageSettings, Task, log_accuracy


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings(CaptionedImageSettings):
    """Settings of retrieval."""

    captions_per_image: int = setting(
        1, "captions of an image in a training step, all of them right for it", at_least=1
    )
    gather_features: bool = setting(
        True, "compare with the batches of all ranks; otherwise with the rank's own share alone"
    )
    rerank: int = setting(
        0,
        "best candidates of a query, ten at least, that evaluation compares again, by the likelihood of the caption "
        "given the image; 0 for none; a task of captioning has to be trained",
        at_least=0,
    )

    @property
    def candidates(self) -> int:
        """How many of a query's best candidates are compared again: those of the highest rank of recall at least."""
        return max(*RANKS, self.rerank) if self.rerank else 0


class RetrievalTask(Task):
    """Image-text retrieval with a contrastive loss.

    The candidates of an image are all captions of the batch, and the candidates of a caption are all images of the
    batch. With ``GATHER_FEATURES`` the batch is that of all ranks. An image with several captions is compared with each
    of them and the captions of other images, without its other ones.

    Inputs: :class:`~uniperceiver_v2.data.samples.CaptionedSample`, in training with ``CAPTIONS_PER_IMAGE`` captions.
    Predictions: "image_feature" [d] and "text_features" [n,d], normalised to length 1, so that products are cosines.
    With ``RERANK`` also "image_tokens" [T,d], for :func:`~.caption_likelihoods.caption_log_likelihoods`.
    """

    def losses(self, model: UniPerceiver, inputs: Sequence[CaptionedSample]) -> dict[str, Tensor]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        count = len(inputs[0]["caption_token_ids"])  # the same for all images
        # A row for each caption: P = B·count pairs, those of an image one behind the other.
        images = model.decode_image(encoding).repeat_interleave(count, dim=0)
        captions = [ids for x in inputs for ids in x["caption_token_ids"]]
        texts = model.encode_texts(*model.text_encoder.pad(captions), IMAGE_TO_TEXT)
        keys, own = send(_keys(inputs), images.device), torch.arange(len(captions), device=images.device)
        all_images, all_texts, all_keys = images, texts, keys
        if self.settings.gather_features and group_size() > 1:
            all_images, all_texts = gather_from_ranks(torch.cat((images, texts), dim=1)).chunk(2, dim=1)
            all_keys, own = gather_from_ranks(keys), own + rank_in_group() * len(captions)
        # Another pair with the same image or the same caption is no wrong candidate, so it is left out.
        same = (keys[:, None] == all_keys).any(-1)
        to_text = _without(model.likelihood(images, all_texts), same, own)
        # Each image is one candidate, whatever the number of its captions.
        same_image, own_image = same.unflatten(1, (-1, count)).any(-1), own // count
        to_image = _without(model.likelihood(texts, all_images[::count]), same_image, own_image)
        hits = (to_text.argmax(1) == own).sum() + (to_image.argmax(1) == own_image).sum()
        log_accuracy("pair_accuracy", *sum_over_ranks(hits, 2 * len(captions)))
        return {"loss_contrastive": (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own_image)) / 2}

    def predict(self, model: UniPerceiver, inputs: Sequence[CaptionedSample]) -> list[dict]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        images = self.image_features(model, encoding)
        texts = self.text_features(model, [ids for x in inputs for ids in x["caption_token_ids"]])
        counts = [len(x["caption_token_ids"]) for x in inputs]
        found = [
            {"image_feature": image, "text_features": features} for image, features in zip(images, texts.split(counts))
        ]
        if self.settings.rerank:
            for prediction, tokens in zip(found, tokens_of_images(encoding), strict=True):
                prediction["image_tokens"] = tokens
        return found

    @staticmethod
    def image_features(model: UniPerceiver, encoding: ImageEncoding) -> Tensor:
        """Encoded images as features [B,d] of length 1."""
        return F.normalize(model.decode_image(encoding).float(), dim=-1)

    @staticmethod
    def text_features(model: UniPerceiver, token_ids: Sequence[Tensor]) -> Tensor:
        """Texts of ids [T] as features [n,d] of length 1."""
        return F.normalize(model.encode_texts(*model.text_encoder.pad(token_ids), IMAGE_TO_TEXT).float(), dim=-1)


def _without(logits: Tensor, same: Tensor, own: Tensor) -> Tensor:
    """Logits [P,C] without the candidates `same` [P,C], but with each row's own one, `own` [P]."""
    left_out = same.scatter(1, own[:, None], False)
    return logits.masked_fill(left_out, -torch.inf)


def _keys(inputs: Sequence[CaptionedSample]) -> Tensor:
    """[P,2] int64: for each caption a key of its image and one of itself. Equal keys mean equal images or captions."""
    return torch.tensor(
        [
            (_key(x["file_name"].encode()), _key(ids.cpu().numpy().tobytes()))
            for x in inputs
            for ids in x["caption_token_ids"]
        ]
    )


def _key(content: bytes) -> int:
    """A hash of 63 bits, the same on every rank."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records | ShardRecords, PairMapper]:
    tokenizer = build_tokenizer(cfg)
    settings: RetrievalSettings = task.settings
    mapper = PairMapper(cfg, task.name, tokenizer, settings.captions_per_image, **settings.training_sizes)
    return captioned_images(task.settings.datasets, tokenizer), mapper


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, RetrievalMapper]:
    tokenizer = build_tokenizer(cfg)
    return load_captions(dataset_name, tokenizer), RetrievalMapper(
        cfg, task.name, tokenizer, **task.settings.test_sizes
    )


def _evaluator(name: str, folder: str) -> RetrievalEvaluator:
    """With an oracle's recall beside the model's where the scenes' facts are known."""
    facts = MetadataCatalog.get(name).get("scene_facts")
    return RetrievalEvaluator(name, folder) if facts is None else SceneRetrievalEvaluator(name, folder, facts)


def _before_evaluation(cfg: CfgNode, model: nn.Module, evaluators: Sequence[RetrievalEvaluator]) -> None:
    """Give the evaluators the model's likelihoods of captions, where candidates are to be compared again."""
    model = getattr(model, "module", model)  # of DistributedDataParallel

    def log_likelihoods(images: Sequence[Tensor], captions: Sequence[Tensor], pairs: Tensor) -> Tensor:
        with inference_context(model):
            return caption_log_likelihoods(model, images, captions, pairs)

    for evaluator in evaluators:
        count = evaluating_task(cfg, evaluator.dataset_name).settings.candidates
        evaluator.reranking = Reranking(count, model.likelihood.temperature.item(), log_likelihoods) if count else None


RETRIEVAL = TaskKind(
    name="retrieval",
    settings=RetrievalSettings,
    task=RetrievalTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"retrieval": _evaluator},
    columns={"R@1": 1, "R@5": 1, "R@10": 1},
    before_evaluation=_before_evaluation,
)
