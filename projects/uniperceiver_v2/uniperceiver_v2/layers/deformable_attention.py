"""Multi-scale deformable attention in plain PyTorch: nothing to compile, the same on CPU and GPU.

Shape suffixes:
    B batch, S tokens of all scales together, Q queries, H heads, D width of a head,
    L scales, P sampling points of a head in a scale, X = 2 coordinates (x, y), C = 4 corners of a pixel cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deformable_attention_triton import sample_by_triton, triton_applies

SpatialShapes = Sequence[tuple[int, int]]  # (height, width) of each scale, finest first


def _corner_indices_and_weights(locations_BQHLPX: Tensor, spatial_shapes: SpatialShapes) -> tuple[Tensor, Tensor]:
    """The four pixels around each sampling location and their bilinear weights, zero outside the map.

    Returns:
        token indices (int64, 0..S-1) and weights, both [B,Q,H,L,P,C]. Only the weights carry gradients.
    """
    sizes_LX = locations_BQHLPX.new_tensor([(w, h) for h, w in spatial_shapes])
    widths_L, heights_L = sizes_LX.long().unbind(-1)
    starts_L = (widths_L * heights_L).cumsum(0) - widths_L * heights_L

    # Pixel centres lie at half-integers, as in grid_sample with align_corners=False.
    pixels = locations_BQHLPX * sizes_LX[:, None] - 0.5
    floor = pixels.detach().floor()
    fraction = pixels - floor  # gradient of the sample with respect to its location flows through here
    x0, y0 = floor.long().unbind(-1)
    fx, fy = fraction.unbind(-1)

    width, height, start = widths_L[:, None], heights_L[:, None], starts_L[:, None]
    inside_x0, inside_x1 = (x0 >= 0) & (x0 < width), (x0 >= -1) & (x0 < width - 1)
    inside_y0, inside_y1 = (y0 >= 0) & (y0 < height), (y0 >= -1) & (y0 < height - 1)
    wx0, wx1 = (1 - fx) * inside_x0, fx * inside_x1
    wy0, wy1 = (1 - fy) * inside_y0, fy * inside_y1
    column0, column1 = x0.clamp(min=0).minimum(width - 1), (x0 + 1).clamp(min=0).minimum(width - 1)
    row0 = start + y0.clamp(min=0).minimum(height - 1) * width
    row1 = start + (y0 + 1).clamp(min=0).minimum(height - 1) * width

    indices = torch.stack((row0 + column0, row0 + column1, row1 + column0, row1 + column1), dim=-1)
    weights = torch.stack((wy0 * wx0, wy0 * wx1, wy1 * wx0, wy1 * wx1), dim=-1)
    return indices, weights


def _sample_by_grid(
    value_BSHD: Tensor, spatial_shapes: SpatialShapes, locations_BQHLPX: Tensor, attention_BQHLP: Tensor
) -> Tensor:
    """One grid_sample a scale: its backward pass is several times faster than embedding_bag's."""
    B, _, H, D = value_BSHD.shape
    Q = locations_BQHLPX.shape[1]
    grids = (2 * locations_BQHLPX - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [L, B·H, Q, P, X]
    maps = value_BSHD.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in spatial_shapes], dim=-1)
    samples = [
        F.grid_sample(level.unflatten(-1, shape), grid, align_corners=False)  # [B·H, D, Q, P]
        for level, shape, grid in zip(maps, spatial_shapes, grids, strict=True)
    ]
    weights = attention_BQHLP.transpose(1, 2).reshape(B * H, 1, Q, -1)
    output = (torch.cat(samples, dim=-1) * weights).sum(-1)
    return output.view(B, H * D, Q).transpose(1, 2)


def _sample_by_gather(
    value_BSHD: Tensor, spatial_shapes: SpatialShapes, locations_BQHLPX: Tensor, attention_BQHLP: Tensor
) -> Tensor:
    """One gather for everything: a sample is a weighted sum of four pixels, so a query's head is a weighted sum of
    4·L·P rows of the value table, which `embedding_bag` forms without materialising the rows."""
    B, S, H, D = value_BSHD.shape
    Q = locations_BQHLPX.shape[1]
    tokens, corners = _corner_indices_and_weights(locations_BQHLPX, spatial_shapes)
    weights = (corners * attention_BQHLP.unsqueeze(-1)).to(value_BSHD.dtype)
    # Row of (batch b, token s, head h) in the table [B·S·H, D].
    heads = torch.arange(H, device=tokens.device).view(1, 1, H, 1, 1, 1)
    batches = torch.arange(B, device=tokens.device).view(B, 1, 1, 1, 1, 1)
    rows = (batches * S + tokens) * H + heads
    output = F.embedding_bag(
        rows.reshape(B * Q * H, -1),
        value_BSHD.reshape(B * S * H, D),
        per_sample_weights=weights.reshape(B * Q * H, -1),
        mode="sum",
    )
    return output.view(B, Q, H * D)


def multi_scale_deformable_attention(
    value_BSHD: Tensor,
    spatial_shapes: SpatialShapes,
    locations_BQHLPX: Tensor,
    attention_BQHLP: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples from several feature maps (Deformable DETR, equation 3).

    Args:
        value_BSHD: the maps' values, flattened row by row, the scales one after another.
        spatial_shapes: (height, width) of each scale; their areas sum to S.
        locations_BQHLPX: sampling locations (x, y), 0..1 over each whole map; samples outside it are zero.
        attention_BQHLP: the weight of each sample.
    Returns:
        [B, Q, H·D]
    Raises:
        ValueError: the areas of spatial_shapes do not sum to S.
    """
    if sum(h * w for h, w in spatial_shapes) != value_BSHD.shape[1]:
        raise ValueError(
            f"spatial shapes {list(spatial_shapes)} do not cover the {value_BSHD.shape[1]} tokens of the value"
        )
    if triton_applies(value_BSHD, locations_BQHLPX, attention_BQHLP):
        return sample_by_triton(value_BSHD, spatial_shapes, locations_BQHLPX, attention_BQHLP)
    sample = _sample_by_grid if torch.is_grad_enabled() else _sample_by_gather
    return sample(value_BSHD, spatial_shapes, locations_BQHLPX, attention_BQHLP)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1), with Hugging Face's parametrisation.

    Args:
        dim: width of queries and values, a multiple of heads.
        heads, levels, points: H, L and P.
    Raises:
        ValueError: dim is not a multiple of heads.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width {dim} is not a multiple of the number of heads {heads}")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head starts looking in a direction of its own, point p at p+1 pixels' distance."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.points + 1)
        offsets = directions[:, None, None] * distances[None, None, :, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: SpatialShapes,
        valid: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            queries: [B,Q,dim], position encoding included.
            references: [B,Q,L,2] points (x,y) or [B,Q,L,4] boxes (cx,cy,w,h), 0..1 over each whole map.
            memory: [B,S,dim], the flattened maps.
            spatial_shapes: (height, width) of each scale.
            valid: [B,S] bool, False at padding, which then counts as zero.
        Returns:
            [B,Q,dim]
        """
        B, Q, _ = queries.shape
        value = self.value_proj(memory)
        if valid is not None:
            value = value * valid.unsqueeze(-1)
        offsets = self.sampling_offsets(queries).view(B, Q, self.heads, self.levels, self.points, 2)
        attention = self.attention_weights(queries).view(B, Q, self.heads, -1).softmax(-1)

        centres = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:  # offsets in pixels of each scale
            sizes = references.new_tensor([(w, h) for h, w in spatial_shapes])
            locations = centres + offsets / sizes[:, None]
        else:  # offsets in half boxes, shared out among the points
            locations = centres + offsets * references[:, :, None, :, None, 2:] * (0.5 / self.points)
        sampled = multi_scale_deformable_attention(
            value.view(B, -1, self.heads, value.shape[-1] // self.heads),
            spatial_shapes,
            locations,
            attention.view(B, Q, self.heads, self.levels, self.points),
        )
        return self.output_proj(sampled)
