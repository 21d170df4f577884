"""Proposals with labels, as instances of any size: what detection, grounding and segmentation predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..modeling.image_encoder import Proposals
from ..modeling.image_encoder.boxes import cxcywh_to_xyxy
from ..modeling.image_encoder.structures import boxes_of_masks


class ImageSizes(NamedTuple):
    """The sizes (height, width) in pixels of B images of a batch, and of the padded batch."""

    images: Sequence[tuple[int, int]]
    padded: tuple[int, int]

    @classmethod
    def of(cls, images: ImageList) -> ImageSizes:
        return cls(images.image_sizes, tuple(images.tensor.shape[-2:]))


@dataclass(frozen=True, eq=False)
class LabelledProposals:
    """K pairs of proposal and label of one image, of U different proposals, as instances of any size.

    At the size of the image in the file, a hundred masks of a photograph of 12 megapixels have 1.2 GB. So masks stay as
    the model has them until somebody asks for a size.

    Attributes:
        boxes: [U,4], (cx, cy, w, h) in 0..1.
        masks: [U,h,w] logits, which cover the padded batch. None if masks are not learned.
        proposal: [K], indices of the U proposals.
        labels: [K], indices of categories or phrases.
        scores: [K].
        image_size, padded_size: (height, width) of the image as it was encoded, and of its padded batch.
        masks_in_boxes: whether masks end at their boxes.
    """

    boxes: Tensor
    masks: Tensor | None
    proposal: Tensor
    labels: Tensor
    scores: Tensor
    image_size: tuple[int, int]
    padded_size: tuple[int, int]
    masks_in_boxes: bool = False

    @classmethod
    def choose(
        cls, proposal: Tensor, labels: Tensor, scores: Tensor, proposals: Proposals, index: int, sizes: ImageSizes
    ) -> LabelledProposals:
        """K pairs of proposal and label of image ``index``, with their scores, all [K]."""
        used, which = proposal.unique(return_inverse=True)  # a mask serves all labels of its proposal
        boxes = proposals.boxes[index, used]
        masks = proposals.masks[index, used] if proposals.masks_are_learned else None
        size, inside = sizes.images[index], proposals.masks_in_boxes
        found = cls(boxes, masks, which, labels, scores, size, sizes.padded, inside)
        return found._boxed_by_masks(masks) if masks is not None and proposals.boxes_around_masks else found

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor | slice) -> LabelledProposals:
        """Some of the pairs: those of a bool [K], of indices, or of a slice."""
        used, which = self.proposal[chosen].unique(return_inverse=True)
        return replace(
            self,
            boxes=self.boxes[used],
            masks=None if self.masks is None else self.masks[used],
            proposal=which,
            labels=self.labels[chosen],
            scores=self.scores[chosen],
        )

    def to(self, device: torch.device | str) -> LabelledProposals:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in tensors.items() if isinstance(x, Tensor)})

    def boxes_at(self, size: tuple[int, int]) -> Boxes:
        """The K boxes in an image of this (height, width), absolute XYXY."""
        return self._boxes_of_proposals(size)[self.proposal]

    def instances(self, size: tuple[int, int]) -> Instances:
        """K instances at this (height, width): pred_boxes, scores, pred_classes, and pred_masks if they are learned."""
        boxes = self._boxes_of_proposals(size)
        found = Instances(size, pred_boxes=boxes[self.proposal], scores=self.scores, pred_classes=self.labels)
        if self.masks is not None:
            found.pred_masks = self._masks_of_proposals(self.masks, size, boxes)[self.proposal]
        return found

    def mask_probabilities(self, size: tuple[int, int]) -> Tensor:
        """P [U, *size] that a pixel is in the mask of a proposal, at this (height, width)."""
        assert self.masks is not None
        found = mask_logits(self.masks, self.image_size, self.padded_size, size).sigmoid()
        return found * box_interiors(self._boxes_of_proposals(size), size) if self.masks_in_boxes else found

    def _boxed_by_masks(self, logits: Tensor) -> LabelledProposals:
        """With the boxes around the masks, to a pixel of the encoded image. A proposal without a mask keeps its box."""
        masks = self._masks_of_proposals(logits, self.image_size, self._boxes_of_proposals(self.image_size))
        boxes = boxes_of_masks(masks[None], self.boxes.new_ones(1, 2), self.boxes[None])[0]
        return replace(self, boxes=boxes)

    def _masks_of_proposals(self, logits: Tensor, size: tuple[int, int], boxes: Boxes) -> Tensor:
        masks = paste_masks(logits, self.image_size, self.padded_size, size)
        return masks & box_interiors(boxes, size) if self.masks_in_boxes else masks

    def _boxes_of_proposals(self, size: tuple[int, int]) -> Boxes:
        boxes = Boxes(cxcywh_to_xyxy(self.boxes.float()))
        boxes.scale(size[1], size[0])
        boxes.clip(size)
        return boxes


def best_pairs(
    scores: Tensor, proposals: Proposals, index: int, sizes: ImageSizes, count: int, temperature: float = 1.0
) -> LabelledProposals:
    """The ``count`` best (proposal, category) pairs of image ``index``, from scores [O,C], which :func:`calibrated`
    then makes the pairs' scores."""
    best, flat = scores.flatten().topk(min(count, scores.numel()))
    proposal, category = flat // scores.shape[1], flat % scores.shape[1]
    return LabelledProposals.choose(proposal, category, calibrated(best, temperature), proposals, index, sizes)


def calibrated(scores: Tensor, temperature: float) -> Tensor:
    """Scores in 0..1 with their logits divided by a temperature. Their order stays, and so does a score of 0.5."""
    if temperature == 1:
        return scores  # to the bit
    # In float64, so that rounding swaps no two scores.
    return (scores.double().logit() / temperature).sigmoid().to(scores.dtype)


def box_interiors(boxes: Boxes, size: tuple[int, int]) -> Tensor:
    """The pixels that each of K boxes touches, bool [K, *size]."""
    x0, y0, x1, y1 = boxes.tensor[:, :, None].unbind(1)
    rows, columns = (torch.arange(side, device=x0.device) for side in size)
    inside_rows = (rows + 1 > y0) & (rows < y1)
    inside_columns = (columns + 1 > x0) & (columns < x1)
    return inside_rows[:, :, None] & inside_columns[:, None]


def paste_masks(
    logits: Tensor, image_size: tuple[int, int], padded_size: tuple[int, int], output_size: tuple[int, int]
) -> Tensor:
    """Mask logits [K,h,w], which cover the padded batch, as bool masks [K, *output_size] of an image of
    ``image_size`` in the batch."""
    return mask_logits(logits, image_size, padded_size, output_size) > 0


def mask_logits(
    logits: Tensor, image_size: tuple[int, int], padded_size: tuple[int, int], output_size: tuple[int, int]
) -> Tensor:
    """The same as logits [K, *output_size]."""
    if len(logits) == 0:
        return torch.zeros(0, *output_size, device=logits.device)
    height, width = image_size
    padded = F.interpolate(logits[None].float(), size=padded_size, mode="bilinear", align_corners=False)
    own = padded[..., :height, :width]
    if output_size != (height, width):
        own = F.interpolate(own, size=output_size, mode="bilinear", align_corners=False)
    return own[0]
