"""Deformable attention on a CPU without a compiled kernel, by PyTorch's own sparse products.

The value is a table [T, D] with one row for each head of each token. A sample is a weighted sum of four rows, so

    the output is a weighted sum of 4·L·P rows (`embedding_bag`, which never copies the rows),
    the gradient of a weight is the product of a row and an output's gradient (`sampled_addmm`), and
    the gradient of the value is a weighted sum of output gradients (`embedding_bag` over samples sorted by row).

The other steps compute a few numbers for each sample, such as its pixel and its weights. They work on `SAMPLES_AT_ONCE`
samples at a time, which stay in the processor's cache. No tensor ever has D numbers for each sample.

Shape suffixes, beside those of deformable_attention.py:
    N outputs (images and queries together), K = H·L·P samples of an output, J = L·P samples of a head,
    T rows of the table (images, tokens and heads together).
"""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SpatialShapes = tuple[tuple[int, int], ...]

SAMPLES_AT_ONCE = 2**16  # 256 KiB for each number of a sample
SAMPLES_SORTED_AT_ONCE = 2**21  # rounded to whole images; bounds the memory of the backward pass


class _Scales(NamedTuple):
    """Properties of the scale of each of the K samples of an output; the same for all outputs.

    Attributes:
        size_X1K: width and height of the map, in pixels.
        last_X1K: the index of the last pixel with a right (lower) neighbour; 0 if none has one.
        next_X1K: distance to that neighbour: 1, or 2^100 in a map one pixel wide (high), which gives it no weight.
        start_K, width_K: index of the map's first token, and width of the map.
        head_K: number of the sample's head.
        corners_C1K: table rows from a pixel to itself and to its right, lower and lower right neighbours.
    """

    size_X1K: Tensor
    last_X1K: Tensor
    next_X1K: Tensor
    start_K: Tensor
    width_K: Tensor
    head_K: Tensor
    corners_C1K: Tensor


@lru_cache(maxsize=256)
def _scales(shapes: SpatialShapes, heads: int, points: int, dtype: torch.dtype) -> _Scales:
    def over_samples(numbers: list[int], dtype: torch.dtype = dtype) -> Tensor:
        return torch.tensor(numbers, dtype=dtype).repeat_interleave(points).repeat(heads)

    areas = [height * width for height, width in shapes]
    size = torch.stack((over_samples([w for _, w in shapes]), over_samples([h for h, _ in shapes])))[:, None]
    right = over_samples([heads * (w > 1) for _, w in shapes], torch.int32)
    down = over_samples([heads * w * (h > 1) for h, w in shapes], torch.int32)
    return _Scales(
        size_X1K=size,
        last_X1K=(size - 2).clamp_(min=0),
        next_X1K=torch.where(size > 1, 1.0, 2.0**100).to(dtype),
        start_K=over_samples([sum(areas[:level]) for level in range(len(areas))]),
        width_K=over_samples([w for _, w in shapes]),
        head_K=torch.arange(heads, dtype=torch.int32).repeat_interleave(len(shapes) * points),
        corners_C1K=torch.stack((torch.zeros_like(right), right, down, right + down))[:, None],
    )


def _hat(t: Tensor) -> Tensor:
    """Bilinear weight of a pixel at distance t: 1 - |t|, or 0 from a distance of 1 on."""
    height = t.abs()
    return torch.sub(torch.ones((), dtype=t.dtype), height, out=height).clamp_(min=0)


def _hat_slope(t: Tensor) -> Tensor:
    """Derivative of :func:`_hat`. At the kinks it is the right-hand derivative, as in grid_sample."""
    piece = t.floor()
    return piece.eq(-1).to(t.dtype).sub_(piece.eq(0).to(t.dtype))


def _cells(locations_NKX: Tensor, images_N1: Tensor, heads: int, scales: _Scales) -> tuple[Tensor, Tensor, Tensor]:
    """The pixel cell of each sample.

    Returns:
        the table row of the cell's first pixel [N,K] (int32), and the sample's distances along x and y [X,N,K] to the
            first and to the second pixel of the cell. The cell always lies in the map. A sample outside the map has
            distances of 1 or more, which give it no weight.
    """
    # Pixel centres lie at half-integers, as in grid_sample with align_corners=False.
    near = torch.empty(2, *locations_NKX.shape[:2], dtype=scales.size_X1K.dtype)
    torch.addcmul(torch.tensor(-0.5, dtype=near.dtype), locations_NKX.permute(2, 0, 1), scales.size_X1K, out=near)
    cell = near.floor()
    torch.clamp(cell, torch.zeros_like(scales.last_X1K), scales.last_X1K, out=cell)
    near.sub_(cell)
    tokens = torch.addcmul(scales.start_K, cell[1], scales.width_K).add_(cell[0]).int()
    # A NaN location becomes a negative row. The clamp keeps the read in bounds, and the NaN weights reach the output.
    rows = torch.add(scales.head_K, tokens, alpha=heads, out=tokens).add_(images_N1).clamp_(min=0)
    return rows, near, near - scales.next_X1K


def _corner_weights(near: Tensor, far: Tensor, attention_NK: Tensor) -> Tensor:
    """Weights [C,N,K] of the cell's four pixels, from the hats [X,N,K] of its first (near) and second (far) pixels."""
    weights = torch.empty(4, *attention_NK.shape, dtype=near.dtype)
    torch.mul(near[1], attention_NK, out=weights[1])
    torch.mul(far[1], attention_NK, out=weights[3])
    torch.mul(weights[1::2], near[0], out=weights[::2])
    weights[1::2].mul_(far[0])
    return weights


def _first_rows(images: int, queries: int, rows: int) -> Tensor:
    """[N,1]: the table row at which the image of each output begins."""
    return torch.arange(images, dtype=torch.int32).mul_(rows).repeat_interleave(queries)[:, None]


def _forward(value_BSHD: Tensor, shapes: SpatialShapes, locations_BQHLPX: Tensor, attention_BQHLP: Tensor) -> Tensor:
    B, S, H, D = value_BSHD.shape
    _, Q, _, L, P, _ = locations_BQHLPX.shape
    scales = _scales(shapes, H, P, value_BSHD.dtype)
    table_TD = value_BSHD.reshape(-1, D)
    outputs = max(1, SAMPLES_AT_ONCE // (H * L * P))
    sampled = torch.empty(B * Q, H * D, dtype=value_BSHD.dtype)
    parts = zip(
        locations_BQHLPX.reshape(B * Q, -1, 2).split(outputs),
        attention_BQHLP.reshape(B * Q, -1).split(outputs),
        _first_rows(B, Q, S * H).split(outputs),
        sampled.split(outputs),
        strict=True,
    )
    for locations, attention, images, output in parts:
        rows, near, far = _cells(locations, images, H, scales)
        weights = _corner_weights(_hat(near), _hat(far), attention)
        bags = (rows + scales.corners_C1K).view(-1, L * P)
        sums = F.embedding_bag(bags, table_TD, per_sample_weights=weights.view(-1, L * P), mode="sum")
        torch.sum(sums.view(4, *output.shape), dim=0, out=output)
    return sampled.view(B, Q, H * D)


@cache
def _warn_of_sparse_tensors() -> None:
    """Consumes PyTorch's one warning that its compressed sparse tensors may change. Our users need not see it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))


def _products(rows_MJ: Tensor, table_TD: Tensor, gradients_MD: Tensor) -> Tensor:
    """[M,J]: the dot products of each gradient with its J rows of the table."""
    M, J = rows_MJ.shape
    _warn_of_sparse_tensors()
    places = torch.sparse_csr_tensor(
        torch.arange(0, M * J + 1, J, dtype=torch.int32),
        rows_MJ.view(-1),
        torch.zeros(M * J, dtype=table_TD.dtype),
        size=(M, len(table_TD)),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(places, gradients_MD, table_TD.t(), beta=0.0).values().view(M, J)


def _value_gradient(
    rows_NK: Tensor,
    weights_CNK: Tensor,
    gradients_MD: Tensor,
    shapes: SpatialShapes,
    corners_C1K: Tensor,
    like_BSHD: Tensor,
) -> Tensor:
    """The gradient of the value: each cell has a sum over its samples for each corner, added to the corner's pixel."""
    B, S, H, D = like_BSHD.shape
    if (
        rows_NK.numel() < B * S * H
    ):  # few samples in a large table: sorting the corners as well saves three tables of sums
        rows_NK, weights_CNK = rows_NK + corners_C1K, weights_CNK[None]
        gradients_MD = gradients_MD.repeat(4, 1)
    rows = rows_NK.view(-1)
    order = rows.sort().indices
    counts = rows.bincount(minlength=B * S * H)
    starts = counts.cumsum(0).sub_(counts).int()
    sources = order.int().div_(len(rows) // len(gradients_MD), rounding_mode="floor")
    gradient = None
    for corner, weights in enumerate(weights_CNK):
        moved = F.embedding_bag(
            sources, gradients_MD, starts, per_sample_weights=weights.view(-1).index_select(0, order), mode="sum"
        ).view(B, S, H * D)
        if gradient is None:
            gradient = moved
            continue
        begin = 0
        for height, width in shapes:
            shift, end = (0, 1, width, width + 1)[corner], begin + height * width
            # In a map one pixel wide or high, corners outside the map have no weight.
            gradient[:, begin + shift : end] += moved[:, begin : max(begin, end - shift)]
            begin = end
    return gradient.view(B, S, H, D)


def _backward(
    value_BSHD: Tensor, shapes: SpatialShapes, locations_BQHLPX: Tensor, attention_BQHLP: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and attention of a few images."""
    B, S, H, D = value_BSHD.shape
    _, Q, _, L, P, _ = locations_BQHLPX.shape
    N, J = B * Q, L * P
    scales = _scales(shapes, H, P, value_BSHD.dtype)
    table_TD, gradients_MD = value_BSHD.reshape(-1, D), gradient.reshape(-1, D)
    of_locations, of_attention = (value_BSHD.new_empty(size) for size in ((N, H * J, 2), (N, H * J)))
    all_rows, all_weights = torch.empty(N, H * J, dtype=torch.int32), value_BSHD.new_empty(4, N, H * J)
    all_locations, all_attention = locations_BQHLPX.reshape(N, -1, 2), attention_BQHLP.reshape(N, -1)
    first_rows = _first_rows(B, Q, S * H)

    for begin in range(0, N, step := max(1, SAMPLES_AT_ONCE // (H * J))):
        part = slice(begin, begin + step)
        rows, near, far = _cells(all_locations[part], first_rows[part], H, scales)
        near_hat, far_hat, attention = _hat(near), _hat(far), all_attention[part]
        all_rows[part], all_weights[:, part] = rows, _corner_weights(near_hat, far_hat, attention)

        corners = (rows + scales.corners_C1K).view(-1, J)
        products = _products(corners, table_TD, gradients_MD[begin * H :][: len(rows) * H].repeat(4, 1))
        products = products.view(4, *rows.shape)
        columns = torch.addcmul(products[:2] * near_hat[1], products[2:], far_hat[1])  # left, right
        lines = torch.addcmul(products[::2] * near_hat[0], products[1::2], far_hat[0])  # upper, lower
        torch.mul(columns[0], near_hat[0], out=of_attention[part]).addcmul_(columns[1], far_hat[0])
        slopes = _hat_slope(near).mul_(torch.stack((columns[0], lines[0])))
        slopes.addcmul_(_hat_slope(far), torch.stack((columns[1], lines[1]))).mul_(attention)
        torch.mul(slopes.permute(1, 2, 0), scales.size_X1K.permute(1, 2, 0), out=of_locations[part])

    of_value = _value_gradient(all_rows, all_weights, gradients_MD, shapes, scales.corners_C1K, value_BSHD)
    return of_value, of_locations.view_as(locations_BQHLPX), of_attention.view_as(attention_BQHLP)


class SparseDeformableAttention(torch.autograd.Function):
    """multi_scale_deformable_attention on a CPU. Computes in float32, or in float64 for a float64 value."""

    @staticmethod
    def forward(
        ctx: Any,
        value_BSHD: Tensor,
        spatial_shapes: SpatialShapes,
        locations_BQHLPX: Tensor,
        attention_BQHLP: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(value_BSHD, locations_BQHLPX, attention_BQHLP)
        ctx.spatial_shapes = spatial_shapes
        value, locations, attention = _widen(value_BSHD, locations_BQHLPX, attention_BQHLP)
        return _forward(value, spatial_shapes, locations, attention).to(value_BSHD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        images = max(1, SAMPLES_SORTED_AT_ONCE // max(1, inputs[2][0].numel()))
        parts = [
            _backward(value, ctx.spatial_shapes, locations, attention, part.to(value.dtype))
            for (value, locations, attention), part in zip(
                zip(*(x.split(images) for x in _widen(*inputs)), strict=True), gradient.split(images), strict=True
            )
        ]
        of_value, of_locations, of_attention = (
            torch.cat(found).to(x.dtype) for found, x in zip(zip(*parts, strict=True), inputs, strict=True)
        )
        return of_value, None, of_locations, of_attention


def _widen(*inputs: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    return [x.to(dtype) for x in inputs]
