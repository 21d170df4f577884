"""Captions of regions: captioning of an image of which one proposal is shown beside the whole.

Shapes: B images, R regions of all images, O proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..data.datasets.phrases import load_phrases
from ..data.datasets.records import Records
from ..data.datasets.texts import build_tokenizer
from ..data.mappers.regions import RegionCaptionMapper, regions_of
from ..data.samples import RegionSample
from ..errors import UserError
from ..evaluation import RegionCaptionEvaluator
from ..kinds import ConfiguredTask, TaskKind, setting
from ..modeling.image_encoder import ImageEncoding
from ..modeling.image_encoder.boxes import box_overlaps, xyxy_to_cxcywh
from ..modeling.model import UniPerceiver
from ..transfer import send
from .captioning import CaptioningTask, GenerationSettings


@dataclass(frozen=True, kw_only=True)
class RegionCaptioningSettings(GenerationSettings):
    """Settings of region captioning. Images have detection's sizes; they are neither cropped nor mirrored."""

    regions_per_image: int = setting(8, "regions drawn of an image in training, where it has as many", above=0)


class RegionCaptioningTask(CaptioningTask):
    """The input x is ``<SPE>``, the image's global tokens, one proposal and the caption, read as in captioning.

    The proposal is the one whose box overlaps the region's most. So regions have no encoding of their own, and those of
    an image share its encoding.

    Inputs: :class:`~uniperceiver_v2.data.samples.RegionSample`. Predictions: "captions" and "log_likelihoods" of the
    image's regions.
    """

    def encode(self, model: UniPerceiver, inputs: Sequence[RegionSample]) -> ImageEncoding:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        return of_regions(encoding, [x["regions"] for x in inputs])

    def rows(self, inputs: Sequence[RegionSample]) -> list[int]:
        return list(range(sum(len(x["caption_token_ids"]) for x in inputs)))

    def predict(self, model: UniPerceiver, inputs: Sequence[RegionSample]) -> list[dict]:
        captions = iter(self.generate(model, self.encode(model, inputs)))
        results = []
        for item in inputs:
            own = [next(captions) for _ in range(len(item["regions"]))]
            results.append({"captions": [text for text, _ in own], "log_likelihoods": [value for _, value in own]})
        return results


def of_regions(encoding: ImageEncoding, regions: Sequence[Tensor]) -> ImageEncoding:
    """The encoding of R regions: a row for each, with the image's global tokens and the proposal that overlaps it most.

    Args:
        encoding: of B images.
        regions: (x0, y0, x1, y1) of each image, [r,4] in 0..1 of the image.
    """
    device = encoding.proposal_tokens.device
    owners = send(torch.cat([torch.full((len(own),), image) for image, own in enumerate(regions)]), device)
    boxes = send(xyxy_to_cxcywh(torch.cat(list(regions))), device)
    overlaps, _ = box_overlaps(encoding.proposals.boxes.float()[owners], boxes[:, None])  # [R,O]
    best = overlaps.argmax(1)
    return replace(
        encoding,
        global_tokens=encoding.global_tokens[owners],
        global_valid=encoding.global_valid[owners],
        proposal_tokens=encoding.proposal_tokens[owners, best][:, None],
    )


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records, RegionCaptionMapper]:
    settings: RegionCaptioningSettings = task.settings
    records = [record for name in settings.datasets for record in _load(name)]
    mapper = RegionCaptionMapper(cfg, task.name, build_tokenizer(cfg), is_train=True, count=settings.regions_per_image)
    return records, mapper


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, RegionCaptionMapper]:
    return _load(dataset_name), RegionCaptionMapper(cfg, task.name, build_tokenizer(cfg), is_train=False)


def _load(name: str) -> Records:
    """The records of a dataset of images with phrases that have a phrase for one region."""
    records = [record for record in load_phrases(name) if regions_of(record)]
    if not records:
        raise UserError(f"dataset '{name}' has no phrase that means one region")
    return records


REGION_CAPTIONING = TaskKind(
    name="region_captioning",
    settings=RegionCaptioningSettings,
    task=RegionCaptioningTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"region_captions": RegionCaptionEvaluator},
    columns={},  # the metrics are captioning's, whose part of the table has the rows
)
