"""Masks compared at sampled points instead of every pixel (PointRend; Mask2Former, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of maps [K,C,h,w] at points [K,P,(x, y)] in 0..1 (zero outside): [K,C,P]."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False).squeeze(2)


def sample_masks(masks: Tensor, which: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of some of many binary masks, without copying whole masks.

    Args:
        masks: [T,H,W] bool; which: [K] int64, the mask of each row; points: [K,P,(x, y)] in 0..1.
    Returns:
        [K,P] float in 0..1.
    """
    _, height, width = masks.shape
    x, y = (points * points.new_tensor([width, height]) - 0.5).unbind(-1)
    x0, y0 = x.floor(), y.floor()
    result = torch.zeros_like(x)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x0 + dx, y0 + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            pixel = masks[which[:, None], row.long().clamp(0, height - 1), column.long().clamp(0, width - 1)]
            result += weight * pixel
    return result


@torch.no_grad()
def uncertain_points(
    logits: Tensor, count: int, oversampling: float, uncertain_share: float, windows: Tensor | None = None
) -> Tensor:
    """Points where a mask is undecided (logit near zero), and some random ones.

    Args:
        logits: [K,h,w]; count: P; of `oversampling`·P random points the most uncertain make up `uncertain_share` of P.
        windows: [K,4] boxes that each row's points are drawn from; None for the whole map.
    Returns:
        [K,P,2] in 0..1.
    """
    K = logits.shape[0]
    pool = torch.rand(K, int(count * oversampling), 2, device=logits.device)
    uncertain = int(count * uncertain_share)
    rest = torch.rand(K, count - uncertain, 2, device=logits.device)
    if windows is not None:
        corner, size = (windows[:, :2] - windows[:, 2:] / 2)[:, None], windows[:, None, 2:]
        pool, rest = ((corner + points * size).clamp(0, 1) for points in (pool, rest))
    uncertainty = -sample_points(logits[:, None], pool).squeeze(1).abs()
    best = uncertainty.topk(uncertain, dim=1).indices.unsqueeze(-1)
    return torch.cat((pool.gather(1, best.expand(-1, -1, 2)), rest), dim=1)
