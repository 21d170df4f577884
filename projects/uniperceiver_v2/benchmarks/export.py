"""Exported files in onnxruntime beside PyTorch: time and memory of detection and captions, the zoo's model on a CPU.

    python projects/uniperceiver_v2/benchmarks/export.py [--quick]

Both sides detect with masks, or write a caption, of the same pixels. Memory is what a process needs to load a model and
to detect in one image, without Python and its modules.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import numpy as np
import torch
from PIL import Image

from uniperceiver_v2 import Predictor
from uniperceiver_v2.export import PRECISIONS, Detector, Exported, export

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import ask_onnx

MODEL = "digit_scenes/small"


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    if harness.settings.on_gpu:
        return  # the package onnxruntime computes on CPUs
    predictor = Predictor.from_zoo(MODEL, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        export(predictor, folder, trials=0)
        yield from memory(predictor, Path(folder))
        yield from detection(predictor, Path(folder), args)
        yield from captions(predictor, folder, args)


def pictures(count: int, side: int) -> np.ndarray:
    """Noise in large pixels, uint8 [count,side,side,3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    resized = [Image.fromarray(x).resize((side, side), Image.Resampling.BILINEAR) for x in coarse]
    return np.stack([np.asarray(x) for x in resized])


def samples(count: int, labels: tuple[str, ...]) -> list[dict]:
    return [
        {"image": torch.from_numpy(x.transpose(2, 0, 1).copy()), "height": 96, "width": 96, "candidates": labels}
        for x in pictures(count, 128)
    ]


def memory(predictor: Predictor, folder: Path) -> Iterator[harness.Row]:
    inputs = samples(1, predictor.labels())

    def pytorch() -> object:
        with torch.no_grad():
            return Predictor.from_zoo(MODEL, device="cpu").model(inputs)

    for precision in PRECISIONS:

        def ours(precision: str = precision) -> object:
            return Detector(Exported(folder, precision, threads=1), predictor)(inputs)

        yield harness.compare_memory(
            f"detect, load and 1 image, onnxruntime {precision}", ours, pytorch, peer_name="PyTorch"
        )


def detection(predictor: Predictor, folder: Path, args: argparse.Namespace) -> Iterator[harness.Row]:
    for count in (1,) if args.quick else (1, 8):
        inputs = samples(count, predictor.labels())
        for precision in PRECISIONS:
            detector = Detector(Exported(folder, precision, args.threads), predictor)
            what = f"detect, {count} image{'s' * (count > 1)}, onnxruntime {precision}"
            yield harness.compare(
                what,
                lambda detector=detector, inputs=inputs: detector(inputs),
                lambda inputs=inputs: predictor.model(inputs),
                peer_name="PyTorch",
                at_least=1.0 if precision == "fp32" else None,
            )


def captions(predictor: Predictor, folder: str, args: argparse.Namespace) -> Iterator[harness.Row]:
    image = Image.fromarray(pictures(1, 96)[0])
    for precision in PRECISIONS:
        model = ask_onnx.Model(folder, precision, args.threads)
        yield harness.compare(
            f"caption, 1 image, greedy, onnxruntime {precision}",
            lambda model=model: model.caption(model.look(image), beams=1),
            lambda: predictor.caption(image, beams=1),
            peer_name="PyTorch",
            at_least=1.0 if precision == "fp32" else None,
        )


if __name__ == "__main__":
    harness.main(__doc__, rows)
