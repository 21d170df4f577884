"""Two-stage query selection: every encoded token proposes a box, and the tokens with the best scores become queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import MLP
from .conventions import Conventions
from .deformable_encoder import grid_centres
from .region_decoder import inverse_sigmoid
from .structures import FeatureMaps


@dataclass
class DensePredictions:
    """Predictions of all encoded tokens.

    Attributes:
        objectness: [B,S] logits of the one-to-many head, -1e4 in padding. They select nothing.
        boxes: [B,S,4].
        centres: [B,S,2], (x, y) of the tokens.
        valid: [B,S] bool, False at padding.
        tokens: [B,S,dim], the inputs of the prediction heads.
    """

    objectness: Tensor
    boxes: Tensor
    centres: Tensor
    valid: Tensor
    tokens: Tensor


@dataclass
class Queries:
    """The O selected queries.

    Attributes:
        contents: [B,O,dim].
        boxes: [B,O,4], the boxes that their tokens predict.
        objectness: [B,O] logits, by which they were selected.
    """

    contents: Tensor
    boxes: Tensor
    objectness: Tensor


def largest(logits: Tensor) -> Tensor:
    """The objectness [...] of logits [...,K]: an object is what is any of K parts. The paper has one."""
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits.amax(-1)


class QuerySelection(nn.Module):
    """Predicts an objectness and a box for every token and keeps the `num_queries` tokens with the highest objectness
    (Deformable DETR, A.4). The objectness is Mask DINO's classifier with one class, as in the paper.

    The objectness learns one-to-one: one token answers for an object, and its neighbours are background. A second head
    learns one-to-many, in training only. It teaches the tokens much sooner what an object is. If the objectness itself
    learned so, all queries of an object would begin alike, and the decoder could not tell which of them is the answer.

    A box is predicted as a correction of the token's anchor. The anchor is centred on the token, and its sides are
    `anchor_size`·2^l of the image's sides at scale l.

    Args:
        dim: width of the region network.
        num_queries: O.
        anchor_size: as a share of the image.
        objectness_parts: K, see `largest`.
        conventions: what differs in networks with weights from elsewhere.
    """

    def __init__(
        self,
        dim: int,
        num_queries: int,
        anchor_size: float,
        objectness_parts: int = 1,
        conventions: Conventions | None = None,
    ):
        super().__init__()
        self.num_queries, self.anchor_size = num_queries, anchor_size
        self.conventions = conventions or Conventions()
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.objectness = nn.Linear(dim, objectness_parts)
        self.one_to_many = nn.Linear(dim, 1)
        self.box_head = MLP(dim, dim, 4, depth=3)
        self.content = nn.Sequential()  # a token as it is
        if not self.conventions.tokens_are_contents:
            self.content.extend((nn.Linear(dim, dim), nn.LayerNorm(dim)))
        for head in (self.objectness, self.one_to_many):
            nn.init.constant_(head.bias, -4.0)  # few tokens are foreground
        nn.init.zeros_(self.box_head.layers[-1].weight)
        nn.init.zeros_(self.box_head.layers[-1].bias)

    def forward(
        self, memory: Tensor, features: FeatureMaps, dense: bool = True
    ) -> tuple[DensePredictions | None, Queries]:
        """Selects queries.

        Args:
            memory: [B,S,dim], the encoded tokens.
            features: the scales from which they were encoded.
            dense: False if no loss needs the dense predictions. They are then None, and boxes are computed for the
                queries only.
        """
        centres = grid_centres(features.spatial_shapes, features.extents)
        if self.conventions.border:
            memory = memory * self._within_border(centres)
        tokens = self.project(memory)
        sizes = torch.cat(
            [
                centres.new_full((h * w, 2), self._anchor_size(level, len(features.spatial_shapes)))
                for level, (h, w) in enumerate(features.spatial_shapes)
            ]
        )
        anchors = torch.cat((centres, sizes.expand_as(centres)), dim=-1)
        objectness = largest(self.objectness(tokens)).float().masked_fill(~features.valid, -1e4)
        count = torch.sym_min(self.num_queries, tokens.shape[1])  # under torch.export, the number of tokens is a symbol
        best = objectness.detach().topk(count, dim=1).indices.unsqueeze(-1)
        chosen = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        selected = self.content(chosen), objectness.gather(1, best.squeeze(-1))
        if not dense:
            with torch.no_grad():
                boxes = self._boxes(chosen, anchors.gather(1, best.expand(-1, -1, 4)))
            return None, Queries(selected[0], boxes, selected[1])
        boxes = self._boxes(tokens, anchors)
        one_to_many = self.one_to_many(tokens).squeeze(-1).float().masked_fill(~features.valid, -1e4)
        predictions = DensePredictions(one_to_many, boxes, centres, features.valid, tokens)
        return predictions, Queries(selected[0], boxes.gather(1, best.expand(-1, -1, 4)), selected[1])

    def _boxes(self, tokens: Tensor, anchors: Tensor) -> Tensor:
        start = inverse_sigmoid(anchors, eps=1e-3)
        if self.conventions.border:
            start = start.masked_fill(~self._within_border(anchors[..., :2]), math.inf)
        return torch.sigmoid(self.box_head(tokens).float() + start)

    def _within_border(self, centres: Tensor) -> Tensor:
        """[B,S,1] bool of centres [B,S,2]."""
        border = self.conventions.border
        return ((centres > border) & (centres < 1 - border)).all(-1, keepdim=True)

    def _anchor_size(self, level: int, levels: int) -> float:
        doublings = levels - 1 - level if self.conventions.large_anchors_first else level
        return min(self.anchor_size * 2.0**doublings, 0.9)
