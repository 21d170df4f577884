"""Video classification: the frames of a clip are one input, which is compared with the class names.

Shapes: B clips, F frames of a clip, M global tokens and O proposals of a frame, d the decoder's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor

from ..data import load_dataset
from ..data.datasets.records import Records, candidate_names, load_classification_training
from ..data.mappers.videos import ClipMapper
from ..data.samples import ClipSample
from ..evaluation import ClassificationEvaluator
from ..kinds import ConfiguredTask, TaskKind, setting
from ..modeling.image_encoder import ImageEncoding
from ..modeling.layers.position_encoding import sine_encoding
from ..modeling.model import UniPerceiver
from .classification import ClassificationSettings, ClassificationTask, augmentations_of
from .task import naming_datasets


@dataclass(frozen=True, kw_only=True)
class VideoClassificationSettings(ClassificationSettings):
    """Settings of video classification: those of classification, for all frames of a clip alike."""

    frames: int = setting(8, "of a clip that are seen, evenly spaced over its length", above=0)


class VideoClassificationTask(ClassificationTask):
    """The input x is ``<SPE>`` with the tokens of all frames. To each token the sine encoding of its frame's time is
    added, which has no weights. Everything else is classification.

    Inputs: :class:`~uniperceiver_v2.data.samples.ClipSample`. Predictions: "scores" [C].
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, settings: VideoClassificationSettings) -> VideoClassificationTask:
        return cls(settings, naming_datasets(cfg, "video_classification", settings))

    def images(self, model: UniPerceiver, inputs: Sequence[ClipSample]) -> ImageList:
        return model.preprocess([{"image": frame} for x in inputs for frame in x["frames"]])

    def encode(self, model: UniPerceiver, images: ImageList, count: int) -> ImageEncoding:
        encoding, _ = model.image_encoder(images)
        return of_clips(encoding, count)


def of_clips(encoding: ImageEncoding, count: int) -> ImageEncoding:
    """The encoding of ``count`` clips: a row has the tokens of all frames, F·M global ones and F·O proposals.

    Args:
        encoding: of B·F frames, those of a clip one behind the other.
        count: B.
    """
    frames, dim = len(encoding.global_tokens) // count, encoding.global_tokens.shape[-1]
    times = (torch.arange(frames, device=encoding.global_tokens.device) + 0.5) / frames
    when = sine_encoding(times[:, None], dim)[:, None]  # [F,1,d]

    def joined(tokens: Tensor) -> Tensor:
        return (tokens.unflatten(0, (count, frames)) + when.to(tokens.dtype)).flatten(1, 2)

    return replace(
        encoding,
        global_tokens=joined(encoding.global_tokens),
        global_valid=encoding.global_valid.unflatten(0, (count, frames)).flatten(1, 2),
        proposal_tokens=joined(encoding.proposal_tokens),
    )


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records, ClipMapper]:
    settings: VideoClassificationSettings = task.settings
    records = load_classification_training(settings.datasets)
    names = candidate_names(settings.datasets[0])
    shared = task.name, names, cfg.INPUT.FORMAT, settings.image_size
    return records, ClipMapper(*shared, frames=settings.frames, **augmentations_of(settings))


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, ClipMapper]:
    records, settings = load_dataset(dataset_name), task.settings
    shared = task.name, candidate_names(dataset_name), cfg.INPUT.FORMAT, settings.tested_size
    return records, ClipMapper(*shared, frames=settings.frames)


VIDEO_CLASSIFICATION = TaskKind(
    name="video_classification",
    settings=VideoClassificationSettings,
    task=VideoClassificationTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"video": ClassificationEvaluator},
    columns={},  # the metrics are classification's, whose part of the table has the rows
)
