"""The Conditional MoE's feed-forward network beside a dense one with the same number of active operations.

A sequence holds <SPE>, which has its own experts, and the tokens of an image. Global tokens and proposals have the same
attributes. A caption is a separate call, as in the decoder. The dense network is k times as wide as an expert. In the
rows "merged" the experts are merged as for deployment, into a dense network for each class of attributes. They show the
cost of the classes without a router.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence

import harness
import torch
from torch import Tensor, nn

from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    Attributes,
    ConditionalFeedForward,
    DenseFeedForward,
    attribute_classes,
)

SPE, IMAGE, CAPTION = attribute_classes([IMAGE_TEXT_TO_TEXT])[:3]
ACTIVE = 2
MODELS = (("tiny", 128, 256, 4), ("base", 768, 3072, 8))  # name, d, width of an expert, experts
BATCHES = {"tiny": ((8, 40, 12), (40, 40, 12)), "base": ((1, 320, 20), (4, 320, 20))}  # B, image's, caption's tokens


def passes_of(
    network: nn.Module, calls: Sequence[tuple[Tensor, Sequence[tuple[int, Attributes]]]], train: bool
) -> Callable[[], None]:
    """One pass of all calls, with the backward pass if ``train``."""

    def run() -> None:
        for hidden, layout in calls:
            with torch.set_grad_enabled(train):
                output = network(hidden, layout)
            if train:
                output.backward(hidden.detach())
        if train:
            network.zero_grad()
            for hidden, _ in calls:
                hidden.grad = None

    return run


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    for (name, dim, width, experts), train in itertools.product(MODELS, (False, True)):
        if args.quick and name == "base":
            continue
        torch.manual_seed(0)
        routed = ConditionalFeedForward(dim, width, experts, ACTIVE).to(args.device)
        dense = DenseFeedForward(dim, ACTIVE * width).to(args.device)
        merged, what = routed.merge([SPE, IMAGE, CAPTION]), "forward + backward" if train else "forward"
        for batch, image, caption in BATCHES[name]:
            layouts = [(1, SPE), (image, IMAGE)], [(caption, CAPTION)]
            calls = [
                (torch.randn(batch, sum(n for n, _ in layout), dim, device=args.device, requires_grad=train), layout)
                for layout in layouts
            ]
            count = batch * (1 + image + caption)
            for kind, network, target in (("", routed, 1.1), (", merged", merged, None)):
                yield harness.compare(
                    f"{ACTIVE} of {experts} experts{kind}, {name}, {what}, batch {batch}",
                    *(passes_of(either, calls, train) for either in (network, dense)),
                    peer_name="a dense network",
                    at_most=target,
                    flops=(3 if train else 1) * 2 * 2 * count * dim * ACTIVE * width,
                )


if __name__ == "__main__":
    harness.main(__doc__, rows)
