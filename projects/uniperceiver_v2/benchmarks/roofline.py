"""A roofline of the heaviest operations of a training iteration: how near each comes to the machine's limits.

    python projects/uniperceiver_v2/benchmarks/roofline.py [--threads 2] [--quick] [--plot FILE]

The operations are those that are heaviest in training_profile.py. Their shapes are those of configs/digit_scenes (8
scenes of 96 pixels, 40 captions), and those of an image of 800 pixels with the paper's widths.

Let W be an operation's number of multiplications and additions, and Q the bytes that it has to move at least: each
input, output and gradient once. Then it takes at least max(W / peak, Q / bandwidth). The peak is that of a large matrix
product, the bandwidth that of a large copy. Both are measured here. "The bound's share" is this lower bound divided by
the measured time. A forward pass with gradients counts three times the operations and bytes of one without. An
operation that is small enough to stay in the cache can be faster than memory, and pass 100%.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import torch
import torch.nn.functional as F
from deformable_attention import CASES, Case, random_inputs
from torch import Tensor, nn

from uniperceiver_v2.modeling.layers import multi_scale_deformable_attention
from uniperceiver_v2.solver import TaskBalancedAdamW

BACKWARD = 3  # operations and bytes of forward with backward, relative to forward


@dataclass
class Operation:
    """Work with a known least cost.

    Attributes:
        run: does the work once.
        flops: its multiplications and additions.
        moved: the bytes that it reads and writes at least.
    """

    name: str
    run: Callable[[], object]
    flops: float
    moved: float


def _both(name: str, call: Callable[..., Tensor], inputs: list[Tensor], flops: float) -> Iterator[Operation]:
    """The forward pass, and the forward pass with the gradients of all inputs."""
    output = call(*inputs)
    moved = sum(x.nbytes for x in (*inputs, output))
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    gradient = torch.randn_like(output)

    @torch.no_grad()
    def forward() -> Tensor:
        return call(*inputs)

    yield Operation(f"{name}, forward", forward, flops, moved)
    yield Operation(
        f"{name}, forward + backward",
        lambda: torch.autograd.grad(call(*leaves), leaves, gradient),
        BACKWARD * flops,
        BACKWARD * moved,
    )


def convolution(name: str, batch: int, channels: int, side: int) -> Iterator[Operation]:
    """A 3 × 3 convolution with as many output channels as input channels."""
    inputs = [torch.randn(batch, channels, side, side), torch.randn(channels, channels, 3, 3)]
    flops = 2.0 * 9 * channels**2 * batch * side**2
    return _both(
        f"convolution, {name}, {batch} × {channels} × {side}²", lambda x, w: F.conv2d(x, w, padding=1), inputs, flops
    )


def group_norm(batch: int, channels: int, side: int) -> Iterator[Operation]:
    inputs = [torch.randn(batch, channels, side, side), torch.ones(channels), torch.zeros(channels)]
    flops = 6.0 * inputs[0].numel()  # for the mean, the variance and the normalised map
    groups = channels // 4
    return _both(
        f"group norm, {batch} × {channels} × {side}²", lambda x, *a: F.group_norm(x, groups, *a), inputs, flops
    )


def feed_forward(name: str, tokens: int, dim: int, width: int) -> Iterator[Operation]:
    """The first product of a feed-forward network, with its bias."""
    inputs = [torch.randn(tokens, dim), torch.randn(width, dim), torch.randn(width)]
    return _both(f"linear, {name}, {tokens} × {dim} → {width}", F.linear, inputs, 2.0 * tokens * dim * width)


def attention(name: str, batch: int, heads: int, tokens: int, width: int) -> Iterator[Operation]:
    inputs = [torch.randn(batch, heads, tokens, width) for _ in range(3)]
    flops = 2.0 * 2 * batch * heads * tokens**2 * width
    return _both(
        f"attention, {name}, {batch} × {heads} × {tokens} × {width}", F.scaled_dot_product_attention, inputs, flops
    )


def deformable_attention(case: Case) -> Iterator[Operation]:
    inputs = list(random_inputs(case, "cpu"))
    flops = 2.0 * 4 * inputs[2].numel() * case.width

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, case.shapes, locations, weights)

    return _both(f"deformable attention, {case.name}", call, inputs, flops)


def optimizer_step(millions: int) -> Iterator[Operation]:
    """A step of TaskBalancedAdamW. It reads parameters, moments and gradients (twice, once for the norm), and writes
    parameters and moments."""
    parameters = [nn.Parameter(torch.randn(1000, 1000)) for _ in range(millions)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer = TaskBalancedAdamW(parameters, tasks={"a": (1.0, 1.0)})
    count = millions * 1e6
    yield Operation(f"TBGN step, {millions}M", lambda: optimizer.step(task="a"), 14 * count, 8 * 4 * count)


def operations() -> Iterator[Operation]:
    cases = {case.name: case for case in CASES}
    yield from convolution("first stage", 8, 32, 24)
    yield from convolution("last stage", 8, 256, 3)
    yield from group_norm(8, 32, 24)
    yield from deformable_attention(cases["tiny encoder, 96 px"])
    yield from feed_forward("captions", 800, 128, 512)
    yield from attention("captions", 40, 4, 20, 32)
    yield from optimizer_step(5)
    yield from convolution("ResNet-50's stage 3", 1, 256, 50)
    yield from deformable_attention(cases["encoder, 800 px"])
    yield from deformable_attention(cases["decoder, 800 px"])
    yield from feed_forward("decoder of the paper", 1000, 768, 3072)
    yield from attention("decoder of the paper", 1, 12, 1000, 64)
    yield from optimizer_step(100)


def seconds_of(operation: Operation, budget: float) -> float:
    """Median seconds of one call."""
    operation.run()
    once = harness.elapsed(operation.run, 1)
    calls = max(1, min(200, int(2e-3 / once)))
    rounds = max(5, min(100, int(budget / (once * calls))))
    return statistics.median(harness.elapsed(operation.run, calls) for _ in range(rounds))


def measured_roof() -> tuple[float, float]:
    """GFLOP/s of a large product and GB/s of a large copy, measured again in each call."""
    harness.machine_peak.cache_clear()
    return harness.machine_peak("cpu", torch.float32), harness.machine_peak("cpu", None)


def draw(file: Path, points: list[tuple[Operation, float]], peak: float, bandwidth: float) -> None:
    """GFLOP/s over operations per byte, below the roof."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), dpi=90, layout="constrained")
    intensity = torch.logspace(-1, 3, 100)
    axis.plot(
        intensity, (intensity * bandwidth).clamp(max=peak), "k-", label=f"{peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s"
    )
    for index, (operation, seconds) in enumerate(points):
        axis.plot(
            operation.flops / operation.moved,
            operation.flops / seconds / 1e9,
            "osD^v"[index // 10],
            color=f"C{index % 10}",
            label=operation.name,
        )
    axis.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=6)
    figure.savefig(file)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="shorter, and less trustworthy")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    roofs = [measured_roof()]
    points = [(operation, seconds_of(operation, 0.2 if args.quick else 1.0)) for operation in operations()]
    roofs.append(measured_roof())  # disturbances can only lower a measured roof, so the larger one counts
    peak, bandwidth = map(max, zip(*roofs))
    print(f"{harness.describe(harness.Report(harness.machine()))}: {peak:.0f} GFLOP/s, {bandwidth:.1f} GB/s\n")
    print("| operation | ms | MFLOP | MB | operations a byte | bound by | GFLOP/s | GB/s | the bound's share |")
    print("|---|---:|---:|---:|---:|---|---:|---:|---:|", flush=True)
    for operation, seconds in points:
        bounds = {"products": operation.flops / peak / 1e9, "memory": operation.moved / bandwidth / 1e9}
        limit = max(bounds, key=bounds.__getitem__)
        print(
            f"| {operation.name} | {1e3 * seconds:.3g} | {operation.flops / 1e6:.4g} | {operation.moved / 1e6:.3g} "
            f"| {operation.flops / operation.moved:.2g} | {limit} | {operation.flops / seconds / 1e9:.3g} "
            f"| {operation.moved / seconds / 1e9:.3g} | {bounds[limit] / seconds:.0%} |",
            flush=True,
        )
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(args.plot, points, peak, bandwidth)


if __name__ == "__main__":
    main()
