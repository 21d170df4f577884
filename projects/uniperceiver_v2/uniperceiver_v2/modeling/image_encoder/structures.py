"""What flows out of the image encoder, and the targets it is trained on.

Boxes are (cx, cy, w, h) in 0..1 of each image's own size throughout, padding not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor

from .boxes import xyxy_to_cxcywh


@dataclass
class FeatureMaps:
    """Several scales of feature maps, flattened row by row, the finest first.

    Attributes:
        tokens: [B,S,dim].
        positions: [B,S,dim], their sine and scale encodings; [1,S,dim] where they are the same for all images.
        valid: [B,S] bool, False at padding.
        spatial_shapes: (height, width) of each of the L scales.
        valid_ratios: [B,L,2], the share (x, y) of each padded map that the image covers.
        padded: False if it is known that `valid` is all True.
    """

    tokens: Tensor
    positions: Tensor
    valid: Tensor
    spatial_shapes: list[tuple[int, int]]
    valid_ratios: Tensor
    padded: bool = True

    @property
    def mask(self) -> Tensor | None:
        """`valid`, for what need not multiply by it where nothing is padded."""
        return self.valid if self.padded else None


@dataclass
class Proposals:
    """The region network's O proposals of each image (Uni-Perceiver v2).

    Attributes:
        semantics: [B,O,region width].
        boxes: [B,O,4].
        masks: [B,O,h,w] logits at the stride of the pixel embeddings; padding included.
        objectness: [B,O] logits.
        extent: [B,2], the share (x, y) of the padded masks that each image covers; None for all of them.
    """

    semantics: Tensor
    boxes: Tensor
    masks: Tensor
    objectness: Tensor
    extent: Tensor | None = None


@dataclass
class ImageEncoding:
    """f_image(x) of equation (1); a function of the images alone, whatever the task.

    Attributes:
        global_tokens: [B,M,d].
        global_valid: [B,M] bool, False where a token of the flattened map lies in padding.
        proposal_tokens: [B,O,d], q^proposal of equation (2).
        proposals: what the proposal tokens were made of.
    """

    global_tokens: Tensor
    global_valid: Tensor
    proposal_tokens: Tensor
    proposals: Proposals

    def mean_global_token(self) -> Tensor:
        """[B,d], padding left out."""
        return mean_of_valid(self.global_tokens, self.global_valid)


@dataclass
class RegionTargets:
    """Ground truth of a batch, padded to the largest number N of objects in an image.

    Attributes:
        boxes: [B,N,4]; padding boxes are zero.
        masks: [B,N,H,W] bool, of the padded batch of images.
        labels: [B,N] int64, indices into the candidates.
        valid: [B,N] bool, False at padding.
        extent: [B,2], the share (x, y) of the padded masks that each image covers; None for all of them.
    """

    boxes: Tensor
    masks: Tensor
    labels: Tensor
    valid: Tensor
    extent: Tensor | None = None

    @classmethod
    def from_instances(cls, instances: list, images: ImageList) -> RegionTargets:
        """Pads Detectron2 `Instances` (gt_boxes, gt_classes, gt_masks as BitMasks) of a batch of images."""
        device = images.tensor.device
        batch, count = len(instances), max(1, max(len(x) for x in instances))
        padded_size = images.tensor.shape[-2:]
        boxes = torch.zeros(batch, count, 4)
        masks = torch.zeros(batch, count, *padded_size, dtype=torch.bool)
        labels = torch.zeros(batch, count, dtype=torch.int64)
        valid = torch.zeros(batch, count, dtype=torch.bool)
        for i, (item, (height, width)) in enumerate(zip(instances, images.image_sizes, strict=True)):
            n = len(item)
            if n == 0:
                continue
            scale = torch.tensor([width, height, width, height])
            boxes[i, :n] = xyxy_to_cxcywh(item.gt_boxes.tensor.cpu() / scale)
            masks[i, :n, :height, :width] = item.gt_masks.tensor.cpu()
            labels[i, :n] = item.gt_classes.cpu()
            valid[i, :n] = True
        extent = covered_share(valid_pixels(images))
        return cls(boxes.to(device), masks.to(device), labels.to(device), valid.to(device), extent)


@dataclass
class Matches:
    """K matched pairs, as index tensors [K]: prediction (layer, image, query) answers for target (image, target)."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    def shifted(self, queries: int) -> Matches:
        """The same pairs where so many queries come before those that these are about."""
        return replace(self, query=self.query + queries)

    @classmethod
    def join(cls, *parts: Matches) -> Matches:
        """The pairs of all parts, one after another."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def mean_of_valid(tokens: Tensor, valid: Tensor) -> Tensor:
    """Mean [B,d] of the tokens [B,T,d] that are valid, [B,T] bool."""
    weight = valid.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1)


def is_padded(images: ImageList) -> bool:
    """Whether an image of the batch is smaller than it; known without a look at the device."""
    return any(tuple(size) != tuple(images.tensor.shape[-2:]) for size in images.image_sizes)


def valid_pixels(images: ImageList) -> Tensor:
    """[B,H,W] bool, False at the padding that made a batch of images of different sizes."""
    valid = torch.zeros(len(images), *images.tensor.shape[-2:], dtype=torch.bool, device=images.tensor.device)
    for i, (height, width) in enumerate(images.image_sizes):
        valid[i, :height, :width] = True
    return valid


def covered_share(valid: Tensor) -> Tensor:
    """[B,2], the share (x, y) of each padded image [B,H,W] that is no padding."""
    return torch.stack((valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)), dim=-1)


def on_padded_map(boxes: Tensor, extent: Tensor | None) -> Tensor:
    """Boxes [B,...,4] in 0..1 of each image as boxes in 0..1 of the padded map."""
    if extent is None:
        return boxes
    return boxes * extent.repeat(1, 2).view(len(boxes), *[1] * (boxes.dim() - 2), 4)


def resize_valid(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """[B,H,W] bool to a feature map's size, by nearest neighbour as in DETR."""
    return F.interpolate(valid[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5
