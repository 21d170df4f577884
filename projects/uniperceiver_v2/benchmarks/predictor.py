"""The predictor beside the bare model: what reading, resizing and typed answers cost. And how soon it answers.

    python projects/uniperceiver_v2/benchmarks/predictor.py [--quick]

Both detect with the tiny configuration and random weights, and make the 100 best instances with their masks. The model
gets tensors that are resized already; the predictor gets arrays, or files.

The last row is a whole process, from its start until the zoo's model has answered about a file. It should take less
than five seconds on two cores. Beside it stands a process that imports the libraries and ends.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image

from uniperceiver_v2 import Predictor
from uniperceiver_v2.config import load_config
from uniperceiver_v2.files import TINY_CONFIG

LIBRARIES = "import cv2, scipy.optimize, torch, transformers"
FIRST_ANSWER = (
    "import sys; from uniperceiver_v2 import Predictor; "
    "print(Predictor.from_zoo('digit_scenes/small', device=sys.argv[1]).detect(sys.argv[2]))"
)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    overrides = ["MODEL.DEVICE", harness.settings.device]
    cfg = load_config(str(TINY_CONFIG), overrides, training=False, datasets=False)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    predictor = Predictor.from_model(model, cfg)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for count in (1,) if args.quick else (1, 8):
            arrays = [random.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(count)]
            paths = [str(Path(folder) / f"{place}.png") for place in range(count)]
            for path, array in zip(paths, arrays):
                Image.fromarray(array).save(path)
            inputs = [
                {
                    "image": torch.from_numpy(array.transpose(2, 0, 1).copy()),
                    "height": 96,
                    "width": 96,
                    "candidates": NAMES,
                }
                for array in arrays
            ]

            def bare(inputs: list[dict] = inputs) -> None:
                assert len(model(inputs)[0]["instances"]) == 100

            def ours(images: list = arrays) -> None:
                found = predictor.detect(images, NAMES, threshold=0)
                assert sum(len(one.instances) for one in found) == 100 * len(images)

            what = f"{count} image" + "s" * (count > 1)
            yield harness.compare(f"Predictor.detect, {what}, arrays", ours, bare, peer_name="model", at_most=1.1)
            yield harness.compare(
                f"Predictor.detect, {what}, files",
                lambda paths=paths: ours(paths),
                bare,
                peer_name="model",
                at_most=1.1,
            )
        yield harness.compare(
            "first answer of a process",
            lambda: process(FIRST_ANSWER, harness.settings.device, paths[0]),
            lambda: process(LIBRARIES),
            peer_name="import of the libraries",
        )


def process(code: str, *arguments: str) -> None:
    """
    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    harness.main(__doc__, rows)
