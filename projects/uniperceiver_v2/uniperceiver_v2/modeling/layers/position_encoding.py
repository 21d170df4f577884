"""Sine position encodings of boxes and of the pixels of a feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_encoding(coordinates: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of each coordinate at geometrically spaced frequencies ("Attention is all you need", 3.5).

    Args:
        coordinates: [..., n], in 0..1.
        dim: width per coordinate, even.
    Returns:
        [..., n·dim]: for each coordinate sin, cos, sin, cos, ... from the highest frequency to the lowest.
    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"the width of a sine encoding must be even, got {dim}")
    exponents = torch.arange(dim // 2, dtype=torch.float32, device=coordinates.device) * (2 / dim)
    angles = coordinates.unsqueeze(-1) * (2 * math.pi) / temperature**exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def map_position_encoding(valid: Tensor, dim: int, position_in_pixel: float = 0.5) -> Tensor:
    """Position encoding of the pixels of a feature map, as in DETR with `normalize=True`.

    Args:
        valid: [B,h,w] bool, False at padding. Positions are shares of each image's own height and width.
        dim: width of the encoding, a multiple of 4.
        position_in_pixel: the position of a pixel in itself: 0.5 is its centre, 1 its far edge.
    Returns:
        [B,h,w,dim]: the encoding of y, then that of x.
    """
    counts = torch.stack((valid.cumsum(1), valid.cumsum(2)), dim=-1).float()  # (y, x), 1 at the first pixel
    sizes = torch.stack((counts[:, -1:, :, 0].expand_as(valid), counts[:, :, -1:, 1].expand_as(valid)), dim=-1)
    return sine_encoding((counts - (1 - position_in_pixel)) / (sizes + 1e-6), dim // 2)


def box_position_encoding(boxes: Tensor, dim: int) -> Tensor:
    """Sine encoding [..., 4·dim] of boxes [..., 4] in 0..1, with width `dim` for each coordinate."""
    return sine_encoding(boxes, dim)
