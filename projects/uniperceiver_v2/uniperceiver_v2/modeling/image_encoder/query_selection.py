"""Two-stage query selection: every encoded token proposes a box, and the tokens with the best scores become queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import MLP
from .deformable_encoder import grid_centres
from .region_decoder import inverse_sigmoid
from .structures import FeatureMaps


@dataclass
class DensePredictions:
    """Predictions of all encoded tokens.

    Attributes:
        objectness: [B,S] logits, -1e4 in padding.
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
    """The O selected queries: contents [B,O,dim] and initial boxes [B,O,4]."""

    contents: Tensor
    boxes: Tensor


class QuerySelection(nn.Module):
    """Predicts an objectness and a box for every token and keeps the `num_queries` tokens with the highest objectness
    (Deformable DETR, A.4). The objectness is Mask DINO's classifier with one class, as in the paper.

    A box is predicted as a correction of the token's anchor. The anchor is centred on the token, and its sides are
    `anchor_size`·2^l of the image's sides at scale l.
    """

    def __init__(self, dim: int, num_queries: int, anchor_size: float):
        super().__init__()
        self.num_queries, self.anchor_size = num_queries, anchor_size
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.objectness = nn.Linear(dim, 1)
        self.box_head = MLP(dim, dim, 4, depth=3)
        self.content = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        nn.init.constant_(self.objectness.bias, -4.0)  # few tokens are foreground
        nn.init.zeros_(self.box_head.layers[-1].weight)
        nn.init.zeros_(self.box_head.layers[-1].bias)

    def forward(
        self, memory: Tensor, features: FeatureMaps, dense: bool = True
    ) -> tuple[DensePredictions | None, Queries]:
        """Selects queries. Gradients from the decoder reach the tokens through the queries' contents only.

        Args:
            memory: [B,S,dim], the encoded tokens.
            features: the scales from which they were encoded.
            dense: False if no loss needs the dense predictions. They are then None, and boxes are computed for the
                queries only.
        """
        tokens = self.project(memory)
        centres = grid_centres(features.spatial_shapes, features.extents)
        sizes = torch.cat(
            [
                centres.new_full((h * w, 2), min(self.anchor_size * 2.0**level, 0.9))
                for level, (h, w) in enumerate(features.spatial_shapes)
            ]
        )
        anchors = torch.cat((centres, sizes.expand_as(centres)), dim=-1)
        objectness = self.objectness(tokens).squeeze(-1).float().masked_fill(~features.valid, -1e4)
        count = min(self.num_queries, tokens.shape[1])
        best = objectness.detach().topk(count, dim=1).indices.unsqueeze(-1)
        chosen = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        if not dense:
            with torch.no_grad():
                boxes = self._boxes(chosen, anchors.gather(1, best.expand(-1, -1, 4)))
            return None, Queries(self.content(chosen), boxes)
        boxes = self._boxes(tokens, anchors)
        predictions = DensePredictions(objectness, boxes, centres, features.valid, tokens)
        return predictions, Queries(self.content(chosen), boxes.detach().gather(1, best.expand(-1, -1, 4)))

    def _boxes(self, tokens: Tensor, anchors: Tensor) -> Tensor:
        return torch.sigmoid(self.box_head(tokens).float() + inverse_sigmoid(anchors, eps=1e-3))
