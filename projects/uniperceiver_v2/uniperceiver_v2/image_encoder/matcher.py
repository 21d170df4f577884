"""Who answers for which object: one-to-one assignment for the decoder, one-to-many for the encoder's tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import box_overlaps
from .query_selection import DensePredictions
from .structures import Matches, RegionTargets


@dataclass
class MatchCosts:
    """Weights of the parts of the matching cost."""

    objectness: float
    box: float
    giou: float
    mask: float
    dice: float


def focal_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of calling a prediction foreground, less that of calling it background (DETR-style matching)."""
    probability = logits.sigmoid()
    positive = alpha * (1 - probability) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * probability**gamma * F.softplus(logits)
    return positive - negative


def pairwise_mask_costs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice losses of all pairs.

    Args:
        logits: [...,Q,P] predicted masks at P points; targets: [...,N,P] in 0..1.
    Returns:
        both [...,Q,N], averaged over the points.
    """
    points = logits.shape[-1]
    targets = targets.transpose(-1, -2)
    # -log sigmoid(x) = softplus(-x) = softplus(x) - x
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ targets) / points
    probability = logits.sigmoid()
    overlap = 2 * (probability @ targets)
    total = probability.sum(-1, keepdim=True) + targets.sum(-2, keepdim=True)
    return cross_entropy, 1 - (overlap + 1) / (total + 1)


@torch.no_grad()
def hungarian_match(
    objectness: Tensor,
    boxes: Tensor,
    mask_logits: Tensor,
    target_masks: Tensor,
    targets: RegionTargets,
    costs: MatchCosts,
) -> Matches:
    """The cheapest one-to-one assignment of queries to targets, for every layer and image (DETR, equation 1).

    The costs of all layers and images are one batched computation; only the assignment itself loops.

    Args:
        objectness: [layers,B,Q] logits; boxes: [layers,B,Q,4].
        mask_logits: [layers,B,Q,P] at points common to an image; target_masks: [B,N,P] at the same points.
    """
    pairs = boxes[:, :, :, None], targets.boxes[None, :, None]
    cross_entropy, dice = pairwise_mask_costs(mask_logits.float(), target_masks.float())
    cost = (
        costs.objectness * focal_cost(objectness.float()).unsqueeze(-1)
        + costs.box * (pairs[0] - pairs[1]).abs().sum(-1)
        - costs.giou * box_overlaps(*pairs)[1]
        + costs.mask * cross_entropy
        + costs.dice * dice
    )
    cost = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    counts = targets.valid.sum(1).tolist()
    rows = []
    for layer in range(cost.shape[0]):
        for image, count in enumerate(counts):
            query, target = linear_sum_assignment(cost[layer, image, :, :count])
            rows.append(np.stack((np.full_like(query, layer), np.full_like(query, image), query, target)))
    indices = torch.from_numpy(np.concatenate(rows, axis=1)).to(boxes.device)
    return Matches(*indices)


@torch.no_grad()
def one_to_many_match(dense: DensePredictions, targets: RegionTargets, candidates: int) -> tuple[Tensor, Tensor]:
    """Task-aligned assignment (TOOD, section 3.2) of tokens to objects: of the tokens whose centre lies in an object's
    box, the `candidates` whose objectness and overlap are best together; a token wanted by several goes to the one
    that it overlaps most.

    Returns:
        quality [B,S] in 0..1, the objectness each token should have: zero for background, else its alignment, scaled
            so that an object's best token gets that object's best IoU;
        target [B,S] int64, the object, meaningful where the quality is positive.
    """
    iou = box_overlaps(dense.boxes[:, :, None], targets.boxes[:, None])[0]  # [B,S,N]
    offset = (dense.centres[:, :, None] - targets.boxes[:, None, :, :2]).abs()
    inside = (offset <= targets.boxes[:, None, :, 2:] / 2).all(-1)
    eligible = inside & targets.valid[:, None] & dense.valid[:, :, None]
    alignment = dense.objectness.sigmoid().sqrt().unsqueeze(-1) * iou**4 * eligible + 1e-9 * eligible
    best, index = alignment.topk(min(candidates, alignment.shape[1]), dim=1)
    chosen = torch.zeros_like(eligible).scatter_(1, index, best > 0)
    # A token serves one object only.
    overlap = torch.where(chosen, iou + 1e-6, iou.new_zeros(()))
    strongest, target = overlap.max(dim=-1)
    owned = F.one_hot(target, iou.shape[-1]).bool() & (strongest > 0).unsqueeze(-1)
    alignment = alignment * owned
    scale = (iou * owned).amax(1, keepdim=True) / alignment.amax(1, keepdim=True).clamp(min=1e-12)
    return (alignment * scale).amax(-1), target
