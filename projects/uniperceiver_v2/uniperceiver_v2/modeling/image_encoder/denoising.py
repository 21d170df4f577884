"""Denoising training: ground-truth boxes with noise as extra queries with known targets (DN-DETR; DINO, 3.3).

The region network knows foreground and background only. So, unlike in DINO, no class is noised, and the content of all
denoising queries is one learned vector. A near miss of a box learns to predict the box. A wide miss learns to predict
background.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .structures import Matches, RegionTargets


@dataclass
class DenoisingQueries:
    """D = groups · 2 · N queries. A group has the near misses of the N targets, then their wide misses.

    Attributes:
        boxes: [B,D,4].
        targets: [B,D] int64, the target from which each query was made, near or wide.
        positive: [B,D] bool, near misses of valid targets.
        negative: [B,D] bool, wide misses of valid targets.
        num_groups: the number of groups.
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
    def valid(self) -> Tensor:
        """[B,D] bool, False where a query was made of a padding target."""
        return self.positive | self.negative

    def matches(self, layers: int) -> Matches:
        """The matches of near misses with their targets, repeated for each of `layers` decoder layers."""
        image, query = self.positive.nonzero(as_tuple=True)
        return Matches(
            layer=torch.arange(layers, device=image.device).repeat_interleave(len(image)),
            image=image.repeat(layers),
            query=query.repeat(layers),
            target=self.targets[image, query].repeat(layers),
        )


def number_of_groups(targets: RegionTargets, near_misses: int) -> int:
    """The number of groups with which an image has about `near_misses` near misses, at least 1.

    The image with the most objects of the batch decides (DINO's rule): for example, 100 near misses and at most 6
    objects make 16 groups. The loss averages over groups, so a crowded neighbour changes how many samples of its noise
    an image's loss averages, but not the loss's expectation.
    """
    return max(1, near_misses // targets.boxes.shape[1])


def make_denoising_queries(targets: RegionTargets, groups: int, box_noise: float) -> DenoisingQueries:
    """Makes boxes with random noise from PyTorch's global generator.

    For a near miss, the centre and the size change by up to b = `box_noise`/2 of the box's size along each axis. For a
    wide miss they change by b to 2b. For example, with `box_noise` 0.4 the centre of a near miss of a box 10 pixels
    wide is up to 2 pixels to the left or right.
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
    valid = targets.valid[:, None].expand(B, groups, N)
    none = torch.zeros_like(valid)
    return DenoisingQueries(
        boxes=noised.clamp(1e-3, 1).flatten(1, 3),
        targets=torch.arange(N, device=device).expand(B, groups, 2, N).flatten(1),
        positive=torch.stack((valid, none), dim=2).flatten(1),
        negative=torch.stack((none, valid), dim=2).flatten(1),
        num_groups=groups,
    )


def denoising_attention_mask(denoising: DenoisingQueries, num_queries: int) -> Tensor:
    """The attention mask [B,1,D+O,D+O] of D denoising and O ordinary queries.

    The queries of a group see each other and the ordinary queries (DINO, section 3.2). The ordinary queries see each
    other only. So they do not see the known boxes.

    Nobody sees a query made of padding. The number of these queries depends on the other images in the batch, so it
    must not influence what an image learns.
    """
    ordinary = -1
    owner = torch.cat((denoising.groups, denoising.groups.new_full((num_queries,), ordinary)))
    valid = F.pad(denoising.valid, (0, num_queries), value=True)
    related = (owner[:, None] == owner) | (owner == ordinary)
    return (related & valid[:, None])[:, None]
