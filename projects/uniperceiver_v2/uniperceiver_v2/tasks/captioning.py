"""Image captioning: at each position of a caption the representation is compared with the vocabulary for the next
word."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context
from torch import Tensor, nn

from ..data import captioned_images, load_captions, same_images
from ..data.datasets.records import Records
from ..data.datasets.shards import ShardRecords
from ..data.datasets.texts import build_tokenizer, encode
from ..data.mappers.captions import CaptionMapper, ReferenceMapper
from ..data.samples import CaptionedSample
from ..evaluation import TRUTH_METRICS, CaptionEvaluator, SceneCaptionEvaluator
from ..evaluation.caption_metrics import METRICS
from ..kinds import ConfiguredTask, TaskKind, TaskSettings, setting
from ..measured import measure
from ..modeling.decoder import IMAGE_TEXT_TO_TEXT, IMAGE_TO_TEXT, Attributes, Segment
from ..modeling.image_encoder import ImageEncoding
from ..modeling.model import UniPerceiver
from ..modeling.text_encoder import TextEncoder
from ..ranks import mean_divisor, sum_over_ranks
from ..transfer import send
from ..visualization import draw_caption_sheet
from .caption_baselines import caption_baselines
from .generation import Step, search
from .self_critical import DrawnCaptions, Rewards, draw_captions
from .task import CaptionedImageSettings, Task, log_accuracy
from .vocabulary import vocabulary_logits

CAPTION = Attributes("text", "input", IMAGE_TEXT_TO_TEXT, causal=True)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(TaskSettings):
    """Settings of whatever says words one by one."""

    vocabulary_sample: int = setting(
        4096, "words beside the batch's own that training compares with; 0 for all words", at_least=0
    )
    label_smoothing: float = setting(0.0, "share of the target that all words get alike", at_least=0, at_most=1)
    beam_size: int = setting(3, "beams of generation; 1 is greedy", at_least=1)
    length_penalty: float = setting(
        1.0, "a caption's log-likelihood is divided by its length to this power; above 0 favours longer captions"
    )
    max_length: int = setting(40, "of a generated caption, in tokens", at_least=1)

    @property
    def rewarded(self) -> bool:
        """Whether training draws captions for rewards."""
        return False

    @property
    def chooses(self) -> bool:
        """Whether a prediction is chosen among the captions of all beams."""
        return False


@dataclass(frozen=True, kw_only=True)
class CaptioningSettings(GenerationSettings, CaptionedImageSettings):
    """Settings of captioning."""

    captions_per_image: int = setting(
        1, "captions of an image in a training step, for which it is encoded once", at_least=1
    )
    cider_weight: float = setting(
        0.0, "beside 1 of the captions' likelihood: drawn captions with a higher CIDEr-D become likelier", at_least=0
    )
    truth_weight: float = setting(
        0.0, "drawn captions that are wholly true become likelier; for data whose scenes are known", at_least=0
    )
    drawn_captions: int = setting(5, "captions drawn of each image where a reward has a weight", at_least=2)
    rerank: bool = setting(
        False,
        "of the most likely captions, as many as beams, say the one that retrieval, too, finds likely; a task of "
        "retrieval has to be trained",
    )

    @property
    def rewarded(self) -> bool:
        return self.cider_weight > 0 or self.truth_weight > 0

    @property
    def chooses(self) -> bool:
        return self.rerank


class CaptioningTask(Task):
    """Captions are predicted word by word, from left to right. A position sees the whole image and no later word.

    Inputs: :class:`~uniperceiver_v2.data.samples.CaptionedSample`. Predictions: "caption", its "log_likelihood" (the
    sum of log P over its words and the stop token) and "image_feature" [d], the mean global token, which serves to find
    similar images.

    With ``CIDER_WEIGHT`` or ``TRUTH_WEIGHT`` training also draws captions from the model and makes those likelier whose
    reward is above that of the image's other ones, see :mod:`.self_critical`.
    """

    def __init__(self, settings: GenerationSettings):
        super().__init__(settings)
        self._rewards: Rewards | None = None

    def losses(self, model: UniPerceiver, inputs: Sequence[CaptionedSample]) -> dict[str, Tensor]:
        encoding, rows = self.encode(model, inputs), self.rows(inputs)
        captions = [caption for x in inputs for caption in x["caption_token_ids"]]
        own = self.loss_count(inputs)  # words of the references; those of drawn captions follow
        advantages = None
        if self.settings.rewarded:
            drawn = self._draw(model, encoding, inputs)
            rows += torch.arange(len(inputs)).repeat_interleave(self.settings.drawn_captions).tolist()
            captions += drawn.token_ids
            lengths = torch.tensor([len(caption) - 1 for caption in drawn.token_ids])
            advantages = send(drawn.advantages().repeat_interleave(lengths), model.device)
        token_ids, valid = model.text_encoder.pad(captions)
        decoded = decode_captions(model, encoding, rows, token_ids[:, :-1], valid[:, 1:])
        said = torch.cat([index * decoded.shape[1] + torch.arange(len(x) - 1) for index, x in enumerate(captions)])
        features = decoded.flatten(0, 1)[send(said, decoded.device)]
        words = torch.cat([caption[1:] for caption in captions])  # position t predicts token t + 1
        logits, labels = vocabulary_logits(model, features, words, IMAGE_TEXT_TO_TEXT, self.settings.vocabulary_sample)
        hits, count = sum_over_ranks((logits[:own].argmax(-1) == labels[:own]).sum(), own)
        log_accuracy("word_accuracy", hits, count)
        smoothing = self.settings.label_smoothing
        total = F.cross_entropy(logits[:own], labels[:own], label_smoothing=smoothing, reduction="sum")
        losses = {"loss_caption": total / mean_divisor(count)}
        if advantages is not None:
            surprise = F.cross_entropy(logits[own:], labels[own:], reduction="none")
            losses["loss_reward"] = (advantages * surprise).sum() / mean_divisor(count)
        return losses

    def _draw(self, model: UniPerceiver, encoding: ImageEncoding, inputs: Sequence[CaptionedSample]) -> DrawnCaptions:
        if self._rewards is None:
            self._rewards = Rewards(self.settings.datasets, self.settings.cider_weight, self.settings.truth_weight)
        generating = nn.ModuleList((model.text_encoder, model.decoder)).train(model.training)
        with inference_context(generating), torch.no_grad():
            drawn = draw_captions(
                model,
                next_words(model, encoding),
                inputs,
                self._rewards,
                count=self.settings.drawn_captions,
                max_length=min(self.settings.max_length, model.text_encoder.max_length - 1),
            )
        total, number = sum_over_ranks(send(drawn.rewards.sum(), model.device), drawn.rewards.numel())
        measure("reward", total / number)
        return drawn

    def encode(self, model: UniPerceiver, inputs: Sequence[Any]) -> ImageEncoding:
        """A row for each thing that captions describe: here for each image."""
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        return encoding

    def rows(self, inputs: Sequence[Any]) -> list[int]:
        """The row of the encoding that each caption of the batch describes."""
        return [index for index, x in enumerate(inputs) for _ in x["caption_token_ids"]]

    def loss_count(self, inputs: Sequence[CaptionedSample]) -> int:
        return sum(len(caption) - 1 for x in inputs for caption in x["caption_token_ids"])

    def predict(self, model: UniPerceiver, inputs: Sequence[CaptionedSample]) -> list[dict]:
        encoding = self.encode(model, inputs)
        captions = self.generate(model, encoding)
        return [
            {"caption": caption, "log_likelihood": log_likelihood, "image_feature": feature}
            for (caption, log_likelihood), feature in zip(captions, encoding.mean_global_token(), strict=True)
        ]

    def generate(
        self, model: UniPerceiver, encoding: ImageEncoding, beam_size: int | None = None
    ) -> list[tuple[str, float]]:
        """A caption of each encoded image, with its log-likelihood; by default with ``BEAM_SIZE`` beams."""
        beam_size = self.settings.beam_size if beam_size is None else beam_size
        start = torch.full((len(encoding.global_tokens),), model.text_encoder.bos_id, device=model.device)
        count = beam_size if self.settings.chooses else 1
        found = self.search(model.text_encoder, next_words(model, encoding), start, beam_size, count)
        return found if count == 1 else _chosen(model, encoding, found)

    def search(
        self, text_encoder: TextEncoder, step: Step, start: Tensor, beam_size: int, count: int = 1
    ) -> list[tuple[str, float]]:
        """The captions that a step of generation leads to from the start tokens [B], with their log-likelihoods:
        ``count`` of each, the most likely one first."""
        generated = search(
            step,
            start,
            text_encoder.eos_id,
            beam_size=beam_size,
            length_penalty=self.settings.length_penalty,
            max_length=min(self.settings.max_length, text_encoder.max_length),
            count=count,
        )
        return list(zip(text_encoder.decode(generated.token_ids), generated.log_likelihoods.tolist()))


def _chosen(
    model: UniPerceiver, encoding: ImageEncoding, captions: Sequence[tuple[str, float]]
) -> list[tuple[str, float]]:
    """The best of each image's captions, n of each of the B images, one behind the other.

    Captioning and retrieval both say how likely a caption t is for an image x. The best one has the greatest
    log P(t | x) + cos(x, t) / τ, the product of both likelihoods.
    """
    images = model.decode_image(encoding)  # [B,d]
    token_ids = [encode(model.text_encoder.tokenizer, text) for text, _ in captions]
    texts = model.encode_texts(*model.text_encoder.pad(token_ids), IMAGE_TO_TEXT).unflatten(0, (len(images), -1))
    cosines = F.cosine_similarity(images[:, None].float(), texts.float(), dim=-1)
    given = cosines.new_tensor([log_likelihood for _, log_likelihood in captions]).view_as(cosines)
    best = (given + cosines / model.likelihood.temperature).argmax(1).tolist()
    return [captions[image * cosines.shape[1] + place] for image, place in enumerate(best)]


def decode_captions(
    model: UniPerceiver, encoding: ImageEncoding, images: list[int], token_ids: Tensor, valid: Tensor
) -> Tensor:
    """Representations [C,T,d] of the tokens of C captions.

    Args:
        encoding: the encoded batch of images.
        images: C indices into the batch, the image of each caption.
        token_ids, valid: [C,T], the captions' ids, and which of them are no padding.
    """
    tokens = model.text_encoder(token_ids, valid, causal=True)
    rows = send(torch.tensor(images), tokens.device)
    segments = [segment.select(rows) for segment in model.image_segments(encoding, IMAGE_TEXT_TO_TEXT)]
    return model.decoder.read_last([*segments, Segment(tokens, valid, CAPTION)])


def never_next(text_encoder: TextEncoder) -> list[int]:
    """The ids of special tokens that no caption contains: all but </s>, which ends it."""
    return sorted(set(text_encoder.tokenizer.all_special_ids) - {text_encoder.eos_id})


def next_words(model: UniPerceiver, encoding: ImageEncoding) -> Step:
    """A step of generation for captions of B images: log P [N,V] of all words that may come next.

    </s> is the only special token that can come next. The image and the words before are not computed again: their keys
    and values are cached.
    """
    text_encoder, decoder = model.text_encoder, model.decoder
    words = model.vocabulary(IMAGE_TEXT_TO_TEXT)
    likelihoods = model.likelihood.against(words)
    forbidden = torch.tensor(never_next(text_encoder), device=words.device)
    image = model.image_segments(encoding, IMAGE_TEXT_TO_TEXT)
    text_cache, cache = text_encoder.begin(), decoder.begin(image)
    standing = torch.arange(len(image[0].tokens), device=words.device)

    def step(tokens: Tensor, rows: Tensor) -> Tensor:
        nonlocal text_cache, cache, standing
        if not torch.equal(rows, standing):  # greedy search rarely reorders rows
            text_cache, cache, standing = text_cache.select(rows), cache.select(rows), torch.arange(len(rows)).to(rows)
        tokens = text_encoder.extend(text_cache, tokens[:, None])
        features = decoder.extend(cache, tokens, CAPTION)[:, 0]
        return likelihoods(features).log_softmax(-1).index_fill_(1, forbidden, -torch.inf)

    return step


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records | ShardRecords, CaptionMapper]:
    tokenizer = build_tokenizer(cfg)
    settings: CaptioningSettings = task.settings
    mapper = CaptionMapper(
        cfg,
        task.name,
        tokenizer,
        settings.captions_per_image,
        references=settings.cider_weight > 0,
        **settings.training_sizes,
    )
    return captioned_images(task.settings.datasets, tokenizer), mapper


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, ReferenceMapper]:
    records = load_captions(dataset_name, build_tokenizer(cfg))
    return records, ReferenceMapper(cfg, task.name, **task.settings.test_sizes)


def _evaluator(name: str, folder: str) -> CaptionEvaluator:
    """Captions can be held against scenes whose facts are known."""
    facts = MetadataCatalog.get(name).get("scene_facts")
    return CaptionEvaluator(name, folder) if facts is None else SceneCaptionEvaluator(name, folder, facts)


def _before_evaluation(cfg: CfgNode, model: nn.Module, evaluators: Sequence[CaptionEvaluator]) -> None:
    """Give the evaluators the captions of the training set as baselines, and the place of SPICE's models."""
    baselines = caption_baselines(cfg, model)
    for evaluator in evaluators:
        evaluator.baselines, evaluator.spice_models = baselines, cfg.TEST.SPICE_MODELS


def _draw(cfg: CfgNode, model: nn.Module, dataset_name: str) -> None:
    """Draw a sheet of captions with detections for each detection dataset that is tested on the same images."""
    results = os.path.join(cfg.OUTPUT_DIR, "inference")
    for detected in cfg.DATASETS.TEST:
        if MetadataCatalog.get(detected).get("evaluator_type") == "coco" and same_images(detected, dataset_name):
            draw_caption_sheet(
                os.path.join(cfg.OUTPUT_DIR, "visualization", f"{dataset_name}.png"),
                detected,
                os.path.join(results, dataset_name, "predictions.json"),
                os.path.join(results, detected, "coco_instances_results.json"),
            )


def _picture(dataset_name: str, prediction: dict) -> dict[str, Any]:
    return {"caption": prediction["caption"]}


CAPTIONING = TaskKind(
    name="captioning",
    settings=CaptioningSettings,
    task=CaptioningTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"coco_caption": _evaluator},
    columns=dict.fromkeys((*METRICS, *TRUTH_METRICS), 1),
    before_evaluation=_before_evaluation,
    draw=_draw,
    picture=_picture,
)
