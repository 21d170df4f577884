"""Semantic and panoptic segmentation: the proposals of detection, of things and of stuff, share out the pixels.

Shapes: B images, O proposals, C categories, [H,W] the image in its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..data.datasets.records import Records, candidate_names
from ..data.datasets.segments import load_segments
from ..data.mappers.segments import SegmentationMapper
from ..data.samples import SegmentationSample
from ..errors import UserError
from ..evaluation import PanopticEvaluator, SemanticEvaluator
from ..kinds import ConfiguredTask, TaskKind, TaskSettings, setting
from ..modeling.image_encoder import ImageEncoding
from ..modeling.model import UniPerceiver
from .category_sample import CategorySample
from .detection import DetectionTask
from .labelled_proposals import ImageSizes, LabelledProposals
from .task import NamingTask, naming_datasets


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings(TaskSettings):
    """Settings of segmentation. ``INPUT`` has the sizes, flips and crops of images."""

    category_weight: float = setting(2.0, "of the category loss", at_least=0)
    alignment_weight: float = setting(5.0, "of the alignment loss", at_least=0)
    centred_states: bool = setting(
        False, "whether the states that are aligned are without their mean over the batch, as the names are"
    )
    centre_weight: float = setting(0.0, "of the loss of the map of centres, see `REGION.FINE_DIM`", at_least=0)
    prompt: str = setting("{}", "text that each name is put into")
    score_threshold: float = setting(0.3, "a proposal with a lower score gets no pixels", at_least=0, at_most=1)
    overlap_threshold: float = setting(
        0.8, "a proposal that gets less than this share of its mask gets no segment", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class Segmented:
    """An image with its pixels shared out.

    Attributes:
        ids: int32 [H,W], the id of a segment at each pixel, 0 for none.
        segments: {"id", "category_id" (a place among the candidates), "score"} of each segment, best first. Stuff of a
            category is one segment, with the best score of its proposals.
        semantic: int64 [H,W], the place of the likeliest category at each pixel.
    """

    ids: Tensor
    segments: list[dict]
    semantic: Tensor


class SegmentationTask(DetectionTask):
    """Segmentation learns as detection does, with regions of stuff among the objects.

    A pixel belongs to the proposal with the largest score × P(pixel is in its mask), for a panoptic result. For a
    semantic one, each category has the sum over proposals of score × P(pixel), as in Mask2Former. So one model, trained
    once, gives both.

    Inputs: :class:`~uniperceiver_v2.data.samples.SegmentationSample`. Predictions: "panoptic_seg", the ids [H,W] with
    the segments, and "semantic" [H,W]; see :class:`Segmented`.
    """

    is_federated = False

    def __init__(self, settings: SegmentationSettings, named_by: Sequence[str] = ()):
        NamingTask.__init__(self, settings, named_by)

    @classmethod
    def from_config(cls, cfg: CfgNode, settings: SegmentationSettings) -> SegmentationTask:
        return cls(settings, naming_datasets(cfg, "segmentation", settings))

    def _categories(self, inputs: Sequence[SegmentationSample], labels: Tensor) -> CategorySample:
        return CategorySample(self.candidates_of(inputs), labels)

    def predict(self, model: UniPerceiver, inputs: Sequence[SegmentationSample]) -> list[dict]:
        images = model.preprocess(inputs)
        encoding, _ = model.image_encoder(images)
        own_sizes = [(x.get("height", h), x.get("width", w)) for x, (h, w) in zip(inputs, images.image_sizes)]
        texts, is_stuff = self.candidates_of(inputs), inputs[0]["is_stuff"]
        found = self.segment(model, encoding, ImageSizes.of(images), texts, is_stuff, own_sizes)
        return [{"panoptic_seg": (x.ids, x.segments), "semantic": x.semantic} for x in found]

    def segment(
        self,
        model: UniPerceiver,
        encoding: ImageEncoding,
        sizes: ImageSizes,
        texts: tuple[str, ...],
        is_stuff: Sequence[bool],
        own_sizes: Sequence[tuple[int, int]],
    ) -> list[Segmented]:
        """The segments of encoded images.

        Args:
            model: the model.
            encoding, sizes: of B images.
            texts: of the C candidates.
            is_stuff: of each candidate.
            own_sizes: (H, W) of each image in its file.
        """
        candidates = model.encode_candidates(texts)
        categories = model.likelihood.of_directions(model.decode_proposals(encoding), candidates).softmax(-1)
        scores = encoding.proposals.objectness.float().sigmoid().unsqueeze(-1) * categories  # [B,O,C]
        every = torch.arange(scores.shape[1], device=scores.device)
        results = []
        for index, (of_image, size) in enumerate(zip(scores, own_sizes, strict=True)):
            best, labels = of_image.max(-1)
            proposals = LabelledProposals.choose(every, labels, best, encoding.proposals, index, sizes)
            shares = proposals.mask_probabilities(size)
            semantic = torch.einsum("oc,ohw->chw", of_image, shares).argmax(0)
            results.append(Segmented(*self._panoptic(best, labels, shares, is_stuff), semantic))
        return results

    def _panoptic(
        self, scores: Tensor, labels: Tensor, shares: Tensor, is_stuff: Sequence[bool]
    ) -> tuple[Tensor, list[dict]]:
        """Ids [H,W] and segments from scores [O], labels [O] and the pixels' probabilities [O,H,W]."""
        kept = (scores >= self.settings.score_threshold).nonzero().flatten()
        kept = kept[scores[kept].argsort(descending=True)]
        ids = torch.zeros(shares.shape[1:], dtype=torch.int32, device=shares.device)
        if not len(kept):
            return ids, []
        inside = shares[kept] > 0.5
        owner = (scores[kept][:, None, None] * shares[kept]).argmax(0)
        own = inside & (owner == torch.arange(len(kept), device=owner.device)[:, None, None])
        areas, whole = own.sum((1, 2)).tolist(), inside.sum((1, 2)).tolist()
        segments: list[dict] = []
        stuff: dict[int, int] = {}
        for place, (category, score) in enumerate(zip(labels[kept].tolist(), scores[kept].tolist())):
            if not areas[place] or areas[place] < self.settings.overlap_threshold * whole[place]:
                continue
            number = stuff.get(category, len(segments) + 1)
            ids[own[place]] = number
            if number > len(segments):
                segments.append({"id": number, "category_id": category, "score": score})
                if is_stuff[category]:
                    stuff[category] = number
        return ids, segments


def _mapper(cfg: CfgNode, name: str, dataset_name: str, is_train: bool) -> SegmentationMapper:
    is_stuff = MetadataCatalog.get(dataset_name).is_stuff
    return SegmentationMapper(cfg, name, candidate_names(dataset_name), is_stuff, is_train)


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records, SegmentationMapper]:
    if not cfg.MODEL.MASK_ON:
        raise UserError(f"TASKS.{task.name}: segmentation learns masks, which MODEL.MASK_ON turns on")
    names = task.settings.datasets
    return load_segments(*names), _mapper(cfg, task.name, names[0], is_train=True)


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, SegmentationMapper]:
    return load_segments(dataset_name), _mapper(cfg, task.name, dataset_name, is_train=False)


SEGMENTATION = TaskKind(
    name="segmentation",
    settings=SegmentationSettings,
    task=SegmentationTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"panoptic": PanopticEvaluator, "semantic": SemanticEvaluator},
    columns=dict.fromkeys(("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "mIoU", "pACC"), 1),
)
