"""Conversions and overlaps of boxes, in any unit. Boxes are centres and sizes (cx, cy, w, h) unless said otherwise."""

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
        a, b: [..., 4]. For all pairs, unsqueeze a different dimension of each.
    Returns:
        IoU in 0..1 and GIoU in -1..1, both with the broadcast shape without its last dimension. Empty boxes
            have an IoU of 0.
    """
    # Single coordinates make the inner loops run over pairs; tensors [...,4] would make them four long.
    ax0, ay0, ax1, ay1 = cxcywh_to_xyxy(a).unbind(-1)
    bx0, by0, bx1, by1 = cxcywh_to_xyxy(b).unbind(-1)
    width = torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)
    height = torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    intersection = width.clamp(min=0) * height.clamp(min=0)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    hull = (torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)) * (torch.maximum(ay1, by1) - torch.minimum(ay0, by0))
    tiny = torch.finfo(a.dtype).tiny ** 0.5
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Whether boxes [...,4] contain points (x, y) [...,2], with broadcasting."""
    x, y = points.movedim(-1, 0).contiguous()
    cx, cy, width, height = boxes.unbind(-1)
    return ((x - cx).abs() <= width / 2) & ((y - cy).abs() <= height / 2)


def touched(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """[...,h,w] bool, the pixels of a map of `size` that boxes [...,4] in 0..1 of the map touch."""
    near = []
    for axis, pixels in zip((1, 0), size, strict=True):
        centres = (torch.arange(pixels, device=boxes.device) + 0.5) / pixels
        near.append((centres - boxes[..., axis, None]).abs() < (boxes[..., 2 + axis, None] + 1 / pixels) / 2)
    return near[0].unsqueeze(-1) & near[1].unsqueeze(-2)
