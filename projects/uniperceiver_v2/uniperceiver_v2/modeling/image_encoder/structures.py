"""The outputs of the image encoder, and its targets in training.

All boxes are (cx, cy, w, h) in 0..1 of the image's own size, without padding, unless a name says "on the padded map".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor

from ...transfer import send
from .boxes import xyxy_to_cxcywh


@dataclass
class FeatureMaps:
    """Feature maps of L scales, finest first, each flattened row by row. S is the number of tokens of all scales.

    Attributes:
        tokens: [B,S,dim].
        positions: [B,S,dim], sine and scale encodings; [1,S,dim] if they are the same for all images.
        valid: [B,S] bool, False at padding.
        spatial_shapes: (height, width) of each of the L scales.
        extents: [B,L,2], `image_extent` of each scale: they differ, as pixels are whole.
        has_padding: False if `valid` is known to be all True.
    """

    tokens: Tensor
    positions: Tensor
    valid: Tensor
    spatial_shapes: list[tuple[int, int]]
    extents: Tensor
    has_padding: bool = True

    @property
    def valid_or_none(self) -> Tensor | None:
        """`valid`, or None where there is no padding, which spares a product with it."""
        return self.valid if self.has_padding else None


@dataclass
class Proposals:
    """The region network's O proposals of each image (Uni-Perceiver v2).

    Attributes:
        semantics: [B,O,region width].
        boxes: [B,O,4].
        masks: [B,O,h,w] logits on the padded map, at the stride of the pixel embeddings.
        objectness: [B,O] logits.
        appearance: [B,O,channels], the backbone's finest map averaged over each mask.
        extent: [B,2], `image_extent` of the batch; None if no image is padded.
        masks_in_boxes: whether masks end at their boxes. Logits outside then mean nothing.
        boxes_around_masks: whether the boxes of results are those around the masks. ``boxes`` are the predicted ones.
        masks_are_learned: if not, the masks mean nothing, and results have none.
    """

    semantics: Tensor
    boxes: Tensor
    masks: Tensor
    objectness: Tensor
    appearance: Tensor
    extent: Tensor | None = None
    masks_in_boxes: bool = False
    boxes_around_masks: bool = False
    masks_are_learned: bool = True


@dataclass
class ImageEncoding:
    """f_image(x) of equation (1). It depends on the images only, never on the task.

    Attributes:
        global_tokens: [B,M,d].
        global_valid: [B,M] bool, False at tokens of the flattened map that lie in padding.
        proposal_tokens: [B,O,d], q^proposal of equation (2).
        proposals: the proposals from which the tokens were made.
    """

    global_tokens: Tensor
    global_valid: Tensor
    proposal_tokens: Tensor
    proposals: Proposals

    def mean_global_token(self) -> Tensor:
        """Mean [B,d] of the global tokens, without padding."""
        return mean_of_valid(self.global_tokens, self.global_valid)


@dataclass
class RegionTargets:
    """Ground truth of a batch. Every image is padded to N objects, the largest number in an image.

    Attributes:
        boxes: [B,N,4]; padding boxes are zero.
        masks: [B,N,H,W] bool, at the size of the padded batch.
        labels: [B,N] int64, indices into the candidates.
        valid: [B,N] bool, False at padding objects.
        extent: [B,2], `image_extent` of the batch; None if no image is padded.
        with_mask: [B,N] bool, False where an object's mask is not known; None if all are.
        counts: the number of objects of each image, on the host. Without them, they are counted in `valid`.
    """

    boxes: Tensor
    masks: Tensor
    labels: Tensor
    valid: Tensor
    extent: Tensor | None = None
    with_mask: Tensor | None = None
    counts: Sequence[int] = ()

    def __post_init__(self):
        if not self.counts:
            self.counts = self.valid.sum(1).tolist()

    def of_padded_map(self) -> RegionTargets:
        """The same targets, if padding counts as a part of the image."""
        return replace(self, boxes=on_padded_map(self.boxes, self.extent), extent=None)

    @classmethod
    def from_instances(cls, instances: list, images: ImageList) -> RegionTargets:
        """Makes targets from the Detectron2 `Instances` of a batch (gt_boxes, gt_classes, and gt_masks as BitMasks).

        An image's instances may be without gt_classes, for which their labels are 0, and without gt_masks.
        """
        device = images.tensor.device
        batch, count = len(instances), max(1, max(len(x) for x in instances))
        padded_size = images.tensor.shape[-2:]
        boxes = torch.zeros(batch, count, 4)
        masks = torch.zeros(batch, count, *padded_size, dtype=torch.bool, device=device)
        labels = torch.zeros(batch, count, dtype=torch.int64)
        valid = torch.zeros(batch, count, dtype=torch.bool)
        for i, (item, (height, width)) in enumerate(zip(instances, images.image_sizes, strict=True)):
            n = len(item)
            if n == 0:
                continue
            scale = torch.tensor([width, height, width, height])
            boxes[i, :n] = xyxy_to_cxcywh(item.gt_boxes.tensor.cpu() / scale)
            if item.has("gt_masks"):
                # Padded on the device: an image with many objects would make all others as large on their way.
                masks[i, :n, :height, :width] = send(item.gt_masks.tensor, device)
            if item.has("gt_classes"):
                labels[i, :n] = item.gt_classes.cpu()
            valid[i, :n] = True
        with_mask = torch.tensor([item.has("gt_masks") or len(item) == 0 for item in instances])
        known = None if with_mask.all() else send(with_mask, device)[:, None].expand(batch, count)
        extent = image_extent(valid_pixels(images))
        counts = [len(item) for item in instances]
        boxes, labels, valid = (send(part, device) for part in (boxes, labels, valid))
        return cls(boxes, masks, labels, valid, extent, known, counts)


@dataclass
class Matches:
    """K matches as four index tensors [K]: prediction (layer, image, query) is matched with target (image, target).

    They are made on the host, where their number is known, and go :meth:`to` the device to be used as indices.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    def to(self, device: torch.device) -> Matches:
        """The same matches on a device, by one copy."""
        return Matches(*send(torch.stack([getattr(self, field.name) for field in fields(self)]), device))

    def shifted(self, queries: int) -> Matches:
        """The same matches, with `queries` further queries counted before these."""
        return replace(self, query=self.query + queries)

    def split(self, layers: int, first: int) -> tuple[Matches, Matches]:
        """Matches of `layers` layers, with the same number in each and ordered by layer: those of the first `first`
        layers, and the others with their layers counted from 0."""
        count = len(self.layer) * first // layers
        parts = zip(*(getattr(self, field.name).tensor_split([count]) for field in fields(self)), strict=True)
        before, behind = (Matches(*part) for part in parts)
        return before, replace(behind, layer=behind.layer - first)

    @classmethod
    def join(cls, *parts: Matches) -> Matches:
        """Concatenates matches."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def mean_of_valid(tokens: Tensor, valid: Tensor) -> Tensor:
    """Mean [B,d] of the valid ones of tokens [B,T,d]; `valid` is [B,T] bool."""
    weight = valid.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1)


def has_padding(images: ImageList) -> bool:
    """Whether any image of the batch is smaller than the batch. The answer needs no wait for the device."""
    return any(tuple(size) != tuple(images.tensor.shape[-2:]) for size in images.image_sizes)


def valid_pixels(images: ImageList) -> Tensor:
    """`valid` [B,H,W] of a padded batch: bool, False at padding."""
    (height, width), device = images.tensor.shape[-2:], images.tensor.device
    if not has_padding(images):
        return torch.ones(len(images), height, width, dtype=torch.bool, device=device)
    heights, widths = send(torch.tensor(images.image_sizes), device)[..., None].unbind(1)  # [B,1] each
    rows, columns = (torch.arange(n, device=device) for n in (height, width))
    return (rows < heights).unsqueeze(2) & (columns < widths).unsqueeze(1)


def image_extent(valid: Tensor) -> Tensor:
    """The share (x, y) of the padded width and height that each image covers, [B,2] of `valid` [B,H,W].

    For example, an image of 80×60 pixels (width × height) in a batch of 100×80 has the extent (0.8, 0.75).
    """
    return torch.stack((valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)), dim=-1)


def on_padded_map(boxes: Tensor, extent: Tensor | None) -> Tensor:
    """Converts boxes [B,...,4] from 0..1 of the image's own size to 0..1 of the padded map."""
    if extent is None:
        return boxes
    return boxes * extent.repeat(1, 2).view(boxes.shape[0], *[1] * (boxes.dim() - 2), 4)


def on_image(boxes: Tensor, extent: Tensor) -> Tensor:
    """Boxes [B,...,4] in 0..1 of each image's own size, from those in 0..1 of the padded map. See `on_padded_map`."""
    return on_padded_map(boxes, 1 / extent)


def boxes_of_masks(inside: Tensor, extent: Tensor, otherwise: Tensor, last_pixel_counts: bool = True) -> Tensor:
    """The smallest boxes around masks.

    Args:
        inside: [B,Q,h,w] bool on the padded map.
        extent: [B,2], `image_extent`. Pixels in padding are left out.
        otherwise: [B,Q,4], the boxes of masks without a pixel.
        last_pixel_counts: whether a box ends behind its last pixel. If not, it ends where that pixel begins.
    Returns:
        [B,Q,4].
    """
    sides, empty = [], torch.zeros_like(otherwise[..., 0], dtype=torch.bool)
    for axis, along in ((0, inside.any(-2)), (1, inside.any(-1))):  # [B,Q,w], [B,Q,h]
        size = along.shape[-1]
        numbers = torch.arange(size, device=along.device)
        own = (extent[:, axis, None, None] * size - 1e-3).ceil()  # the pixels that the image touches
        along = along & (numbers < own)
        low = torch.where(along, numbers, size).amin(-1)
        high = torch.where(along, numbers + 1, 0).amax(-1)
        empty |= high <= low
        high = high if last_pixel_counts else high - 1
        sides.append(torch.stack((low, high), -1) / size / extent[:, axis, None, None])
    (x0, x1), (y0, y1) = (side.clamp(max=1).unbind(-1) for side in sides)
    boxes = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), -1)
    return torch.where(empty.unsqueeze(-1), otherwise, boxes)


def resize_valid(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes `valid` [B,H,W] to the `size` of a feature map, by nearest neighbour as in DETR."""
    return F.interpolate(valid[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5


def shares_inside(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """[B,O,size], the share of each pixel that is inside boxes along one axis. A box that moves a little changes what
    is made of its pixels a little, where whole pixels would come and go by rounding errors.

    Args:
        centre, side: [B,O], the box along this axis, in 0..1 of the padded map.
        size: the number of pixels of the padded map along this axis.
    """
    pixels = torch.arange(size, device=centre.device)
    low, high = ((torch.add(centre, side, alpha=step) * size).unsqueeze(-1) for step in (-0.5, 0.5))
    return (torch.minimum(pixels + 1, high) - torch.maximum(pixels, low)).clamp(min=0)


def average_over_masks(features: Tensor, masks: Tensor, windows: Tensor) -> Tensor:
    """The mean [B,O,C] of a map [B,C,h,w] over each mask, logits [B,O,h,w], cut at a window [B,O,4] on the padded map.

    The window is a mask's box if masks end there, else the image. Gradients go to the map alone: masks and boxes
    learn from their own losses. A mask of less than one pixel counts as one, so its appearance is faint: what little
    there is of it, libraries round differently.
    """
    height, width = masks.shape[-2:]
    x, y, w, h = windows.detach().unbind(-1)
    columns = shares_inside(x, w, width).to(features.dtype)
    rows = shares_inside(y, h, height).to(features.dtype)
    weight = masks.detach().sigmoid().to(features.dtype) * rows.unsqueeze(-1) * columns.unsqueeze(-2)
    total = weight.sum((-2, -1)).clamp(min=1.0).unsqueeze(-1)
    return torch.einsum("bqhw,bchw->bqc", weight, features) / total
