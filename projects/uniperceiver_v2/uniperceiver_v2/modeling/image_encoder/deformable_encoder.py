"""The deformable Transformer encoder over all scales (Deformable DETR, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import DeformableAttention, SpatialShapes
from .structures import FeatureMaps


def grid_centres(spatial_shapes: SpatialShapes, extents: Tensor) -> Tensor:
    """Centres (x, y) of all tokens in 0..1 of each image's own size, [B,S,2]. In padding they are above 1.

    Args:
        spatial_shapes: (height, width) of each of the L scales.
        extents: [B,L,2], see `structures.image_extent`.
    """
    centres = []
    for level, (height, width) in enumerate(spatial_shapes):
        ys = (torch.arange(height, device=extents.device) + 0.5) / height
        xs = (torch.arange(width, device=extents.device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).flatten(0, 1)
        centres.append(grid / extents[:, None, level])
    return torch.cat(centres, dim=1)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, with normalisation behind each residual sum (post-norm)."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.attention = DeformableAttention(dim, heads, levels, points)
        self.attention_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, features: FeatureMaps, references: Tensor) -> Tensor:
        attended = self.attention(
            tokens + features.positions, references, tokens, features.spatial_shapes, features.valid_or_none
        )
        tokens = self.attention_norm(tokens + attended)
        return self.ffn_norm(tokens + self.linear2(F.relu(self.linear1(tokens))))


class DeformableEncoder(nn.Module):
    """`depth` layers. In each, every token attends to points around its own place in all scales."""

    def __init__(self, depth: int, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(DeformableEncoderLayer(dim, heads, levels, points, ffn_dim) for _ in range(depth))

    def forward(self, features: FeatureMaps) -> Tensor:
        """The encoded tokens [B,S,dim]."""
        centres = grid_centres(features.spatial_shapes, features.extents)
        references = centres[:, :, None] * features.extents[:, None]  # [B,S,L,2], in 0..1 of the padded maps
        tokens = features.tokens
        for layer in self.layers:
            tokens = layer(tokens, features, references)
        return tokens
