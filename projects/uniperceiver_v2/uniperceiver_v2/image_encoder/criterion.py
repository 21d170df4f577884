"""Losses of the region network: objectness, boxes and masks, for all decoder layers and denoising queries at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import box_overlaps, contains
from .denoising import DenoisingQueries
from .matcher import MatchCosts, hungarian_match, one_to_many_match
from .point_sampling import sample_masks, sample_points, uncertain_points
from .query_selection import DensePredictions
from .structures import Matches, RegionTargets, on_padded_map

MASK_MARGIN = 1.2  # side of the window in which a mask is learned, in sides of its box
OUTSIDE = -8.0  # mask logit outside a query's box


@dataclass
class RegionPredictions:
    """Predictions of all decoder layers (Ly of them) for a set of queries.

    Attributes:
        objectness: [Ly,B,Q] logits.
        boxes: [Ly,B,Q,4].
        mask_embeddings: [Ly,B,Q,dim]; their products with the pixel embeddings are the mask logits.
    """

    objectness: Tensor
    boxes: Tensor
    mask_embeddings: Tensor

    def queries(self, part: slice) -> RegionPredictions:
        """The predictions of some of the queries."""
        return RegionPredictions(*(x[:, :, part] for x in (self.objectness, self.boxes, self.mask_embeddings)))


def quality_focal_loss(logits: Tensor, quality: Tensor, weight: Tensor, gamma: float = 1.5) -> Tensor:
    """Cross-entropy to an IoU-aware objectness, easy background counting less, summed.

    With p = sigmoid(logits) and q the quality: -Σ weight · c · [q log p + (1 - q) log(1 - p)], c = 1 for foreground
    (q > 0) and p^gamma for background (VarifocalNet, equation 2, without its alpha and factor q).
    """
    focus = torch.where(quality > 0, torch.ones_like(logits), logits.detach().sigmoid() ** gamma)
    return (F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * focus * weight).sum()


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) over the points of each mask, [K,P] to [K] (V-Net, with DETR's +1)."""
    probability = logits.sigmoid()
    return 1 - (2 * (probability * targets).sum(-1) + 1) / (probability.sum(-1) + targets.sum(-1) + 1)


def masks_of(mask_embeddings: Tensor, image: Tensor, pixel_embeddings: Tensor) -> Tensor:
    """Mask logits [K,h,w] of K queries: embeddings [K,dim], the image [K] of each, pixels [B,dim,h,w].

    One batched product over the queries of each image, so that no pixel embedding is copied for each query.
    """
    order = image.argsort(stable=True)
    counts = torch.bincount(image, minlength=len(pixel_embeddings))
    starts = counts.cumsum(0) - counts
    sorted_image = image[order]
    slot = torch.arange(len(image), device=image.device) - starts[sorted_image]
    padded = mask_embeddings.new_zeros(len(counts), max(1, int(counts.max())), mask_embeddings.shape[-1])
    padded[sorted_image, slot] = mask_embeddings[order]
    logits = torch.einsum("bkd,bdhw->bkhw", padded, pixel_embeddings)
    back = order.argsort()
    return logits[sorted_image, slot][back]


def mask_windows(matches: Matches, targets: RegionTargets) -> Tensor:
    """Where the mask of each matched query is learned, boxes [K,4] on the padded map: in its object's box and a margin.

    A mask ends at its box (YOLACT, section 3.3), so that it need not tell its object from everything else in the image.
    """
    boxes = on_padded_map(targets.boxes, targets.extent)[matches.image, matches.target]
    return torch.cat((boxes[:, :2], boxes[:, 2:] * MASK_MARGIN), dim=-1)


class RegionCriterion:
    """Weighs and sums the region network's losses, each averaged over the objects of the batch.

    What it divides by is given to it, as it depends on the other ranks' shares of the batch.

    Args:
        weights: of "objectness", "box", "giou", "mask", "dice".
        costs: of the same names, for matching.
        num_points, oversampling, uncertain_share: of the mask losses (PointRend).
        one_to_many: tokens that answer for each object in the encoder.
    """

    def __init__(
        self,
        weights: dict[str, float],
        costs: MatchCosts,
        num_points: int,
        oversampling: float,
        uncertain_share: float,
        one_to_many: int,
    ):
        self.weights, self.costs = weights, costs
        self.num_points, self.oversampling, self.uncertain_share = num_points, oversampling, uncertain_share
        self.one_to_many = one_to_many

    def match(self, predictions: RegionPredictions, pixel_embeddings: Tensor, targets: RegionTargets) -> Matches:
        """One-to-one matches of every layer, masks compared at points common to an image's queries."""
        B, N = targets.valid.shape
        points = torch.rand(B, self.num_points, 2, device=pixel_embeddings.device)
        embeddings = sample_points(pixel_embeddings.detach().float(), points)  # [B,dim,P]
        logits = predictions.mask_embeddings.detach().float() @ embeddings
        own = on_padded_map(predictions.boxes.detach().transpose(0, 1), targets.extent).transpose(0, 1)
        logits = logits.masked_fill(~contains(own.unsqueeze(-2), points[None, :, None]), OUTSIDE)
        which = torch.arange(B * N, device=points.device)
        at_points = sample_masks(targets.masks.flatten(0, 1), which, points.repeat_interleave(N, dim=0))
        return hungarian_match(
            predictions.objectness.detach(),
            predictions.boxes.detach(),
            logits,
            at_points.view(B, N, -1),
            targets,
            self.costs,
        )

    def losses(
        self,
        predictions: RegionPredictions,
        matches: Matches,
        ignored: Tensor | None,
        pixel_embeddings: Tensor,
        targets: RegionTargets,
        num_objects: Tensor | float,
    ) -> dict[str, Tensor]:
        """Losses of matched queries and of background, summed over layers, per object.

        Args:
            ignored: [B,Q] bool, queries that are neither foreground nor background; None for none.
            num_objects: what to divide by.
        """
        place = matches.layer, matches.image, matches.query
        boxes, wanted = predictions.boxes[place].float(), targets.boxes[matches.image, matches.target]
        iou, giou = box_overlaps(boxes, wanted)
        quality = torch.zeros_like(predictions.objectness, dtype=iou.dtype)
        quality[place] = iou.detach().clamp(min=1e-3)
        weight = iou.new_ones(()) if ignored is None else (~ignored).float()
        mask_loss, dice = self._mask_losses(predictions.mask_embeddings[place], matches, pixel_embeddings, targets)
        sums = {
            "objectness": quality_focal_loss(predictions.objectness.float(), quality, weight),
            "box": (boxes - wanted).abs().sum(),
            "giou": (1 - giou).sum(),
            "mask": mask_loss,
            "dice": dice,
        }
        return {name: self.weights[name] * value / num_objects for name, value in sums.items()}

    def _mask_losses(
        self, mask_embeddings: Tensor, matches: Matches, pixel_embeddings: Tensor, targets: RegionTargets
    ) -> tuple[Tensor, Tensor]:
        if len(matches.image) == 0:
            nothing = mask_embeddings.sum() * 0
            return nothing, nothing
        logits = masks_of(mask_embeddings, matches.image, pixel_embeddings).float()
        points = uncertain_points(
            logits, self.num_points, self.oversampling, self.uncertain_share, mask_windows(matches, targets)
        )
        at_points = sample_points(logits[:, None], points).squeeze(1)
        which = matches.image * targets.valid.shape[1] + matches.target
        wanted = sample_masks(targets.masks.flatten(0, 1), which, points)
        cross_entropy = F.binary_cross_entropy_with_logits(at_points, wanted, reduction="none").mean(1)
        return cross_entropy.sum(), dice_loss(at_points, wanted).sum()

    def denoising_losses(
        self,
        predictions: RegionPredictions,
        queries: DenoisingQueries,
        pixel_embeddings: Tensor,
        targets: RegionTargets,
        num_objects: Tensor | float,
    ) -> tuple[dict[str, Tensor], Matches]:
        """As `losses`, with the known answers in place of a matching, averaged over the denoising groups."""
        matches = queries.matches(layers=len(predictions.objectness))
        ignored = ~(queries.positive | queries.negative)
        divisor = num_objects * queries.num_groups
        losses = self.losses(predictions, matches, ignored, pixel_embeddings, targets, divisor)
        return losses, matches

    def match_dense(self, dense: DensePredictions, targets: RegionTargets) -> tuple[Tensor, Matches]:
        """The quality [B,S] that the objectness of each of the encoder's tokens should have, and which tokens answer
        for which objects, those whose quality is positive."""
        quality, target = one_to_many_match(dense, targets, self.one_to_many)
        image, token = (quality > 0).nonzero(as_tuple=True)
        return quality, Matches(torch.zeros_like(image), image, token, target[image, token])

    def dense_losses(
        self,
        dense: DensePredictions,
        quality: Tensor,
        matches: Matches,
        targets: RegionTargets,
        total_quality: Tensor | float,
    ) -> dict[str, Tensor]:
        """One-to-many losses of the encoder's tokens, each object's tokens weighed by their quality.

        Args:
            quality, matches: of `match_dense`.
            total_quality: what to divide by.
        """
        weight = quality[matches.image, matches.query]
        boxes = dense.boxes[matches.image, matches.query]
        wanted = targets.boxes[matches.image, matches.target]
        sums = {
            "objectness": quality_focal_loss(dense.objectness, quality, dense.valid.float()),
            "box": ((boxes - wanted).abs().sum(-1) * weight).sum(),
            "giou": ((1 - box_overlaps(boxes, wanted)[1]) * weight).sum(),
        }
        return {name: self.weights[name] * value / total_quality for name, value in sums.items()}
