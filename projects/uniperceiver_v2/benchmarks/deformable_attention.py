"""Deformable attention beside Hugging Face's in pure PyTorch: forward, and forward with backward.

    python projects/uniperceiver_v2/benchmarks/deformable_attention.py [--threads 2] [--quick] [--device cuda]

Values, weights and locations are random. In the rows "encoder" every pixel of four scales (strides 8 to 64) samples
around itself. In the rows "decoder" 300 queries sample in boxes. There are 8 heads of width 32 with 4 points. "tiny" is
the model of digit_scenes: width 16, 2 points, a batch of 8. The operations are those of the weighted sums over 4
corners, and of their two transposes in the backward pass. The bytes count each input, output and gradient once. The
gathered rows are not counted, as they come from the caches. Their bytes would be four times the number of samples times
the width of a head.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import harness
import torch
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from uniperceiver_v2.modeling.layers import multi_scale_deformable_attention

HEADS = 8
STRIDES = (8, 16, 32, 64)
PEER = "Hugging Face, pure PyTorch"


@dataclass
class Case:
    """A shape. Without a number of queries, each pixel is a query."""

    name: str
    batch: int
    pixels: int
    queries: int | None
    width: int = 32
    points: int = 4

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(-(-self.pixels // stride),) * 2 for stride in STRIDES]


CASES = [
    Case("tiny encoder, 96 px", 8, 96, None, 16, 2),
    Case("tiny decoder, 96 px", 8, 96, 100, 16, 2),
    Case("encoder, 96 px", 2, 96, None),
    Case("decoder, 96 px", 2, 96, 300),
    Case("encoder, 320 px", 2, 320, None),
    Case("decoder, 320 px", 2, 320, 300),
    Case("encoder, 800 px", 1, 800, None),
    Case("decoder, 800 px", 1, 800, 300),
]


def random_inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (within some two pixels, or within a box) and attention."""
    levels = len(STRIDES)
    tokens = sum(height * width for height, width in case.shapes)
    value = torch.randn(case.batch, tokens, HEADS, case.width)
    if case.queries is None:
        centres = torch.cat([_centres(height, width) for height, width in case.shapes])[None, :, None, None, None]
        reach = 2 / torch.tensor([(w, h) for h, w in case.shapes])[:, None]
    else:
        centres = torch.rand(case.batch, case.queries, 1, 1, 1, 2)
        reach = 0.15 * torch.rand(case.batch, case.queries, 1, 1, 1, 2)
    queries = centres.shape[1]
    locations = centres + reach * torch.randn(case.batch, queries, HEADS, levels, case.points, 2)
    attention = torch.randn(case.batch, queries, HEADS, levels * case.points).softmax(-1)
    return value.to(device), locations.to(device), attention.unflatten(-1, (levels, case.points)).to(device)


def _centres(height: int, width: int) -> Tensor:
    xs, ys = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).flatten(0, 1)


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    module = MultiScaleDeformableAttention()
    for case in CASES:
        inputs = random_inputs(case, args.device)
        gradient = torch.randn_like(multi_scale_deformable_attention(inputs[0], case.shapes, *inputs[1:]))

        def ours(value: Tensor, locations: Tensor, attention: Tensor, shapes=case.shapes) -> Tensor:
            return multi_scale_deformable_attention(value, shapes, locations, attention)

        def peer(value: Tensor, locations: Tensor, attention: Tensor, shapes=case.shapes) -> Tensor:
            return module(value, None, shapes, None, locations, attention, 64)

        flops = 2.0 * 4 * inputs[2].numel() * case.width
        moved = sum(x.nbytes for x in (*inputs, gradient))
        yield harness.compare(
            f"deformable attention, {case.name}, forward",
            *(_forward(call, inputs) for call in (ours, peer)),
            peer_name=PEER,
            at_least=3.0,
            flops=flops,
            moved=moved,
        )
        yield harness.compare(
            f"deformable attention, {case.name}, forward + backward",
            *(_with_backward(call, inputs, gradient) for call in (ours, peer)),
            peer_name=PEER,
            at_least=1.5,
            flops=3 * flops,
            moved=3 * moved,  # once in the forward pass; the backward pass reads all again and writes gradients
        )


def _forward(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> Tensor:
        return call(*inputs)

    return run


def _with_backward(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], gradient: Tensor) -> Callable[[], object]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(call(*leaves), leaves, gradient)


if __name__ == "__main__":
    harness.main(__doc__, rows)
