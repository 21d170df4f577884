"""Multi-scale deformable attention on a GPU, with one Triton kernel forward and one backward.

Shape suffixes are those of `deformable_attention`. The samples [B,Q,H,L,P,D] are never written to memory.
"""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SpatialShapes = tuple[tuple[int, int], ...]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KERNELS = f"{__package__}.deformable_attention_kernels"
THREADS = 128  # of a program


@functools.cache
def _kernels() -> ModuleType | None:
    """The module of kernels, or None without Triton. It is imported on first use, as that takes a second."""
    try:
        return importlib.import_module(KERNELS)
    except ImportError:
        return None


def triton_applies(value_BSHD: Tensor, locations_BQHLPX: Tensor, attention_BQHLP: Tensor) -> bool:
    """Whether `sample_by_triton` can compute these inputs.

    It needs Triton, a GPU, floating types and offsets within 32 bits. The answer is False under
    `torch.use_deterministic_algorithms`, because the order of additions in gradients differs between runs.
    """
    inputs = (value_BSHD, locations_BQHLPX, attention_BQHLP)
    return (
        value_BSHD.is_cuda
        and all(x.dtype in DTYPES and x[:1].numel() < 2**31 for x in inputs)
        and not torch.are_deterministic_algorithms_enabled()
        and _kernels() is not None
    )


@functools.cache
def _scales(spatial_shapes: SpatialShapes, device: torch.device) -> Tensor:
    """[L,3] int32: height, width and first token of each scale. Kept for the reasons of `_pixel_sizes`."""
    starts = [sum(h * w for h, w in spatial_shapes[:level]) for level in range(len(spatial_shapes))]
    rows = [(h, w, start) for (h, w), start in zip(spatial_shapes, starts)]
    return torch.tensor(rows, dtype=torch.int32, device=device).view(-1, 3)


def block_sizes(D: int, itemsize: int) -> tuple[int, int]:
    """Numbers of queries and channels in a block. Each thread gets 16 bytes of channels, the widest memory access."""
    channels = 1 << (D - 1).bit_length()
    return max(1, THREADS * 16 // itemsize // channels), channels


def _launch(kernel: Any, tensors: tuple[Tensor, ...], attention_BQHLP: Tensor, itemsize: int, **sizes: int) -> None:
    """Launches a kernel with one program for each block of queries, each head and each image.

    Args:
        tensors: the kernel's tensor arguments, the value first.
        itemsize: bytes of a channel, for `block_sizes`.
        sizes: constants that only this kernel has.
    """
    B, S, H, D = tensors[0].shape
    _, Q, _, L, P = attention_BQHLP.shape
    if not B * Q * H * D:
        return
    tl = _kernels().tl
    block_q, block_d = block_sizes(D, itemsize)
    double = any(x.dtype == torch.float64 for x in tensors)
    with torch.cuda.device_of(tensors[0]):
        kernel[math.ceil(Q / block_q), H, B](
            *(*tensors, S, Q, H, D, L, P),
            BLOCK_Q=block_q,
            BLOCK_D=block_d,
            COMPUTE=tl.float64 if double else tl.float32,
            num_warps=THREADS // 32,
            **sizes,
        )


class _TritonDeformableAttention(torch.autograd.Function):
    """Autocast needs no casts here: the kernels read each input in its own type and compute in float32 or float64."""

    @staticmethod
    def forward(
        ctx: Any, value_BSHD: Tensor, spatial_shapes: SpatialShapes, locations_BQHLPX: Tensor, attention_BQHLP: Tensor
    ) -> Tensor:
        value, locations, attention = (x.contiguous() for x in (value_BSHD, locations_BQHLPX, attention_BQHLP))
        ctx.save_for_backward(value, locations, attention)
        ctx.spatial_shapes = spatial_shapes
        output = value.new_empty(*locations.shape[:3], value.shape[-1])
        scales = _scales(spatial_shapes, value.device)
        _launch(_kernels().forward_kernel, (value, scales, locations, attention, output), attention, value.itemsize)
        return output.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, attention = ctx.saved_tensors
        # Hundreds of queries may add to one pixel, and a sum in half precision would lose most of them.
        total = torch.float64 if value.dtype == torch.float64 else torch.float32
        grad_value = torch.zeros_like(value, dtype=total)
        grad_locations, grad_attention = torch.empty_like(locations), torch.empty_like(attention)
        scales = _scales(ctx.spatial_shapes, value.device)
        tensors = (value, scales, locations, attention, grad_output.contiguous())
        tensors += (grad_value, grad_locations, grad_attention)
        # The widest atomic additions are to grad_value, so its itemsize decides the block's shape.
        block_p = 1 << max(0, attention.shape[-1] - 1).bit_length()
        _launch(_kernels().backward_kernel, tensors, attention, grad_value.itemsize, BLOCK_P=block_p)
        return grad_value.to(value.dtype), None, grad_locations, grad_attention


def sample_by_triton(
    value_BSHD: Tensor, spatial_shapes: SpatialShapes, locations_BQHLPX: Tensor, attention_BQHLP: Tensor
) -> Tensor:
    """`multi_scale_deformable_attention` for inputs that pass `triton_applies`.

    The inputs may differ in type. The output has the type of the value. Samples at infinite or NaN locations are zero.
    """
    shapes = tuple((int(h), int(w)) for h, w in spatial_shapes)
    return _TritonDeformableAttention.apply(value_BSHD, shapes, locations_BQHLPX, attention_BQHLP)
