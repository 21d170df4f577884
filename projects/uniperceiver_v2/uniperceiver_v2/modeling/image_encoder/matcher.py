"""Matching of predictions with objects: one-to-one for the decoder's queries, one-to-many for the encoder's tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import box_overlaps
from .query_selection import DensePredictions
from .structures import Matches, RegionTargets

logger = logging.getLogger(__name__)

HIGH = 1e6  # in place of a cost that is not finite


@dataclass
class MatchCosts:
    """The weight of each part of the matching cost."""

    objectness: float
    box: float
    giou: float
    mask: float
    dice: float


def focal_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of a prediction as foreground minus that as background (the class cost of Deformable DETR)."""
    probability = logits.sigmoid()
    positive = alpha * (1 - probability) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * probability**gamma * F.softplus(logits)
    return positive - negative


def pairwise_mask_costs(blocks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice losses of all pairs.

    Args:
        blocks: logits [...,Q,p] of predicted masks and target masks [...,N,p] in 0..1, at p of the P points. The result
            does not depend on the division of the points into blocks.
    Returns:
        both [...,Q,N], over all P points.
    """
    points, cross_entropy, overlap, total = 0, 0.0, 0.0, 0.0
    for logits, targets in blocks:
        points += logits.shape[-1]
        targets = targets.transpose(-1, -2)
        # -log sigmoid(x) = softplus(-x) = softplus(x) - x
        cross_entropy = cross_entropy + F.softplus(logits).sum(-1, keepdim=True) - logits @ targets
        probability = logits.sigmoid()
        overlap = overlap + probability @ targets
        total = total + probability.sum(-1, keepdim=True) + targets.sum(-2, keepdim=True)
    return cross_entropy / points, 1 - (2 * overlap + 1) / (total + 1)


def pairwise_box_costs(objectness: Tensor, boxes: Tensor, targets: RegionTargets, costs: MatchCosts) -> Tensor:
    """The matching cost without its mask parts.

    Args:
        objectness: [B,Q] logits.
        boxes: [B,Q,4].
    Returns:
        [B,Q,N].
    """
    boxes = boxes.float()
    giou = box_overlaps(boxes[:, :, None], targets.boxes[:, None])[1]
    distance = torch.cdist(boxes, targets.boxes, p=1)
    return costs.objectness * focal_cost(objectness.float()).unsqueeze(-1) + costs.box * distance - costs.giou * giou


def pairwise_costs(
    objectness: Tensor,
    boxes: Tensor,
    mask_blocks: Iterable[tuple[Tensor, Tensor]],
    targets: RegionTargets,
    costs: MatchCosts,
) -> Tensor:
    """The matching cost [B,layers,Q,N] of queries and targets (DETR, equation 1), in one batched computation.

    The queries of all layers of an image form one row of layers·Q queries, so that targets are not repeated for each
    layer.

    Args:
        objectness: [layers,B,Q] logits.
        boxes: [layers,B,Q,4].
        mask_blocks: mask logits [B,layers·Q,p] and target masks [B,N,p], as for `pairwise_mask_costs`.
    """
    layers = len(objectness)
    cost = pairwise_box_costs(rows_of_images(objectness), rows_of_images(boxes), targets, costs)
    cross_entropy, dice = pairwise_mask_costs(mask_blocks)
    if targets.with_mask is not None:  # an object whose mask is not known is found by its box alone
        known = targets.with_mask[:, None]
        cross_entropy, dice = cross_entropy * known, dice * known
    return (cost + costs.mask * cross_entropy + costs.dice * dice).unflatten(1, (layers, -1))


def assign(cost: np.ndarray, counts: Sequence[int]) -> Matches:
    """The cheapest one-to-one assignment of queries to targets in each layer and image, on the host.

    Args:
        cost: [B,layers,Q,N]. Infinite and NaN costs count as very high ones; the log says that there are some.
        counts: the number of targets of each image. They come first among its N.
    """
    images, layers = cost.shape[:2]
    if not np.isfinite(cost).all():
        logger.warning("%d of %d matching costs are not finite", (~np.isfinite(cost)).sum(), cost.size)
        cost = np.nan_to_num(cost, nan=HIGH, posinf=HIGH, neginf=-HIGH)
    pairs = [
        linear_sum_assignment(cost[image, layer, :, : counts[image]])
        for layer in range(layers)
        for image in range(images)
    ]
    layer, image = np.divmod(np.repeat(np.arange(len(pairs)), [len(query) for query, _ in pairs]), images)
    query, target = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return Matches(*torch.from_numpy(np.stack((layer, image, query, target))))


def rows_of_images(predictions: Tensor) -> Tensor:
    """[layers,B,Q,...] to [B,layers·Q,...]."""
    return predictions.transpose(0, 1).flatten(1, 2)


@torch.no_grad()
def one_to_many_match(dense: DensePredictions, targets: RegionTargets, candidates: int) -> tuple[Tensor, Tensor]:
    """Task-aligned assignment (TOOD, section 3.2) of tokens to objects.

    A token is eligible for an object if its centre lies in the object's box. The alignment of the two is
    √objectness · IoU⁴. Each object gets its `candidates` eligible tokens with the highest alignment. A token that
    several objects would get goes to the object with the highest IoU.

    An object can be smaller than the distance of tokens, so that no centre lies in its box. It gets the token with the
    nearest centre, before any other object. Of several such objects with the same nearest token one gets it.

    Returns:
        quality [B,S] in 0..1, the target of each token's objectness: 0 for background, else the token's alignment,
            scaled so that the best token of an object gets the object's best IoU, at least 1e-3;
        target [B,S] int64, the token's object, meaningful where quality is positive.
    """
    iou = box_overlaps(dense.boxes[:, :, None], targets.boxes[:, None])[0]  # [B,S,N]
    offset = (dense.centres[:, :, None] - targets.boxes[:, None, :, :2]).abs()
    inside = (offset <= targets.boxes[:, None, :, 2:] / 2).all(-1)
    eligible = inside & targets.valid[:, None] & dense.valid[:, :, None]
    distance = offset.sum(-1).masked_fill(~dense.valid[:, :, None], torch.inf)
    nearest = torch.zeros_like(eligible).scatter_(1, distance.argmin(1, keepdim=True), True)
    rescued = nearest & ~eligible.any(1, keepdim=True) & targets.valid[:, None]
    eligible |= rescued
    alignment = dense.objectness.sigmoid().sqrt().unsqueeze(-1) * iou**4 * eligible + 1e-9 * eligible
    best, index = alignment.topk(min(candidates, alignment.shape[1]), dim=1)
    chosen = torch.zeros_like(eligible).scatter_(1, index, best > 0)
    # A token goes to one object only.
    overlap = torch.where(chosen, iou + 1e-6 + 2 * rescued, iou.new_zeros(()))
    strongest, target = overlap.max(dim=-1)
    owned = F.one_hot(target, iou.shape[-1]).bool() & (strongest > 0).unsqueeze(-1)
    alignment = alignment * owned
    scale = (iou * owned).amax(1, keepdim=True).clamp(min=1e-3) / alignment.amax(1, keepdim=True).clamp(min=1e-12)
    return (alignment * scale).amax(-1), target
