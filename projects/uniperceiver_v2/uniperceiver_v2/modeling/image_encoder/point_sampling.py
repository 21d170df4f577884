"""Comparing masks at sampled points instead of at all pixels (PointRend; Mask2Former, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples [K,C,P] of maps [K,C,h,w] at points (x, y) [K,P,2] in 0..1. Outside the map they are zero."""
    grid = points[:, None].mul(2).sub_(1)
    return F.grid_sample(maps, grid, align_corners=False).squeeze(2)


def sample_masks(masks: Tensor, which: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of binary masks, without a copy of a mask for each row.

    Args:
        masks: [T,H,W] bool.
        which: [K] int64, the number of the mask for each row.
        points: [K,P,2], (x, y) in 0..1 of the mask.
    Returns:
        [K,P] float in 0..1.
    """
    _, height, width = masks.shape
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    x0, y0 = x.floor(), y.floor()
    x, y = x - x0, y - y0
    # Points outside the mask are moved to a border of two zero pixels, so that all points are computed alike.
    bordered = F.pad(masks, (2, 2, 2, 2))
    stride = width + 4
    column, row = x0.long().clamp_(-2, width).add_(2), y0.long().clamp_(-2, height).add_(2)
    starts = (which * ((height + 4) * stride))[:, None]
    place = row.mul_(stride).add_(column).add_(starts).flatten()

    def pixels(offset: int) -> Tensor:
        return bordered.flatten()[offset:].index_select(0, place).view_as(x).to(x.dtype)

    above = torch.lerp(pixels(0), pixels(1), x)
    below = torch.lerp(pixels(stride), pixels(stride + 1), x)
    return torch.lerp(above, below, y)


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    count: int,
    oversampling: float,
    uncertain_share: float,
    windows: Tensor | None = None,
    parts: tuple[int, ...] | None = None,
) -> Tensor:
    """Points where a mask is undecided (logit near zero), and some random points.

    Args:
        logits: [K,h,w].
        count: P, the number of points in each row.
        oversampling: `oversampling`·P random points are candidates for the undecided points.
        uncertain_share: the share of the P points that are undecided ones.
        windows: [K,4], the box in which each row's points are drawn; None for the whole map.
        parts: lengths of groups of rows, with sum K. Random numbers are drawn as if each group had a call of its own.
    Returns:
        [K,P,2] in 0..1.
    """
    K = logits.shape[0]
    uncertain = int(count * uncertain_share)
    pool = torch.empty(K, int(count * oversampling), 2, device=logits.device)
    rest = torch.empty(K, count - uncertain, 2, device=logits.device)
    for part in zip(pool.split(parts or (K,)), rest.split(parts or (K,)), strict=True):
        for points in part:
            points.uniform_()
    if windows is not None:
        corner, size = (windows[:, :2] - windows[:, 2:] / 2), windows[:, 2:]
        for points in (pool, rest):
            for axis in (0, 1):  # two long inner loops; broadcasting over both axes has inner loops of two numbers
                x = points[..., axis]
                x.mul_(size[:, axis, None]).add_(corner[:, axis, None]).clamp_(0, 1)
    certainty = sample_points(logits[:, None], pool).squeeze(1).abs_()
    best = certainty.topk(uncertain, dim=1, largest=False, sorted=False).indices
    chosen = torch.view_as_complex(pool).gather(1, best)  # as a complex number, a point is gathered at once
    return torch.cat((torch.view_as_real(chosen), rest), dim=1)
