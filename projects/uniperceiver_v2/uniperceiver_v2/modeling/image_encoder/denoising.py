"""Denoising training: ground-truth boxes with noise as extra queries with known targets (DN-DETR; DINO, 3.3).

The region network knows foreground and background only. So, unlike in DINO, no class is noised, and the content of all
denoising queries is one learned vector. A near miss of a box learns to predict the box. A wide miss learns to predict
background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .structures import Matches, RegionTargets


@dataclass
class DenoisingQueries:
    """D queries of each image: D/2 near misses, then D/2 wide misses of the same targets.

    Attributes:
        boxes: [B,D,4].
        targets: [B,D] int64, the target from which each query was made, near or wide.
        groups: [B,D] int64, the group of each query.
        num_groups: [B] int64, the number of groups of each image.
        positive: [B,D] bool, near misses of valid targets.
        negative: [B,D] bool, wide misses of valid targets.
        objects, near_misses: the numbers of objects and of near misses of each image, on the host.
    """

    boxes: Tensor
    targets: Tensor
    groups: Tensor
    num_groups: Tensor
    positive: Tensor
    negative: Tensor
    objects: Sequence[int]
    near_misses: Sequence[int]

    @property
    def valid(self) -> Tensor:
        """[B,D] bool, False where there are more queries than the image's groups have."""
        return self.positive | self.negative

    @property
    def weights(self) -> Tensor:
        """[B,D], with which losses become means over an image's groups; 0 where a query is not valid."""
        return self.valid.float() / self.num_groups.unsqueeze(1)

    def matches(self, layers: int) -> Matches:
        """The matches of near misses with their targets, repeated for each of `layers` decoder layers, on the host."""
        image = torch.arange(len(self.objects)).repeat_interleave(torch.tensor(self.near_misses))
        query = torch.cat([torch.arange(count) for count in self.near_misses])
        target = query % torch.tensor(self.objects)[image]
        return Matches(
            layer=torch.arange(layers).repeat_interleave(len(image)),
            image=image.repeat(layers),
            query=query.repeat(layers),
            target=target.repeat(layers),
        )


def make_denoising_queries(targets: RegionTargets, near_misses: int, box_noise: float) -> DenoisingQueries:
    """Makes boxes with random noise from PyTorch's global generator.

    A group has a near and a wide miss of each object of an image. An image has as many groups as make about
    `near_misses` near misses, and at least one: for example, 100 near misses and 6 objects make 16 groups. In DINO the
    image with the most objects of the batch decides for all. Here each image decides for itself, so that what it learns
    depends on no other image, and all have the same D = 2 · max(near_misses, N).

    For a near miss, the centre and the size change by up to b = `box_noise`/2 of the box's size along each axis. For a
    wide miss they change by b to 2b. For example, with `box_noise` 0.4 the centre of a near miss of a box 10 pixels
    wide is up to 2 pixels to the left or right.

    Args:
        targets: with the valid targets of an image before its padding.
    """
    B, N, _ = targets.boxes.shape
    device = targets.boxes.device
    objects = targets.valid.sum(1)
    each = objects.clamp(min=1)
    num_groups = (near_misses // each).clamp(min=1)
    slots = torch.arange(max(near_misses, N), device=device)
    used = slots < (num_groups * objects).unsqueeze(1)  # [B,S]
    which, group = slots % each.unsqueeze(1), slots // each.unsqueeze(1)

    shape = (B, 2, len(slots), 4)
    amount = torch.rand(shape, device=device)
    amount[:, 1] += 1  # wide misses
    sign = torch.randint(0, 2, shape, device=device, dtype=torch.float32) * 2 - 1
    noise = sign * amount * (box_noise / 2)

    boxes = targets.boxes.gather(1, which.unsqueeze(-1).expand(-1, -1, 4)).unsqueeze(1)
    centre, size = boxes[..., :2], boxes[..., 2:]
    noised = torch.cat((centre + noise[..., :2] * size, size * (1 + noise[..., 2:])), dim=-1)
    none = torch.zeros_like(used)
    return DenoisingQueries(
        boxes=noised.clamp(1e-3, 1).flatten(1, 2),
        targets=which.repeat(1, 2),
        groups=group.repeat(1, 2),
        num_groups=num_groups,
        positive=torch.cat((used, none), dim=1),
        negative=torch.cat((none, used), dim=1),
        objects=targets.counts,
        near_misses=[max(near_misses // max(count, 1), 1) * count for count in targets.counts],
    )


def denoising_attention_mask(denoising: DenoisingQueries, num_queries: int) -> Tensor:
    """The attention mask [B,1,D+O,D+O] of D denoising and O ordinary queries.

    The queries of a group see each other and the ordinary queries (DINO, section 3.2). The ordinary queries see each
    other only. So they do not see the known boxes.

    Nobody sees a query that is not valid. The number of these queries depends on the other images in the batch, so it
    must not influence what an image learns.
    """
    ordinary = -1
    owner = F.pad(denoising.groups, (0, num_queries), value=ordinary)
    valid = F.pad(denoising.valid, (0, num_queries), value=True)
    related = (owner[:, :, None] == owner[:, None]) | (owner == ordinary)[:, None]
    return (related & valid[:, None])[:, None]
