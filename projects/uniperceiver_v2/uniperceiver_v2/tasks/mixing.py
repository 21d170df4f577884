"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) of the images of a batch.

Both are one operation: an image keeps a weight of its own at each pixel, and its neighbour in the batch has the rest.
Mixup has the same weight at all pixels. CutMix has 0 in a rectangle and 1 around it.

Shapes: B images of [H, W] pixels, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixing_weights(count: int, size: tuple[int, int], mixup: float, cutmix: float) -> Tensor | None:
    """Weights of images at their pixels, [B,1,H,W] in 0..1, on the CPU. None if nothing is to be mixed.

    Args:
        count: B.
        size: (H, W).
        mixup, cutmix: α of Beta(α, α), from which an image's share is drawn; 0 turns one off. If both are on, each
            image has either with probability one half.
    """
    if not (mixup or cutmix):
        return None
    if not mixup or not cutmix:
        cut = torch.full((count, 1, 1, 1), bool(cutmix))
    else:
        cut = torch.rand(count, 1, 1, 1) < 0.5
    return torch.where(cut, _windows(_shares(count, cutmix), size), _shares(count, mixup).expand(-1, 1, *size))


def mix(images: Tensor, labels: Tensor, weights: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Each image mixed with the one before it in the batch.

    Args:
        images: [B,3,H',W'], padded at the right and the bottom.
        labels: [B].
        weights: [B,1,H,W].
        classes: C.

    Returns:
        images [B,3,H',W'], and targets [B,C], in which each of the two classes has its share of the pixels.
    """
    height, width = weights.shape[-2:]
    own, mixed = images[..., :height, :width], images.clone()
    mixed[..., :height, :width] = weights * own + (1 - weights) * own.roll(1, 0)
    share = weights.mean((1, 2, 3))[:, None]
    targets = F.one_hot(labels, classes).to(share.dtype)
    return mixed, share * targets + (1 - share) * targets.roll(1, 0)


def _shares(count: int, alpha: float) -> Tensor:
    """[B,1,1,1] from Beta(α, α), or 1 for α = 0."""
    if not alpha:
        return torch.ones(count, 1, 1, 1)
    return torch.distributions.Beta(alpha, alpha).sample((count, 1, 1, 1))


def _windows(shares: Tensor, size: tuple[int, int]) -> Tensor:
    """[B,1,H,W]: 0 in a rectangle with the image's aspect ratio and 1 - share of its area, 1 elsewhere.

    Its centre is anywhere in the image, which may cut it.
    """
    inside = []
    for axis, length in ((-2, size[0]), (-1, size[1])):
        half = (1 - shares).sqrt() * length / 2
        pixels = torch.arange(length).view(-1, *[1] * (-1 - axis)) + 0.5
        inside.append((pixels - torch.rand_like(shares) * length).abs() < half)
    return (~(inside[0] & inside[1])).float()
