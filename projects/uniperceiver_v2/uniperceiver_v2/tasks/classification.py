"""Image classification: the representation of the whole image is compared with the class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor

from ..data import load_dataset
from ..data.datasets.records import Records, candidate_names, load_classification_training
from ..data.mappers.images import ClassificationMapper
from ..data.samples import ClassificationSample
from ..evaluation import ClassificationEvaluator
from ..kinds import LARGEST_SQUARE, ConfiguredTask, TaskKind, TaskSettings, setting
from ..modeling.image_encoder import ImageEncoding
from ..modeling.likelihood import directions
from ..modeling.model import UniPerceiver
from ..ranks import sum_over_ranks
from ..shared_noise import shared_normal
from ..transfer import send
from .mixing import mix, mixing_weights
from .task import NamingTask, log_accuracy, naming_datasets, prompted

_DRAW = (0, 0, 0)  # the key of the draw of a prompt; keys of other draws have other lengths


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings(TaskSettings):
    """Settings of classification."""

    label_smoothing: float = setting(0.0, "share of the target that all classes get alike", at_least=0, at_most=1)
    alignment_weight: float = setting(1.0, "of the alignment loss", at_least=0)
    image_size: int = setting(224, "side in pixels of the square that images are made", above=0, at_most=LARGEST_SQUARE)
    crop_scale: list[float] = setting(
        [0.08, 1.0],
        "smallest and largest share of an image's area that a random crop takes",
        above=0,
        at_most=1,
        interval=True,
    )
    test_size: int = setting(0, "the same in evaluation; 0: `IMAGE_SIZE`", at_least=0, at_most=LARGEST_SQUARE)
    flip: bool = setting(True, "whether training mirrors every other image")
    rand_augment: int = setting(0, "operations of RandAugment on a training image", at_least=0)
    rand_augment_magnitude: float = setting(9.0, "their strength", at_least=0, at_most=10)
    erasing: float = setting(0.0, "share of training images that lose a rectangle", at_least=0, at_most=1)
    mixup: float = setting(0.0, "α of mixup, two images of a batch blended; 0 for none", at_least=0)
    cutmix: float = setting(0.0, "α of CutMix, a rectangle of one in the other; with both, either has half", at_least=0)
    prompt: str = setting("{}", "text that each name is put into")
    further_prompts: list[str] = setting(
        [], "with them prompts are an ensemble: training draws one for each iteration, answers compare with their mean"
    )
    temperature: float = setting(
        1.0, "divides the likelihoods before the softmax; `python -m uniperceiver_v2.calibrate` fits it", above=0
    )

    @property
    def tested_size(self) -> int:
        """The side of the square in evaluation, in pixels."""
        return self.test_size or self.image_size


class ClassificationTask(NamingTask):
    """Inputs: :class:`~uniperceiver_v2.data.samples.ClassificationSample`. Predictions: "scores" [C], the
    probabilities of the candidates."""

    @classmethod
    def from_config(cls, cfg: CfgNode, settings: ClassificationSettings) -> ClassificationTask:
        return cls(settings, naming_datasets(cfg, "classification", settings))

    def losses(self, model: UniPerceiver, inputs: Sequence[ClassificationSample]) -> dict[str, Tensor]:
        images, settings = self.images(model, inputs), self.settings
        labels = send(torch.tensor([x["label"] for x in inputs]), images.tensor.device)
        texts = self._drawn(self.names_of(inputs))
        weights = mixing_weights(len(inputs), images.image_sizes[0], settings.mixup, settings.cutmix)
        if weights is not None:
            weights = send(weights, labels.device)
            frames = len(images) // len(inputs)  # are mixed alike
            mixed, labels = mix(images.tensor.unflatten(0, (-1, frames)).flatten(1, 2), labels, weights, len(texts))
            images.tensor = mixed.unflatten(1, (frames, -1)).flatten(0, 1)
        encoding = self.encode(model, images, len(inputs))
        candidates, alignment_targets = model.encode_candidates_and_alignment_targets(texts, shared=True)
        logits = model.likelihood.of_directions(model.decode_image(encoding), candidates)
        likeliest = labels if labels.ndim == 1 else labels.argmax(-1)
        hits = (logits.argmax(-1) == likeliest).sum()
        log_accuracy("label_accuracy", *sum_over_ranks(hits, len(labels)))
        aligned = model.likelihood(encoding.mean_global_token(), alignment_targets)
        smoothing = self.settings.label_smoothing
        return {
            "loss_label": F.cross_entropy(logits, labels, label_smoothing=smoothing),
            "loss_alignment": self.settings.alignment_weight
            * F.cross_entropy(aligned, labels, label_smoothing=smoothing),
        }

    def predict(self, model: UniPerceiver, inputs: Sequence[ClassificationSample]) -> list[dict]:
        encoding = self.encode(model, self.images(model, inputs), len(inputs))
        return [{"scores": scores} for scores in self.probabilities(model, encoding, self.names_of(inputs))]

    def images(self, model: UniPerceiver, inputs: Sequence[Any]) -> ImageList:
        """The images of a batch, as many for each input."""
        return model.preprocess(inputs)

    def encode(self, model: UniPerceiver, images: ImageList, count: int) -> ImageEncoding:
        """The encoding of ``count`` inputs."""
        encoding, _ = model.image_encoder(images)
        return encoding

    def _drawn(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The names in this iteration's prompt, the same on all ranks."""
        prompts = self._prompts()
        numbers = shared_normal(len(prompts), *_DRAW) if len(prompts) > 1 else [0.0]
        return prompted(prompts[numbers.index(max(numbers))], names)

    def _prompts(self) -> list[str]:
        return [self.settings.prompt, *self.settings.further_prompts]

    def probabilities(self, model: UniPerceiver, encoding: ImageEncoding, names: Sequence[str]) -> Tensor:
        """P [B,C] of names for the images of an encoding. With several prompts, a name's direction is the mean of its
        directions in each."""
        of_prompts = [model.encode_candidates(prompted(prompt, tuple(names))) for prompt in self._prompts()]
        candidates = of_prompts[0] if len(of_prompts) == 1 else directions(torch.stack(of_prompts).mean(0))
        likelihoods = model.likelihood.of_directions(model.decode_image(encoding), candidates)
        return (likelihoods / self.settings.temperature).softmax(-1)


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records, ClassificationMapper]:
    settings = task.settings
    # Before candidate_names: a dataset may know its classes by their folders only.
    records = load_classification_training(settings.datasets)
    mapper = ClassificationMapper(
        task.name,
        candidate_names(settings.datasets[0]),
        cfg.INPUT.FORMAT,
        settings.image_size,
        **augmentations_of(settings),
    )
    return records, mapper


def augmentations_of(settings: ClassificationSettings) -> dict[str, Any]:
    """The arguments of a mapper of training."""
    return {
        "crop_scale": settings.crop_scale,
        "flip": settings.flip,
        "rand_augment": (settings.rand_augment, settings.rand_augment_magnitude),
        "erasing": settings.erasing,
    }


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, ClassificationMapper]:
    records = load_dataset(dataset_name)
    return records, ClassificationMapper(
        task.name, candidate_names(dataset_name), cfg.INPUT.FORMAT, task.settings.tested_size
    )


CLASSIFICATION = TaskKind(
    name="classification",
    settings=ClassificationSettings,
    task=ClassificationTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"imagenet": ClassificationEvaluator},
    columns={"top1": 1, "top5": 1},
)
