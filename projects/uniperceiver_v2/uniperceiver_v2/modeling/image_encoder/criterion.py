"""Losses of the region network on objectness, boxes and masks, for all decoder layers and denoising queries at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...transfer import fetch, send
from .boxes import box_overlaps, contains
from .denoising import DenoisingQueries
from .matcher import MatchCosts, assign, one_to_many_match, pairwise_costs, rows_of_images
from .point_sampling import sample_masks, sample_points, uncertain_points
from .query_selection import DensePredictions
from .structures import Matches, RegionTargets, on_padded_map

MASK_MARGIN = 1.2  # of masks that end at their boxes: one is learned in a window with 1.2 times the sides of its box
OUTSIDE = -8.0  # mask logit outside a query's box
MASKS_KEPT = 2**26  # mask logits of all matches together; more are compared in parts, and again in the backward pass
# Mask logits compared at once on a CPU: fewer are slower, more need new memory from the system. Elsewhere each block
# costs a dozen launches, so that MASKS_KEPT, a bound of memory, is the only one.
MATCHED_AT_ONCE = 2**22


@dataclass
class RegionPredictions:
    """Predictions of Ly layers for a set of queries. A layer is one of the decoder's, or the encoder's selection.

    Attributes:
        objectness: [Ly,B,Q] logits.
        boxes: [Ly,B,Q,4].
        mask_embeddings: [Ly,B,Q,dim]. Mask logits are their products with the pixel embeddings.
    """

    objectness: Tensor
    boxes: Tensor
    mask_embeddings: Tensor

    def queries(self, part: slice) -> RegionPredictions:
        """The predictions for a slice of the queries."""
        return RegionPredictions(*(x[:, :, part] for x in (self.objectness, self.boxes, self.mask_embeddings)))

    def after(self, first: RegionPredictions) -> RegionPredictions:
        """The layers of `first`, then these, for the same queries."""
        return RegionPredictions(
            *(torch.cat((getattr(first, field.name), getattr(self, field.name))) for field in fields(self))
        )


def quality_focal_loss(logits: Tensor, quality: Tensor, weight: Tensor | None, gamma: float = 1.5) -> Tensor:
    """Sum of cross-entropies with an IoU-aware objectness as target. Easy background counts less.

    With p = sigmoid(logits) and q the quality: -Σ weight · c · [q log p + (1 - q) log(1 - p)], c = 1 for foreground
    (q > 0) and p^gamma for background (VarifocalNet, equation 2, without its alpha and factor q).
    """
    focus = (logits.detach().sigmoid() ** gamma).masked_fill_(quality > 0, 1.0)
    focus = focus if weight is None else focus * weight
    return F.binary_cross_entropy_with_logits(logits, quality, focus, reduction="sum")


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) over the points of each mask, [K,P] to [K] (V-Net, with DETR's +1)."""
    probability = logits.sigmoid()
    return 1 - (2 * (probability * targets).sum(-1) + 1) / (probability.sum(-1) + targets.sum(-1) + 1)


def masks_of(mask_embeddings: Tensor, image: Tensor, pixel_embeddings: Tensor) -> Tensor:
    """Mask logits [K,h,w] of K queries.

    It is one batched product, with the queries of each image padded to the same number. Pixel embeddings are not copied
    for each query.

    Args:
        mask_embeddings: [K,dim].
        image: [K] int64, the image of each query, on the host.
        pixel_embeddings: [B,dim,h,w].
    """
    height, width = pixel_embeddings.shape[-2:]
    image = image.cpu()
    counts = torch.bincount(image, minlength=len(pixel_embeddings))
    widest = max(1, int(counts.max()))
    order = image.argsort(stable=True)
    starts = torch.arange(len(counts)) * widest - (counts.cumsum(0) - counts)
    place = torch.empty_like(image)  # of each query: every image has `widest` places
    place[order] = torch.arange(len(image)) + starts[image[order]]
    place = send(place, pixel_embeddings.device)
    padded = mask_embeddings.new_zeros(len(counts) * widest, mask_embeddings.shape[-1])
    padded = padded.index_copy(0, place, mask_embeddings).view(len(counts), widest, -1)
    logits = padded @ pixel_embeddings.flatten(2)
    return logits.flatten(0, 1).index_select(0, place).unflatten(-1, (height, width))


def mask_windows(boxes: Tensor) -> Tensor:
    """The windows in which the masks of objects with these boxes [...,4] are learned if masks end at their boxes."""
    return torch.cat((boxes[..., :2], boxes[..., 2:] * MASK_MARGIN), dim=-1)


def weighted_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of values, each multiplied by its weight unless `weight` is None."""
    return values.sum() if weight is None else (values * weight).sum()


def detection_losses(
    predictions: RegionPredictions, matches: Matches, targets: RegionTargets, weight: Tensor | None
) -> dict[str, Tensor]:
    """Objectness, box and GIoU losses, summed over layers, images and queries.

    Args:
        weight: [B,Q], the weight of each query; None if all have the same.
    """
    place = matches.layer, matches.image, matches.query
    boxes, wanted = predictions.boxes[place].float(), targets.boxes[matches.image, matches.target]
    iou, giou = box_overlaps(boxes, wanted)
    quality = torch.zeros_like(predictions.objectness, dtype=iou.dtype)
    quality[place] = iou.detach().clamp(min=1e-3)
    matched_weight = None if weight is None else weight[matches.image, matches.query]
    return {
        "objectness": quality_focal_loss(predictions.objectness.float(), quality, weight),
        "box": weighted_sum((boxes - wanted).abs().sum(-1), matched_weight),
        "giou": weighted_sum(1 - giou, matched_weight),
    }


class RegionCriterion:
    """The region network's losses, each averaged over the objects of the batch and multiplied by its weight.

    The caller gives the divisors, because they depend on the batches of the other ranks.

    Args:
        weights: the weights of the losses "objectness", "box", "giou", "mask" and "dice".
        costs: the weights of the matching costs with the same names.
        num_points, oversampling, uncertain_share: settings of the points for masks (PointRend), see `uncertain_points`.
        one_to_many: the number of encoder tokens that are matched with each object.
        masks_in_boxes: whether masks end at their boxes (YOLACT, section 3.3). A mask is then learned in a window
            around its object's box. It separates its object from the surroundings, not from all else in the image.
    """

    def __init__(
        self,
        weights: dict[str, float],
        costs: MatchCosts,
        num_points: int,
        oversampling: float,
        uncertain_share: float,
        one_to_many: int,
        masks_in_boxes: bool,
    ):
        self.weights, self.costs = weights, costs
        self.num_points, self.oversampling, self.uncertain_share = num_points, oversampling, uncertain_share
        self.one_to_many, self.masks_in_boxes = one_to_many, masks_in_boxes

    @torch.no_grad()
    def match(
        self, predictions: RegionPredictions, pixel_embeddings: Tensor, targets: RegionTargets, dense: DensePredictions
    ) -> tuple[Matches, Tensor, Matches]:
        """Matches predictions and the encoder's tokens with objects, in float32 and with one wait for the device.

        All queries of an image compare their masks at the same random points. A token is matched if its target is
        positive.

        Returns:
            one-to-one matches of every layer, the target objectness [B,S] of the tokens, and the tokens' matches, whose
            layer is 0. Matches are on the host.
        """
        points = torch.rand(len(targets.valid), self.num_points, 2, device=pixel_embeddings.device)
        with torch.autocast(points.device.type, enabled=False):
            masks = self._mask_blocks(predictions, pixel_embeddings.float(), targets, points)
            cost = pairwise_costs(predictions.objectness, predictions.boxes, masks, targets, self.costs)
            quality, target = one_to_many_match(dense, targets, self.one_to_many)
        table, target = fetch(cost, torch.where(quality > 0, target, -1))
        image, token = (torch.from_numpy(x) for x in (target >= 0).nonzero())
        of_tokens = Matches(torch.zeros_like(image), image, token, torch.from_numpy(target)[image, token])
        return assign(table, targets.counts), quality, of_tokens

    def _mask_blocks(
        self, predictions: RegionPredictions, pixel_embeddings: Tensor, targets: RegionTargets, points: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Mask logits [B,Ly·Q,p] and target masks [B,N,p] at the points [B,P,2], in blocks of p points."""
        B, N = targets.valid.shape
        embeddings = rows_of_images(predictions.mask_embeddings).float()
        boxes = on_padded_map(rows_of_images(predictions.boxes), targets.extent).unsqueeze(2)
        which = torch.arange(B * N, device=points.device)
        at_points = sample_masks(targets.masks.flatten(0, 1), which, points.repeat_interleave(N, dim=0)).view(B, N, -1)
        most = MATCHED_AT_ONCE if points.device.type == "cpu" else MASKS_KEPT
        size = max(1, most // (B * embeddings.shape[1]))
        for block, wanted in zip(points.split(size, dim=1), at_points.split(size, dim=2), strict=True):
            logits = (embeddings @ sample_points(pixel_embeddings, block)).float()
            if self.masks_in_boxes:
                logits = torch.where(contains(boxes, block[:, None]), logits, OUTSIDE)
            yield logits, wanted

    def losses(
        self,
        predictions: RegionPredictions,
        matches: Matches,
        pixel_embeddings: Tensor,
        targets: RegionTargets,
        num_objects: Tensor | float,
        denoising: DenoisingQueries | None = None,
    ) -> tuple[dict[str, Tensor], Matches]:
        """Losses of the ordinary and of the denoising queries, summed over layers and divided by `num_objects`.

        Ordinary queries learn from their matches, or as background. Denoising queries have known targets instead of
        matches, and their losses are averaged over the groups. Both are computed in one pass.

        Args:
            predictions: of the denoising queries, if any, followed by the ordinary queries.
            matches: of the ordinary queries, on the host. Query 0 is the first ordinary one.
            num_objects: the divisor.
        Returns:
            the losses, and the matches of all queries on the device, ordinary ones first. Query 0 is the first of
                `predictions`.
        """
        weight, parts = None, (len(matches.image),)
        if denoising is not None:
            layers, _, queries = predictions.objectness.shape
            ordinary = queries - denoising.boxes.shape[1]
            weight = F.pad(denoising.weights, (0, ordinary), value=1.0)
            denoised = denoising.matches(layers)
            matches = Matches.join(matches.shifted(queries - ordinary), denoised)
            parts = (*parts, len(denoised.image))
        images, matches = matches.image, matches.to(pixel_embeddings.device)
        sums = detection_losses(predictions, matches, targets, weight)
        matched_weight = None if weight is None else weight[matches.image, matches.query]
        embeddings = predictions.mask_embeddings[matches.layer, matches.image, matches.query]
        sums |= self._mask_losses(embeddings, matches, images, parts, pixel_embeddings, targets, matched_weight)
        return {name: self.weights[name] * value / num_objects for name, value in sums.items()}, matches

    def _mask_losses(
        self,
        mask_embeddings: Tensor,
        matches: Matches,
        images: Tensor,
        parts: tuple[int, ...],
        pixel_embeddings: Tensor,
        targets: RegionTargets,
        weight: Tensor | None,
    ) -> dict[str, Tensor]:
        """Mask losses, weighted and summed over the matches.

        `images` are those of the matches, on the host. `parts` are the numbers of ordinary and denoising matches.
        Random points are drawn for one part after the other, so that they equal the points of a separate pass for
        each part.
        """
        if len(matches.image) == 0:
            return dict.fromkeys(("mask", "dice"), mask_embeddings.sum() * 0)
        if targets.with_mask is not None:
            known = targets.with_mask[matches.image, matches.target].to(torch.float32)
            weight = known if weight is None else weight * known
        windows = None
        if self.masks_in_boxes:
            windows = mask_windows(on_padded_map(targets.boxes, targets.extent)[matches.image, matches.target])
        if len(images) * pixel_embeddings[0, 0].numel() > MASKS_KEPT:
            return self._mask_losses_in_parts(
                mask_embeddings, matches.target, images, pixel_embeddings, targets.masks, windows, weight
            )
        which = matches.image * targets.valid.shape[1] + matches.target
        logits = masks_of(mask_embeddings, images, pixel_embeddings)
        mask, dice = self._compared_masks(logits, targets.masks.flatten(0, 1), which, windows, weight, parts)
        return {"mask": mask, "dice": dice}

    def _compared_masks(
        self,
        logits: Tensor,
        masks: Tensor,
        which: Tensor,
        windows: Tensor | None,
        weight: Tensor | None,
        parts: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both mask losses, summed: of logits [K,h,w], and of the ones [K] in `which` among masks [T,H,W]."""
        logits = logits.float()
        points = uncertain_points(
            logits.detach(), self.num_points, self.oversampling, self.uncertain_share, windows, parts
        )
        at_points = sample_points(logits[:, None], points).squeeze(1)
        wanted = sample_masks(masks, which, points)
        cross_entropy = F.binary_cross_entropy_with_logits(at_points, wanted, reduction="none").mean(1)
        return weighted_sum(cross_entropy, weight), weighted_sum(dice_loss(at_points, wanted), weight)

    def _mask_losses_in_parts(
        self,
        mask_embeddings: Tensor,
        target: Tensor,
        images: Tensor,
        pixel_embeddings: Tensor,
        masks: Tensor,
        windows: Tensor | None,
        weight: Tensor | None,
    ) -> dict[str, Tensor]:
        """Mask losses of so many matches that their masks are not kept: a part of one image's matches at a time.

        Args:
            images: [K], on the host; the other tensors of K matches are on the device.
        """

        def of_part(embeddings: Tensor, pixels: Tensor, *compared: Tensor | None) -> tuple[Tensor, Tensor]:
            return self._compared_masks((embeddings @ pixels.flatten(1)).unflatten(1, pixels.shape[1:]), *compared)

        at_once = max(1, MASKS_KEPT // 4 // pixel_embeddings[0, 0].numel())
        sums = []
        for image in images.unique().tolist():
            pixels = pixel_embeddings[image]
            for rows in (images == image).nonzero()[:, 0].split(at_once):
                rows = send(rows, pixels.device)
                own = (None if x is None else x[rows] for x in (target, windows, weight))
                sums.append(checkpoint(of_part, mask_embeddings[rows], pixels, masks[image], *own, use_reentrant=False))
        mask, dice = (torch.stack(values).sum() for values in zip(*sums, strict=True))
        return {"mask": mask, "dice": dice}

    def dense_losses(
        self,
        dense: DensePredictions,
        quality: Tensor,
        matches: Matches,
        targets: RegionTargets,
        num_objects: Tensor | float,
    ) -> dict[str, Tensor]:
        """One-to-many losses of the encoder's tokens.

        The boxes of an object's tokens have their shares of the object's quality as weights, so together they count as
        one box. The objectness is divided by (1 + one_to_many) / 2 as well, about the quality that an object's tokens
        have together. TOOD divides by the quality of the whole batch. Then an image's losses depend on the other
        images, and the parts of a batch do not add up to it.

        Args:
            quality, matches: of tokens, from `match`, on the device.
            num_objects: the divisor.
        """
        weight = quality[matches.image, matches.query]
        of_objects = torch.zeros_like(targets.valid, dtype=weight.dtype)
        of_objects.index_put_((matches.image, matches.target), weight, accumulate=True)
        weight = weight / of_objects[matches.image, matches.target]
        boxes = dense.boxes[matches.image, matches.query]
        wanted = targets.boxes[matches.image, matches.target]
        objectness = quality_focal_loss(dense.objectness, quality, dense.valid.float())
        sums = {
            "objectness": objectness * 2 / (1 + self.one_to_many),
            "box": ((boxes - wanted).abs().sum(-1) * weight).sum(),
            "giou": ((1 - box_overlaps(boxes, wanted)[1]) * weight).sum(),
        }
        return {name: self.weights[name] * value / num_objects for name, value in sums.items()}
