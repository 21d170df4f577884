"""Denoising training: noised ground-truth boxes as extra queries whose answers are known (DN-DETR; DINO, 3.3).

Classes are left out: the region network knows foreground and background alone, so a query's content is one learned
vector. Near misses of a box are to be corrected to it, wider misses to be called background.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .structures import Matches, RegionTargets


@dataclass
class DenoisingQueries:
    """D = groups · 2 · N queries: in each group first the near misses of the N targets, then the wider ones.

    Attributes:
        boxes: [B,D,4].
        targets: [B,D] int64, the target that a query was made of, for near and wide misses alike.
        positive: [B,D] bool, near misses of real (not padding) targets.
        negative: [B,D] bool, wide misses of real targets.
        num_groups: how many groups there are.
    """

    boxes: Tensor
    targets: Tensor
    positive: Tensor
    negative: Tensor
    num_groups: int

    @property
    def groups(self) -> Tensor:
        """[D] int64, the group of each query."""
        group = torch.arange(self.num_groups, device=self.boxes.device)
        return group.repeat_interleave(self.boxes.shape[1] // self.num_groups)

    @property
    def ignored(self) -> Tensor:
        """[B,D] bool, queries made of padding."""
        return ~(self.positive | self.negative)

    def matches(self, layers: int) -> Matches:
        """The near misses with their targets, once for each of `layers` decoder layers."""
        image, query = self.positive.nonzero(as_tuple=True)
        return Matches(
            layer=torch.arange(layers, device=image.device).repeat_interleave(len(image)),
            image=image.repeat(layers),
            query=query.repeat(layers),
            target=self.targets[image, query].repeat(layers),
        )


def make_denoising_queries(targets: RegionTargets, groups: int, box_noise: float) -> DenoisingQueries:
    """Draws noised boxes from PyTorch's global generator.

    A side moves by up to `box_noise`/2 of the box's size for a near miss, and by between that and twice that for a
    wide one.
    """
    B, N, _ = targets.boxes.shape
    device = targets.boxes.device
    shape = (B, groups, 2, N, 4)
    amount = torch.rand(shape, device=device)
    amount[:, :, 1] += 1  # wide misses
    sign = torch.randint(0, 2, shape, device=device, dtype=torch.float32) * 2 - 1
    noise = sign * amount * (box_noise / 2)

    boxes = targets.boxes[:, None, None].expand(shape)
    centre, size = boxes[..., :2], boxes[..., 2:]
    noised = torch.cat((centre + noise[..., :2] * size, size * (1 + noise[..., 2:])), dim=-1)
    real = targets.valid[:, None].expand(B, groups, N)
    none = torch.zeros_like(real)
    return DenoisingQueries(
        boxes=noised.clamp(1e-3, 1).flatten(1, 3),
        targets=torch.arange(N, device=device).expand(B, groups, 2, N).flatten(1),
        positive=torch.stack((real, none), dim=2).flatten(1),
        negative=torch.stack((none, real), dim=2).flatten(1),
        num_groups=groups,
    )


def denoising_attention_mask(denoising: DenoisingQueries, num_queries: int) -> Tensor:
    """Which queries may attend to which, [B,1,D+O,D+O] bool: those of a group among themselves, the O ordinary queries
    among themselves, so that no answer leaks into the ordinary ones.

    Queries made of padding are seen by none but themselves (which keeps attention defined): how many an image has
    follows from its neighbours in the batch, and must not change what it learns.
    """
    owner = torch.cat((denoising.groups, denoising.groups.new_full((num_queries,), -1)))
    real = F.pad(~denoising.ignored, (0, num_queries), value=True)
    itself = torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    return ((owner[:, None] == owner) & (real[:, None] | itself))[:, None]
