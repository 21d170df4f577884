"""The costs of the Conditional MoE and of the caches: times of the unified decoder's parts on one core.

    OMP_NUM_THREADS=1 python projects/uniperceiver_v2/benchmarks/unified_decoder.py [--repeats 15]

Prints two Markdown tables. The first is about the feed-forward network over <SPE> and L tokens of an image (two classes
of attributes) or over the image alone (one class). It compares a dense network, experts with the same number of active
operations, and these experts merged. The last two are ratios to the dense network, and runs alternate. The second table
is about a step of generation after the tokens of an image, in milliseconds. Beams are reordered in each step. In the
column "anew" each step decodes the whole sequence again. All times are processor times, so that other programs on the
machine matter little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    Attributes,
    ConditionalFeedForward,
    DenseFeedForward,
    Segment,
    UnifiedDecoder,
    attribute_classes,
)

SPE, IMAGE, CAPTION = attribute_classes([IMAGE_TEXT_TO_TEXT])[:3]
EXPERTS, ACTIVE = 8, 2
SHAPES = ((1, 300), (1, 1000), (16, 60))  # (B, L)
SIZES = ((128, 512), (768, 3072))  # (d, active width)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each run, and the median ratio to the first run."""
    for run in runs.values():
        run()
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    first = next(iter(runs))
    return {
        name: (1e3 * statistics.median(t[name] for t in times), statistics.median(t[name] / t[first] for t in times))
        for name in runs
    }


def feed_forward_runs(dim: int, width: int, layout: list[tuple[int, Attributes]], batch: int, gradients: bool) -> dict:
    experts = ConditionalFeedForward(dim, width // ACTIVE, EXPERTS, ACTIVE)
    networks = {"dense": DenseFeedForward(dim, width), "experts": experts, "merged": experts.merge([SPE, IMAGE])}
    hidden = torch.randn(batch, sum(length for length, _ in layout), dim, requires_grad=gradients)

    def run(network: torch.nn.Module) -> None:
        with torch.set_grad_enabled(gradients):
            output = network(hidden, layout)
        if gradients:
            output.sum().backward()
            network.zero_grad()

    return {name: lambda network=network: run(network) for name, network in networks.items()}


def feed_forward_table(repeats: int) -> None:
    print("| d | B | L | pass | classes | dense ms | experts | merged |\n|---|---|---|---|---|---|---|---|")
    for dim, width in SIZES:
        for batch, length in SHAPES:
            for gradients in (False, True):
                for layout in ([(1, SPE), (length, IMAGE)], [(length, IMAGE)]):
                    found = compare(feed_forward_runs(dim, width, layout, batch, gradients), repeats)
                    name = "forward, backward" if gradients else "forward"
                    ratios = " | ".join(f"{found[kind][1]:.2f}" for kind in ("experts", "merged"))
                    print(
                        f"| {dim} | {batch} | {length} | {name} | {len(layout)} | {found['dense'][0]:.2f} | {ratios} |",
                        flush=True,
                    )


def generate(decoder: UnifiedDecoder, dim: int, batch: int, beams: int, length: int, steps: int) -> float:
    """Seconds of a step of generation."""
    rows = torch.arange(batch).repeat_interleave(beams)
    cache = decoder.begin([Segment(torch.randn(batch, length, dim), None, IMAGE)])
    if beams > 1:
        cache = cache.select(rows)

    def run() -> None:
        nonlocal cache
        for _ in range(steps):
            decoder.extend(cache, torch.randn(batch * beams, 1, dim), CAPTION)
            if beams > 1:
                cache = cache.select(rows * beams + torch.randint(beams, rows.shape))

    return seconds(run) / steps


@torch.no_grad()
def generation_table(repeats: int, steps: int = 20) -> None:
    print(
        "\n| d | layers | B | beams | L | dense ms | experts | merged | anew |\n|---|---|---|---|---|---|---|---|---|"
    )
    for (dim, width), depth, heads, length in zip(SIZES, (2, 6), (4, 12), (60, 300)):
        shape = {"depth": depth, "dim": dim, "heads": heads}
        decoders = {"dense": UnifiedDecoder(**shape, ffn_dim=width)}
        for name in ("experts", "merged"):
            decoders[name] = UnifiedDecoder(**shape, ffn_dim=width // ACTIVE, experts=EXPERTS, active_experts=ACTIVE)
        decoders["merged"].merge_experts([SPE, IMAGE, CAPTION])
        for batch, beams in ((1, 1), (1, 3), (16, 1), (16, 3)):
            image = Segment(torch.randn(batch * beams, length, dim), None, IMAGE)
            caption = Segment(torch.randn(batch * beams, steps // 2, dim), None, CAPTION)
            times = {
                name: statistics.median(generate(d, dim, batch, beams, length, steps) for _ in range(repeats))
                for name, d in decoders.items()
            }
            times["anew"] = seconds(partial(decoders["dense"], [image, caption]))
            cells = " | ".join(f"{1e3 * t:.2f}" for t in times.values())
            print(f"| {dim} | {depth} | {batch} | {beams} | {length} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    feed_forward_table(repeats)
    generation_table(max(1, repeats // 5))


if __name__ == "__main__":
    main()
