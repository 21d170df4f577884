"""Overlaps of boxes given as centres and sizes (cx, cy, w, h), in any unit."""

from __future__ import annotations

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners [..., (x0, y0, x1, y1)] to centres and sizes [..., (cx, cy, w, h)]."""
    return torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centres and sizes [..., (cx, cy, w, h)] to corners [..., (x0, y0, x1, y1)]."""
    return torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), dim=-1)


def box_overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al., 2019) of boxes a and b, elementwise with broadcasting.

    Args:
        a, b: [..., 4]; unsqueeze them for all pairs.
    Returns:
        IoU in 0..1 and GIoU in -1..1, both of the broadcast shape without the last dimension. Empty boxes give 0.
    """
    a, b = cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    tiny = torch.finfo(a.dtype).tiny ** 0.5
    intersection = inner.prod(-1)
    union = size_a.prod(-1) + size_b.prod(-1) - intersection
    hull = outer.prod(-1)
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Whether boxes [...,4] contain points [...,(x, y)], with broadcasting."""
    return ((points - boxes[..., :2]).abs() <= boxes[..., 2:] / 2).all(-1)
