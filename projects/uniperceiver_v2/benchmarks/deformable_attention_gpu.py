"""Deformable attention on a GPU: the Triton kernels beside the plain PyTorch form.

    python projects/uniperceiver_v2/benchmarks/deformable_attention_gpu.py --device cuda

The case is the encoder's attention over two images of 800 × 1,066 pixels, with 8 heads of 32 channels and 4 scales of 4
points. Queries sample around their own pixel. There are rows for the forward pass alone, and for forward with backward.
The last column is the bandwidth as if each input were read once and each result written once, and its share of a copy's
bandwidth. It shows how far the kernels are from the limit of the memory. Values have the dtype in the row's name.
Locations and weights are float32, as under autocast. Without a GPU there are no rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from unittest import mock

import harness
import torch
from torch import Tensor

from uniperceiver_v2.modeling.layers import deformable_attention
from uniperceiver_v2.modeling.layers.deformable_attention_triton import sample_by_triton, triton_applies

STRIDES = (8, 16, 32, 64)
HEADS, WIDTH, POINTS = 8, 32, 4


def least_bytes(value: Tensor, locations: Tensor, attention: Tensor, backward: bool) -> int:
    """The bytes that must move at least: value, locations, weights and output once. The backward pass moves them
    once more, and the gradients of value, locations and weights."""
    B, Q, H = locations.shape[:3]
    output = B * Q * H * value.shape[-1] * value.itemsize
    inputs = value.nbytes + locations.nbytes + attention.nbytes
    return inputs + output + (2 * inputs + output if backward else 0)


def encoder_inputs(
    size: tuple[int, int], batch: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """Random value, shapes, locations and weights of the encoder. ``size`` is (height, width) of the images in
    pixels."""
    shapes = [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in STRIDES]
    centres = torch.cat(
        [
            torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij"), -1)
            .flip(-1)
            .flatten(0, 1)
            for h, w in shapes
        ]
    ).to(device)
    Q = len(centres)
    pixels = torch.tensor([(w, h) for h, w in shapes], device=device)[:, None]
    offsets = 2 * torch.randn(batch, Q, HEADS, len(shapes), POINTS, 2, device=device) / pixels
    weights = torch.randn(batch, Q, HEADS, len(shapes) * POINTS, device=device).softmax(-1)
    value = torch.randn(batch, Q, HEADS, WIDTH, device=device).to(dtype)
    return value, shapes, centres[:, None, None, None] + offsets, weights.unflatten(-1, (len(shapes), POINTS))


def plain(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, attention: Tensor) -> Tensor:
    """The form that is used without Triton. Autocast gives the inputs a common dtype."""
    with (
        mock.patch.object(deformable_attention, "triton_applies", lambda *inputs: False),
        torch.autocast(value.device.type, dtype=value.dtype, enabled=value.dtype != torch.float32),
    ):
        return deformable_attention.multi_scale_deformable_attention(value, shapes, locations, attention)


def repetition(sample: Callable[..., Tensor], inputs: tuple, backward: bool) -> Callable[[], object]:
    """One call of a form, with or without gradients."""
    value, shapes, locations, attention = inputs
    if not backward:
        return torch.no_grad()(lambda: sample(value, shapes, locations, attention))
    leaves = [x.detach().requires_grad_() for x in (value, locations, attention)]
    with torch.no_grad():
        gradient = torch.randn_like(sample(value, shapes, locations, attention))

    def run() -> object:
        return torch.autograd.grad(sample(leaves[0], shapes, *leaves[1:]), leaves, gradient)

    return run


def measure(args: argparse.Namespace, size: tuple[int, int], batch: int) -> Iterator[harness.Row]:
    """The rows for images of one size."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        inputs = encoder_inputs(size, batch, dtype, args.device)
        for backward in (False, True):
            ours, peer = (repetition(form, inputs, backward) for form in (sample_by_triton, plain))
            yield harness.compare(
                f"deformable attention, {size[0]} × {size[1]} pixels, {str(dtype).removeprefix('torch.')}, "
                f"{'forward + backward' if backward else 'forward'}, Triton",
                ours,
                peer,
                peer_name="our PyTorch form",
                at_least=4.0,
                moved=least_bytes(inputs[0], *inputs[2:], backward),
            )


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    if not args.device.startswith("cuda"):
        print("No rows for Triton's deformable attention: it needs --device cuda.")
        return
    probe = torch.zeros(1, 1, 1, 1, device=args.device)
    if not triton_applies(probe, probe, probe):
        print("No rows for Triton's deformable attention: Triton is not installed.")
        return
    yield from measure(args, (800, 1066), 2)


if __name__ == "__main__":
    harness.main(__doc__, rows)
