"""Compares the growth of time and memory with theory, as an input or a run becomes larger.

    python projects/uniperceiver_v2/benchmarks/cost_curves.py [--only queries tasks] [--threads 2] [--quick]
        [--plots FOLDER]

The model has the tiny model's widths (configs/digit_scenes) and random weights. The variables are image size, queries,
candidates, length of captions, batch size and number of tasks. A theory is a polynomial. Its terms are known from the
algorithm: for n queries it is a + b n + c n², as each query attends to all queries. Its coefficients are fitted to the
relative error and are not below 0. The program prints a Markdown table. It also draws a plot for each variable into
output/cost_curves/ or another FOLDER, for example that of a report in docs/reports/. It takes some five minutes on two
cores.

Times are medians. Memory is the peak above the start, with one thread, in a separate process (peak_memory.py). A peak
is the memory of the heaviest moment and not a sum. So it grows only when the growing part has become the heaviest.

"The exponent" is the slope in the doubly logarithmic plot over the upper half of the sizes. The theory's slope stands
beside it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import matplotlib
import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from matplotlib import pyplot
from matplotlib.ticker import LogLocator
from peak_memory import peak_memory
from scipy.optimize import nnls
from torch import nn

import uniperceiver_v2  # noqa: F401  (registers the model)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.files import REPOSITORY, TINY_CONFIG
from uniperceiver_v2.solver import TaskBalancedAdamW
from uniperceiver_v2.tasks.captioning import next_words

PLOTS = REPOSITORY / "output" / "cost_curves"
DEVICE = "cpu"


@dataclass(frozen=True)
class Curve:
    """Work as a function of a size n.

    Attributes:
        title: the name in the table and the plot.
        sizes: the values of n, ascending.
        work: the measured work for an n.
        time, memory: the powers of n in the theory, besides the constant.
    """

    title: str
    sizes: Sequence[int]
    work: Callable[[int], harness.Work]
    time: tuple[int, ...]
    memory: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """A theory's polynomial, fitted to measurements."""

    sizes: np.ndarray
    costs: np.ndarray
    powers: tuple[int, ...]
    coefficients: np.ndarray

    def __call__(self, n: np.ndarray) -> np.ndarray:
        return sum(c * n.astype(float) ** power for c, power in zip(self.coefficients, self.powers))

    def exponents(self) -> tuple[float, float]:
        """The slopes of the measurements and of the theory, over the upper half of the sizes."""
        upper = self.sizes[len(self.sizes) // 2 :]
        costs = self.costs[-len(upper) :]
        return tuple(np.polyfit(np.log(upper), np.log(y), 1)[0] for y in (costs, self(upper)))

    def worst(self) -> float:
        """The largest relative difference between measurements and theory, as a share of the theory."""
        return float(np.max(np.abs(self.costs / self(self.sizes) - 1)))


def fit(sizes: Sequence[int], costs: Sequence[float], powers: tuple[int, ...]) -> Fit:
    """Least squares of the relative error, with coefficients that are not below 0."""
    n, y = np.array(sizes), np.array(costs)
    powers = (0, *powers)
    terms = np.stack([n.astype(float) ** power for power in powers], axis=1) / y[:, None]
    scale = terms.max(axis=0)
    return Fit(n, y, powers, nnls(terms / scale, np.ones(len(n)))[0] / scale)


@functools.cache
def text_encoder_of_long_texts() -> str:
    """A copy of the tiny text encoder's directory, with positions for 512 tokens."""
    folder = Path(tempfile.mkdtemp()) / "text_encoder"
    shutil.copytree(REPOSITORY / "configs" / "digit_scenes" / "text_encoder", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 514}))
    return str(folder)


def build(**settings: Any) -> nn.Module:
    """The tiny model with changed settings of MODEL.UNIPERCEIVER_V2, for example ``REGION__NUM_QUERIES=100``."""
    pairs = {"TEXT_ENCODER__PATH": text_encoder_of_long_texts(), **settings}
    options = [
        x for key, value in pairs.items() for x in (f"MODEL.UNIPERCEIVER_V2.{key.replace('__', '.')}", str(value))
    ]
    torch.manual_seed(0)
    return build_model(load_config(str(TINY_CONFIG), ["MODEL.DEVICE", DEVICE, *options]))


def pictures(count: int, side: int) -> list[dict]:
    return [{"image": torch.randint(256, (3, side, side), dtype=torch.uint8)} for _ in range(count)]


def scenes(count: int, side: int) -> list[dict]:
    """Images of noise with five boxes each."""
    found = pictures(count, side)
    for sample in found:
        corners = torch.rand(5, 2) * 0.6
        boxes = torch.cat((corners, corners + 0.3), dim=1) * side
        masks = torch.zeros(5, side, side, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
            mask[y0:y1, x0:x1] = True
        objects = Instances((side, side), gt_boxes=Boxes(boxes), gt_classes=torch.arange(5), gt_masks=BitMasks(masks))
        sample |= {"task": "detection", "instances": objects, "candidates": ("zero", "one", "two", "three", "four")}
    return found


def training(model: nn.Module, batches: Sequence[list[dict]]) -> harness.Work:
    """Forward and backward passes of batches, one after another. Gradients accumulate."""
    model.train()

    def run() -> None:
        for batch in batches:
            with EventStorage():
                losses = model(batch)
            sum(losses.values()).backward()
        model.zero_grad()

    return run


def detecting(side: int) -> harness.Work:
    model, batch = build().eval(), scenes(1, side)
    return lambda: model(batch)


def detecting_with_queries(count: int) -> harness.Work:
    model, batch = build(REGION__NUM_QUERIES=count).eval(), scenes(1, 256)
    return lambda: model(batch)


def choosing_new(count: int) -> harness.Work:
    """Classification with new names, which have to be encoded."""
    model, salt = build().eval(), itertools.count(10_000)

    def run() -> None:
        names = tuple(f"{next(salt)}" for _ in range(count))
        model([{**x, "task": "classification", "candidates": names} for x in image])

    image = pictures(1, 32)
    return run


def choosing_known(count: int) -> harness.Work:
    model = build().eval()
    names = tuple(f"{i}" for i in range(10_000, 10_000 + count))
    image = [{**x, "task": "classification", "candidates": names} for x in pictures(1, 32)]
    model(image)  # encodes and caches the names
    return lambda: model(image)


def generating(length: int) -> harness.Work:
    """Captions of 8 images, all of the given length."""
    model, images = build().eval(), pictures(8, 96)

    @torch.no_grad()
    def run() -> None:
        encoding, _ = model.image_encoder(model.preprocess(images))
        step, rows = next_words(model, encoding), torch.arange(8, device=DEVICE)
        tokens = torch.full((8,), model.text_encoder.bos_id, device=DEVICE)
        for _ in range(length):
            tokens = step(tokens, rows).argmax(-1)

    return run


def learning_captions(length: int) -> harness.Work:
    """Training on 8 images with one caption each."""
    model = build()
    words = torch.randint(5, model.text_encoder.vocab_size, (8, 1, length - 2))
    framed = torch.nn.functional.pad(words, (1, 0), value=model.text_encoder.bos_id)
    framed = torch.nn.functional.pad(framed, (0, 1), value=model.text_encoder.eos_id).to(DEVICE)
    batch = [{**x, "task": "captioning", "caption_token_ids": list(ids)} for x, ids in zip(pictures(8, 96), framed)]
    return training(model, [batch])


def learning_scenes(count: int) -> harness.Work:
    return training(build(), [scenes(count, 96)])


def iteration_of_tasks(count: int, mixed: bool) -> harness.Work:
    """A training iteration with its step: with the batches of all tasks, or of one of them."""
    model = build()
    tasks = {f"task {i}": (1 / count, 1.0) for i in range(count)}
    optimizer = TaskBalancedAdamW(model.parameters(), lr=1e-6, tasks=tasks)
    batches = [scenes(4, 96) for _ in tasks]
    drawn = itertools.cycle([batches] if mixed else [[batch] for batch in batches])
    names = itertools.cycle(tasks)
    model.train()

    def run() -> None:
        for batch in next(drawn):
            with EventStorage():
                losses = model(batch)
            sum(losses.values()).backward()
        optimizer.step(task=next(names))
        optimizer.zero_grad()

    return run


# All work on an image is linear in its pixels: convolutions, and attention of each token to a few points.
# Queries attend to each other, and so do their proposals. A generated word attends to all words before it.
CURVES = {
    "image_size": [Curve("detecting, side of the image", (96, 128, 192, 256, 384, 512, 768), detecting, (2,), (2,))],
    "queries": [
        Curve("detecting at 256 pixels, queries", (25, 50, 100, 200, 400, 800), detecting_with_queries, (1, 2), (1, 2))
    ],
    "candidates": [
        Curve("choosing among new names", (10, 30, 100, 300, 1000, 3000), choosing_new, (1,), (1,)),
        Curve("choosing among known names", (10, 30, 100, 300, 1000, 3000), choosing_known, (1,), (1,)),
    ],
    "caption_length": [
        Curve("generating, words", (4, 8, 16, 32, 64, 128, 256), generating, (1, 2), (1,)),
        Curve("learning captions, words", (4, 8, 16, 32, 64, 128, 256), learning_captions, (1, 2), (1, 2)),
    ],
    "batch_size": [Curve("learning detection, images", (1, 2, 4, 8, 16, 32), learning_scenes, (1,), (1,))],
    "tasks": [
        Curve("mixed sampling, tasks", (1, 2, 3, 5, 8), lambda n: iteration_of_tasks(n, True), (1,), ()),
        Curve("one task an iteration, of", (1, 2, 3, 5, 8), lambda n: iteration_of_tasks(n, False), (), ()),
    ],
}


def measure(curve: Curve, budget: float) -> tuple[Fit, Fit]:
    """Median milliseconds and peak MiB over the curve's sizes. Sizes alternate, so that a slow minute affects all of
    them."""
    works = {n: curve.work(n) for n in curve.sizes}
    for work in works.values():
        work()
    first = {n: harness.elapsed(work, 1) for n, work in works.items()}
    rounds = max(2, min(15, int(budget / sum(first.values()))))
    times = [{n: harness.elapsed(work, 1) for n, work in works.items()} for _ in range(rounds)]
    milliseconds = [1e3 * statistics.median(t[n] for t in times) for n in curve.sizes]
    memory = [peak_memory(work, harness.settings.on_gpu) / harness.MIB for work in works.values()]
    return fit(curve.sizes, milliseconds, curve.time), fit(curve.sizes, memory, curve.memory)


def formula(powers: tuple[int, ...]) -> str:
    """ "a + b n + c n²" """
    signs = {0: "", 1: " n", 2: " n²"}
    return " + ".join(f"{name}{signs[power]}" for name, power in zip("abc", powers))


def line(curve: Curve, fits: Sequence[Fit]) -> str:
    cells = [curve.title, f"{curve.sizes[0]} to {curve.sizes[-1]}"]
    for found, digits in zip(fits, (1, 0)):
        measured, expected = found.exponents()
        cells += [formula(found.powers), " to ".join(f"{found.costs[i]:.{digits}f}" for i in (0, -1))]
        cells += [f"{measured:.2f} ({expected:.2f})", f"{found.worst():.0%}"]
    return "| " + " | ".join(cells) + " |"


def draw(file: Path, curves: Sequence[Curve], fits: Sequence[tuple[Fit, Fit]]) -> None:
    """Time and memory side by side. Measurements are dots, the theory is dashed."""
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), dpi=90, layout="constrained")
    for axis, label, index in zip(axes, ("milliseconds", "MiB above the start"), (0, 1)):
        for color, (curve, of_curve) in enumerate(zip(curves, fits)):
            found = of_curve[index]
            n = np.geomspace(found.sizes[0], found.sizes[-1], 50)
            axis.plot(found.sizes, found.costs, "o", color=f"C{color}", label=curve.title)
            axis.plot(n, found(n), "--", color=f"C{color}", label=formula(found.powers))
        axis.set(xscale="log", yscale="log", ylabel=label, xlabel=file.stem.replace("_", " "))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(curves[0].sizes, [str(n) for n in curves[0].sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    low = min(f[1].costs.min() for f in fits)
    axes[1].set_ylim(bottom=10 ** math.floor(math.log10(low)))
    axes[0].legend(fontsize=7)
    figure.savefig(file)
    pyplot.close(figure)


def measured(names: Sequence[str], budget: float) -> Iterator[tuple[str, list[tuple[Curve, tuple[Fit, Fit]]]]]:
    for name in names:
        yield name, [(curve, measure(curve, budget)) for curve in CURVES[name]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CURVES, default=list(CURVES), metavar="CURVE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two rounds, and less trustworthy")
    parser.add_argument("--process-time", action="store_true", help="the processor's time: a busy machine")
    parser.add_argument("--plots", type=Path, default=PLOTS, metavar="FOLDER")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.process_time:
        harness.settings.clock = time.process_time
    matplotlib.use("Agg")
    args.plots.mkdir(parents=True, exist_ok=True)
    print(
        "| n | from, to | time | ms | exponent (theory's) | worst | memory | MiB | exponent (theory's) | worst |\n"
        "|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name, found in measured(args.only, 2.0 if args.quick else 15.0):
        print("\n".join(line(curve, fits) for curve, fits in found), flush=True)
        draw(args.plots / f"{name}.png", *zip(*found))


if __name__ == "__main__":
    main()
