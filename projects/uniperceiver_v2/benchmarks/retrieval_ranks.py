"""Retrieval among 5,000 images and 25,000 captions with given features, beside the one matrix product that it needs.

    python projects/uniperceiver_v2/benchmarks/retrieval_ranks.py [--quick]

Retrieval has both directions and all ranks, with ties (evaluation/retrieval_ranks.py). Features have 768 values, as in
the paper's base model. Another row has 96 values, as in the tiny model. With --quick there are a fifth of the images
and captions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import harness
import torch
from torch import Tensor
from torch.nn.functional import normalize

from uniperceiver_v2.evaluation.retrieval_ranks import retrieve

PER_IMAGE = 5
GIB = 2**30


def features(images: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features of images [N, width] and of captions near them [5 N, width], and the index of each caption's image [5
    N]."""
    image_of = torch.arange(images, device=device).repeat_interleave(PER_IMAGE)
    pictures = normalize(torch.randn(images, width, device=device), dim=1)
    captions = normalize(pictures[image_of] + 6 * torch.randn(len(image_of), width, device=device) / width**0.5, dim=1)
    return pictures, captions, image_of


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    images = 1000 if args.quick else 5000
    for width in (768, 96):
        pictures, captions, image_of = features(images, width, args.device)
        product = torch.empty(images, len(captions), device=args.device)
        name = f"retrieval, {images:,} × {len(captions):,}, {width} values"
        yield harness.compare(
            name,
            lambda: retrieve(pictures, captions, image_of),  # noqa: B023  (run before the next width)
            lambda: torch.mm(pictures, captions.T, out=product),  # noqa: B023
            peer_name="one matrix product",
            at_most=2.0 if width == 768 else None,
            flops=2 * pictures.numel() * len(captions),
        )
        yield harness.compare_memory(
            f"{name}: memory above the features",
            lambda: retrieve(pictures, captions, image_of),  # noqa: B023
            lambda: torch.ones(GIB // 4, device=args.device),
            peer_name="1 GiB",
            at_most=1.0,
        )


if __name__ == "__main__":
    harness.main(__doc__, rows)
