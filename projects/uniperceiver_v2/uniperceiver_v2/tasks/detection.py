"""Detection with masks: the representation of every proposal is compared with the category names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator
from torch import Tensor

from ..data import build_test_loader, load_dataset
from ..data.datasets.records import Records, candidate_names, federation_of, load_detection_training
from ..data.mappers.images import DetectionMapper
from ..data.samples import DetectionSample
from ..errors import UserError
from ..evaluation.ground_truth import make_usable
from ..evaluation.lvis_numpy import repair_lvis
from ..evaluation.own_ids import OwnIdsEvaluator
from ..evaluation.proposals import LIMITS, ProposalEvaluator
from ..kinds import LARGEST_SQUARE, ConfiguredTask, TaskKind, TaskSettings, setting
from ..modeling.image_encoder import ImageEncoding, RegionTargets
from ..modeling.model import UniPerceiver
from ..ranks import mean_divisor, mean_over_ranks, sum_over_ranks
from ..visualization import draw_test_scenes
from .category_sample import CategorySample
from .labelled_proposals import ImageSizes, LabelledProposals, best_pairs
from .task import NamingTask, log_accuracy, naming_datasets


@dataclass(frozen=True, kw_only=True)
class DetectionSettings(TaskSettings):
    """Settings of detection. ``INPUT`` has the sizes, flips and crops of images, unless ``JITTER_SIZE`` gives the sizes
    of training."""

    category_weight: float = setting(2.0, "of the category loss", at_least=0)
    alignment_weight: float = setting(5.0, "of the alignment loss", at_least=0)
    centred_states: bool = setting(
        False, "whether the states that are aligned are without their mean over the batch, as the names are"
    )
    centre_weight: float = setting(0.0, "of the loss of the map of centres, see `REGION.FINE_DIM`", at_least=0)
    prompt: str = setting("{}", "text that each name is put into")
    temperature: float = setting(
        1.0, "divides the logits of scores; `python -m uniperceiver_v2.calibrate` fits it", above=0
    )
    detections_per_image: int = setting(
        0, "detections of an image; 0: `TEST.DETECTIONS_PER_IMAGE`; LVIS: 300", at_least=0
    )
    repeat_threshold: float = setting(
        0.0, "images of categories that fewer than this share of images show are repeated; LVIS: 0.001", at_least=0
    )
    federated_sample: int = setting(
        0,
        "categories that a batch compares with: its own and others drawn by frequency, for an image without those "
        "that it does not exhaustively annotate; 0: all; LVIS: 50",
        at_least=0,
    )
    jitter_size: int = setting(
        0,
        "side in pixels of the square of large-scale jitter in training, in place of `INPUT`'s sizes; 0: no jitter",
        at_least=0,
        at_most=LARGEST_SQUARE,
    )
    jitter_scale: list[float] = setting([0.1, 2.0], "its smallest and largest scale", above=0, interval=True)
    copy_paste: float = setting(
        0.0, "share of training images onto which objects of another image are pasted", at_least=0, at_most=1
    )


class DetectionTask(NamingTask):
    """Object detection and instance segmentation.

    Inputs: :class:`~uniperceiver_v2.data.samples.DetectionSample`. Predictions: "instances" (pred_boxes, scores,
    pred_classes, and pred_masks if masks are learned) at the size "height" x "width" of the input, as in Detectron2.

    Args:
        settings: the task's settings.
        detections_per_image: the number of (proposal, category) pairs that are returned for an image.
        named_by: datasets that name the categories if an input does not.
    """

    def __init__(self, settings: DetectionSettings, detections_per_image: int = 100, named_by: Sequence[str] = ()):
        super().__init__(settings, named_by)
        self.detections_per_image = detections_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode, settings: DetectionSettings) -> DetectionTask:
        count = settings.detections_per_image or cfg.TEST.DETECTIONS_PER_IMAGE
        return cls(settings, count, naming_datasets(cfg, "detection", settings))

    @property
    def is_federated(self) -> bool:
        """Whether a batch is compared with a sample of the names, which differs from rank to rank."""
        return self.settings.federated_sample > 0

    def losses(self, model: UniPerceiver, inputs: Sequence[DetectionSample]) -> dict[str, Tensor]:
        images = model.preprocess(inputs)
        targets = RegionTargets.from_instances([x["instances"] for x in inputs], images)
        categories = self._categories(inputs, targets.labels)
        # As label each object has its place in the batch: so each state knows which object it answers for.
        places = torch.arange(targets.valid.numel(), device=targets.valid.device).view_as(targets.valid)
        encoding, regions = model.image_encoder(images, replace(targets, labels=places))
        candidates, alignment_targets = model.encode_candidates_and_alignment_targets(
            categories.texts, shared=not self.is_federated
        )
        matches = regions.matches
        labels = categories.labels[matches.image, matches.target]
        matched_proposals = model.decode_proposals(encoding)[matches.image, matches.query]
        logits = model.likelihood.of_directions(matched_proposals, candidates)
        logits = categories.compared(logits, matches.image, labels)
        # Align before fuse: every state of the region network that is matched to an object is also compared with the
        # names, as the text encoder encodes them. The matched proposals are too few to teach the region network to
        # distinguish categories. And as long as it cannot, the unified decoder learns to make all candidates equal.
        states = model.image_encoder.fusion.semantics(regions.states)
        if self.settings.centred_states:
            # What all states have in common hides what differs between them.
            states = states - mean_over_ranks(states)
        aligned = model.likelihood(states, alignment_targets)
        owner = regions.labels
        state_labels = categories.labels.flatten()[owner]
        aligned = categories.compared(aligned, owner // targets.valid.shape[1], state_labels)
        right = (logits.argmax(-1) == labels).sum()
        hits, matched, answering, objects = sum_over_ranks(
            right, len(labels), regions.weights.sum(), targets.valid.sum()
        )
        log_accuracy("category_accuracy", hits, matched)
        category = F.cross_entropy(logits, labels, reduction="sum") / mean_divisor(matched)
        of_states = F.cross_entropy(aligned, state_labels, reduction="none")
        alignment = (of_states * regions.weights).sum() / mean_divisor(answering)
        losses = {
            **regions.losses,
            "loss_category": self.settings.category_weight * category,
            "loss_alignment": self.settings.alignment_weight * alignment,
        }
        if self.settings.centre_weight:
            true = F.one_hot(categories.labels, len(categories.texts)).bool() & targets.valid[..., None]
            # Of a federated sample, an image's own categories at most: others may be there without annotations.
            known = torch.ones_like(true[:, 0]) if categories.unsure is None else true.any(1) & ~categories.unsure
            centres = model.image_encoder.centre_loss(regions, alignment_targets, targets, true, known)
            losses["loss_centre"] = self.settings.centre_weight * centres / mean_divisor(objects)
        return losses

    def _categories(self, inputs: Sequence[DetectionSample], labels: Tensor) -> CategorySample:
        texts, count = self.candidates_of(inputs), self.settings.federated_sample
        return CategorySample.federated(texts, labels, inputs, count) if count else CategorySample(texts, labels)

    def loss_count(self, inputs: Sequence[DetectionSample]) -> int:
        return sum(len(x["instances"]) for x in inputs)

    def predict(self, model: UniPerceiver, inputs: Sequence[DetectionSample]) -> list[dict]:
        images = model.preprocess(inputs)
        encoding, _ = model.image_encoder(images)
        found = self.find(model, encoding, ImageSizes.of(images), self.candidates_of(inputs))
        return [
            {
                "instances": pairs.instances(
                    (item.get("height", pairs.image_size[0]), item.get("width", pairs.image_size[1]))
                )
            }
            for pairs, item in zip(found, inputs, strict=True)
        ]

    def find(
        self, model: UniPerceiver, encoding: ImageEncoding, sizes: ImageSizes, texts: tuple[str, ...]
    ) -> list[LabelledProposals]:
        """The best (proposal, category) pairs of each encoded image, best first. Labels are places in ``texts``, the
        candidate texts."""
        candidates = model.encode_candidates(texts)
        categories = model.likelihood.of_directions(model.decode_proposals(encoding), candidates).softmax(-1)
        scores = encoding.proposals.objectness.float().sigmoid().unsqueeze(-1) * categories  # [B,O,C]
        count, temperature = self.detections_per_image, self.settings.temperature
        return [
            best_pairs(of_image, encoding.proposals, index, sizes, count, temperature)
            for index, of_image in enumerate(scores)
        ]


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records, DetectionMapper]:
    names = task.settings.datasets
    records = load_detection_training(
        names,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        with_masks=cfg.MODEL.MASK_ON,
        most_bad=cfg.DATALOADER.MAX_BAD_ANNOTATIONS,
    )
    settings: DetectionSettings = task.settings
    if settings.copy_paste and not cfg.MODEL.MASK_ON:
        raise UserError(
            f"TASKS.{task.name}.COPY_PASTE: objects are cut out by their masks, which MODEL.MASK_ON turns on"
        )
    mapper = DetectionMapper(
        cfg,
        task.name,
        candidate_names(names[0]),
        is_train=True,
        jitter=(settings.jitter_size, *settings.jitter_scale) if settings.jitter_size else None,
        copy_paste=settings.copy_paste,
        federation=federation_of(records, names[0]) if settings.federated_sample else None,
    )
    return records, mapper


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, DetectionMapper]:
    records = load_dataset(dataset_name)
    return records, DetectionMapper(cfg, task.name, candidate_names(dataset_name), is_train=False)


def _coco_evaluator(name: str, folder: str) -> DatasetEvaluator:
    if MetadataCatalog.get(name).get("own_format"):
        return OwnIdsEvaluator(name, load_dataset(name), folder, COCOEvaluator)
    evaluator = COCOEvaluator(name, output_dir=folder)
    # Checked here, as the evaluator would use the file's values only after inference.
    if not make_usable(evaluator._coco_api, MetadataCatalog.get(name).json_file):
        evaluator._tasks = ("bbox",)
    return evaluator


def _lvis_evaluator(name: str, folder: str) -> DatasetEvaluator:
    repair_lvis()
    if MetadataCatalog.get(name).get("own_format"):
        return OwnIdsEvaluator(name, load_dataset(name), folder, LVISEvaluator)
    evaluator = LVISEvaluator(name, output_dir=folder)
    if not make_usable(evaluator._lvis_api, MetadataCatalog.get(name).json_file):
        evaluator._tasks = ("bbox",)
    return evaluator


def _draw(cfg: CfgNode, model: Callable[[list[dict]], list[dict]], dataset_name: str) -> None:
    """Draw test scenes with predictions beside annotations, for datasets in COCO's format."""
    if MetadataCatalog.get(dataset_name).get("evaluator_type") == "coco":
        folder = os.path.join(cfg.OUTPUT_DIR, "visualization", dataset_name)
        draw_test_scenes(model, build_test_loader(cfg, dataset_name), dataset_name, folder)


def _picture(dataset_name: str, prediction: dict) -> dict[str, Any]:
    return {"instances": prediction["instances"], "names": MetadataCatalog.get(dataset_name).thing_classes}


DETECTION = TaskKind(
    name="detection",
    settings=DetectionSettings,
    task=DetectionTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"coco": _coco_evaluator, "lvis": _lvis_evaluator, "coco_proposals": ProposalEvaluator},
    columns=dict.fromkeys(("AP", "AP50", "AP75", "APr", "APc", "APf", *(f"AR@{limit}" for limit in LIMITS)), 1),
    titles={"bbox": "boxes", "segm": "masks"},
    draw=_draw,
    picture=_picture,
)
