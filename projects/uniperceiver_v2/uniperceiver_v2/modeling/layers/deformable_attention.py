"""Multi-scale deformable attention in plain PyTorch, without anything to compile.

Shape suffixes:
    B batch, S tokens of all scales together, Q queries, H heads, D width of a head,
    L scales, P sampling points of a head in a scale, X = 2 coordinates (x, y), C = 4 corners of a pixel cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deformable_attention_cpu import SparseDeformableAttention
from .deformable_attention_triton import sample_by_triton, triton_applies

SpatialShapes = Sequence[tuple[int, int]]  # (height, width) of each scale, finest first


def _sample_by_grid(
    value_BSHD: Tensor, spatial_shapes: SpatialShapes, locations_BQHLPX: Tensor, attention_BQHLP: Tensor
) -> Tensor:
    """One `grid_sample` for each scale, which runs on every device."""
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


def multi_scale_deformable_attention(
    value_BSHD: Tensor,
    spatial_shapes: SpatialShapes,
    locations_BQHLPX: Tensor,
    attention_BQHLP: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples from several feature maps (Deformable DETR, equation 3).

    Args:
        value_BSHD: the values of the padded maps, flattened row by row, one scale after the other.
        spatial_shapes: (height, width) of each scale. Their areas sum to S.
        locations_BQHLPX: sampling locations (x, y) in 0..1 of the padded map. Samples outside the map are zero.
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
    # torch.compile fuses operations around grid_sample, but breaks its graph at a custom autograd function.
    if value_BSHD.device.type == "cpu" and not torch.compiler.is_compiling():
        shapes = tuple((int(h), int(w)) for h, w in spatial_shapes)
        return SparseDeformableAttention.apply(value_BSHD, shapes, locations_BQHLPX, attention_BQHLP)
    return _sample_by_grid(value_BSHD, spatial_shapes, locations_BQHLPX, attention_BQHLP)


@cache
def _pixel_sizes(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Width and height of a pixel in each scale, as shares of the map: [L,1,2].

    They are kept, as a copy to the GPU would wait for it in each layer, and for good, as CUDA graphs read them.
    """
    with torch.inference_mode(False):  # kept inference tensors could not be used in training later
        return torch.tensor([(1 / w, 1 / h) for h, w in shapes], dtype=dtype, device=device)[:, None]


def _symbolic_pixel_sizes(shapes: SpatialShapes, like: Tensor) -> Tensor:
    """`_pixel_sizes` where heights and widths are symbols that no cache can keep: in torch.export and torch.compile."""
    sizes = [torch.stack((like.new_full((), w), like.new_full((), h))) for h, w in shapes]
    return 1 / torch.stack(sizes)[:, None]


def _may_have_padding(valid: Tensor) -> bool:
    """False if there is certainly no padding. On a GPU the question would cost a wait, and torch.compile cannot ask it,
    so the answer there is True."""
    return valid.device.type != "cpu" or torch.compiler.is_compiling() or not valid.all()


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1), with Hugging Face's parametrisation.

    Args:
        dim: width of queries and values, a multiple of `heads`.
        heads, levels, points: H, L and P.
    Raises:
        ValueError: dim is not a multiple of heads.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width {dim} is not a multiple of the number of heads {heads}")
        self.heads, self.levels, self.points = heads, levels, points
        self._sample: Callable[..., Tensor] | None = None  # in place of `multi_scale_deformable_attention`
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def sample_uncompiled(self) -> None:
        """Keeps the sampling out of compiled graphs, which end before it and start again behind it. Both kinds of
        machine have a form of it that no compiler makes: a CPU the sparse products, and a GPU the Triton kernels."""
        self._sample = torch.compiler.disable(multi_scale_deformable_attention)

    def reset_parameters(self) -> None:
        """Initialises the parameters: each head samples in a direction of its own, its point p at p + 1 pixels."""
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
            references: [B,Q,L,2] points (x, y) or [B,Q,L,4] boxes (cx, cy, w, h), in 0..1 of the padded map.
            memory: [B,S,dim], the flattened maps.
            spatial_shapes: (height, width) of each scale.
            valid: [B,S] bool, False at padding, where values are set to zero; None if there is no padding.
        Returns:
            [B,Q,dim]
        """
        B, Q, _ = queries.shape
        value = self.value_proj(memory)
        if valid is not None and _may_have_padding(valid):
            value = value * valid.unsqueeze(-1)
        offsets = self.sampling_offsets(queries).view(B, Q, self.heads, self.levels, self.points, 2)
        attention = self.attention_weights(queries).view(B, Q, self.heads, -1).softmax(-1)

        if references.shape[-1] == 2:  # offsets in pixels of each scale
            if torch.compiler.is_compiling() or isinstance(spatial_shapes[0][0], torch.SymInt):
                unit = _symbolic_pixel_sizes(spatial_shapes, references)
            else:
                unit = _pixel_sizes(tuple(spatial_shapes), references.dtype, references.device)
        else:  # offsets in units of half a box, divided by the number of points
            unit = references[:, :, None, :, None, 2:] * (0.5 / self.points)
        locations = torch.addcmul(references[:, :, None, :, None, :2], offsets, unit)
        sampled = (self._sample or multi_scale_deformable_attention)(
            value.view(B, -1, self.heads, value.shape[-1] // self.heads),
            spatial_shapes,
            locations,
            attention.view(B, Q, self.heads, self.levels, self.points),
        )
        return self.output_proj(sampled)
