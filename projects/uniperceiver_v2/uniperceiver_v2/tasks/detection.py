"""Detection with masks: every proposal is compared with the category names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..modeling.image_encoder import Proposals, RegionTargets
from ..modeling.image_encoder.boxes import cxcywh_to_xyxy
from ..ranks import mean_divisor, sum_over_ranks
from .task import Task, log_accuracy, register_task

if TYPE_CHECKING:
    from ..modeling.model import UniPerceiver


@register_task("detection")
class DetectionTask(Task):
    """Object detection and instance segmentation.

    Inputs: "image", "candidates", in training "instances" (gt_boxes, gt_classes, gt_masks). Predictions: "instances"
    (pred_boxes, scores, pred_classes, pred_masks) at the size that "height" and "width" give, as in Detectron2.
    """

    def losses(self, model: UniPerceiver, inputs: list[dict]) -> dict[str, Tensor]:
        images = model.preprocess(inputs)
        targets = RegionTargets.from_instances([x["instances"] for x in inputs], images)
        encoding, regions = model.image_encoder(images, targets)
        candidates, anchors = model.encode_candidates_and_anchors(self.candidates(inputs))
        matches = regions.matches
        labels = targets.labels[matches.image, matches.target]
        matched_proposals = model.decode_proposals(encoding)[matches.image, matches.query]
        logits = model.likelihood.of_directions(matched_proposals, candidates)
        # Align before fuse: every state that answers for an object is also compared with the names as the text encoder
        # gives them. Matched proposals alone are too few to teach the region network what tells categories apart, and
        # while they do not tell, the unified decoder learns to make all candidates equal.
        aligned = model.likelihood(model.image_encoder.fusion.semantics(regions.states), anchors)
        matched, hits, answering = sum_over_ranks(
            torch.ones_like(labels).sum(), (logits.argmax(-1) == labels).sum(), torch.ones_like(regions.labels).sum()
        )
        log_accuracy("category_accuracy", hits, matched)
        category = F.cross_entropy(logits, labels, reduction="sum") / mean_divisor(matched)
        alignment = F.cross_entropy(aligned, regions.labels, reduction="sum") / mean_divisor(answering)
        return {
            **regions.losses,
            "loss_category": self.settings["CATEGORY_WEIGHT"] * category,
            "loss_alignment": self.settings["ALIGNMENT_WEIGHT"] * alignment,
        }

    def loss_count(self, inputs: list[dict]) -> int:
        return sum(len(x["instances"]) for x in inputs)

    def predict(self, model: UniPerceiver, inputs: list[dict]) -> list[dict]:
        images = model.preprocess(inputs)
        encoding, _ = model.image_encoder(images)
        candidates = model.encode_candidates(self.candidates(inputs))
        categories = model.likelihood.of_directions(model.decode_proposals(encoding), candidates).softmax(-1)
        scores = encoding.proposals.objectness.float().sigmoid().unsqueeze(-1) * categories  # [B,O,C]
        results = []
        for index, item in enumerate(inputs):
            size = images.image_sizes[index]
            output_size = item.get("height", size[0]), item.get("width", size[1])
            instances = best_instances(
                scores[index], encoding.proposals, index, images, output_size, model.detections_per_image
            )
            results.append({"instances": instances})
        return results


def best_instances(
    scores: Tensor,
    proposals: Proposals,
    index: int,
    images: ImageList,
    output_size: tuple[int, int],
    count: int,
) -> Instances:
    """The `count` best pairs of proposal and category of image `index`, from scores [O,C], at `output_size`."""
    best, flat = scores.flatten().topk(min(count, scores.numel()))
    proposal, category = flat // scores.shape[1], flat % scores.shape[1]
    used, which = proposal.unique(return_inverse=True)  # a mask serves all categories of its proposal
    boxes = Boxes(cxcywh_to_xyxy(proposals.boxes[index, used].float()))
    boxes.scale(output_size[1], output_size[0])
    boxes.clip(output_size)
    masks = paste_masks(proposals.masks[index, used], images, index, output_size) & box_interiors(boxes, output_size)
    return Instances(output_size, pred_boxes=boxes[which], scores=best, pred_classes=category, pred_masks=masks[which])


def box_interiors(boxes: Boxes, size: tuple[int, int]) -> Tensor:
    """[K, *size] bool, the pixels that a box touches: a mask ends where its box does (YOLACT, section 3.3)."""
    x0, y0, x1, y1 = boxes.tensor[:, :, None].unbind(1)
    rows, columns = (torch.arange(side, device=x0.device) for side in size)
    inside_rows = (rows + 1 > y0) & (rows < y1)
    inside_columns = (columns + 1 > x0) & (columns < x1)
    return inside_rows[:, :, None] & inside_columns[:, None]


def paste_masks(logits: Tensor, images: ImageList, index: int, output_size: tuple[int, int]) -> Tensor:
    """Mask logits [K,h,w] over the padded batch to bool masks [K, *output_size] over image `index`."""
    height, width = images.image_sizes[index]
    padded = F.interpolate(logits[None].float(), size=images.tensor.shape[-2:], mode="bilinear", align_corners=False)
    own = padded[..., :height, :width]
    if output_size != (height, width):
        own = F.interpolate(own, size=output_size, mode="bilinear", align_corners=False)
    return own[0] > 0
