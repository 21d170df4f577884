"""The region network's decoder. It turns queries into proposals and refines their boxes from layer to layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MLP, DeformableAttention, MultiHeadAttention, box_position_encoding
from .structures import FeatureMaps


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)), both clamped to at least eps."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class RegionDecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention to the image and a feed-forward network (post-norm)."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, heads)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, heads, levels, points)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Tensor,
        features: FeatureMaps,
        mask: Tensor | None,
    ) -> Tensor:
        placed = queries + positions
        queries = self.self_attention_norm(queries + self.self_attention(placed, placed, queries, mask))
        attended = self.cross_attention(
            queries + positions, references, memory, features.spatial_shapes, features.valid_or_none
        )
        queries = self.cross_attention_norm(queries + attended)
        return self.ffn_norm(queries + self.linear2(F.relu(self.linear1(queries))))


class BoxPosition(nn.Module):
    """Position encoding of a query: an MLP on the sine encoding of its box (DAB-DETR, equation 3)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.mlp = MLP(2 * dim, dim, dim, depth=2)

    def forward(self, boxes: Tensor) -> Tensor:
        return self.mlp(box_position_encoding(boxes, self.dim // 2))


class RegionDecoder(nn.Module):
    """`depth` layers with iterative box refinement (Deformable DETR, A.4).

    Each layer corrects the box of the layer before, and a query's position encoding follows its box. The loss of a
    layer sends gradients to its own correction and to the one before, no further ("look forward twice", DINO 3.5).
    """

    def __init__(self, depth: int, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(RegionDecoderLayer(dim, heads, levels, points, ffn_dim) for _ in range(depth))
        self.position = BoxPosition(dim)
        self.box_head = MLP(dim, dim, 4, depth=3)
        nn.init.zeros_(self.box_head.layers[-1].weight)
        nn.init.zeros_(self.box_head.layers[-1].bias)

    def forward(
        self,
        queries: Tensor,
        boxes: Tensor,
        memory: Tensor,
        features: FeatureMaps,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            queries: [B,Q,dim], the contents.
            boxes: [B,Q,4], the initial boxes.
            memory: [B,S,dim] encoded tokens of `features`.
            mask: bool, True where attention among queries is allowed, broadcastable to [B,heads,Q,Q].
        Returns:
            hidden states [layers,B,Q,dim] and refined boxes [layers,B,Q,4].
        """
        scales = features.extents.repeat(1, 1, 2)[:, None]  # [B,1,L,4]
        hidden, refined = [], []
        reference, undetached = boxes.detach(), boxes
        for layer in self.layers:
            positions = self.position(reference)
            queries = layer(queries, positions, reference[:, :, None] * scales, memory, features, mask)
            correction = self.box_head(queries)
            hidden.append(queries)
            refined.append(torch.sigmoid(correction + inverse_sigmoid(undetached)))
            undetached = torch.sigmoid(correction + inverse_sigmoid(reference))
            reference = undetached.detach()
        return torch.stack(hidden), torch.stack(refined)
