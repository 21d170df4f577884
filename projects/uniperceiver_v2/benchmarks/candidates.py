"""The cost of 1,000 candidate names in classification, beside encoding the image alone.

Both sides run the tiny model of digit_scenes in evaluation. In this model, names cost most relative to the image. The
image alone is its encoding and the representation of <SPE>. Classification adds the likelihoods of the names. Their
directions are encoded in the first batch and kept. The rows "not cached" encode the names in each batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import harness
import torch
from detectron2.modeling import build_model

import uniperceiver_v2  # noqa: F401  (fills the registries)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.files import TINY_CONFIG

NAMES = 1000


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    torch.manual_seed(0)
    model = build_model(load_config(str(TINY_CONFIG), ["MODEL.DEVICE", args.device], training=False)).eval()
    for batch, side in ((1, 96), (16, 32), (16, 96)):
        # New strings in each batch, as a data loader's worker sends them: equal, but not the same objects.
        images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)

        def classify(images: torch.Tensor = images) -> list[dict]:
            names = tuple(f"{number} red ones" for number in range(NAMES))
            return model([{"task": "digits", "image": image, "candidates": names} for image in images])

        @torch.no_grad()
        def image_alone(images: torch.Tensor = images) -> torch.Tensor:
            encoding, _ = model.image_encoder(model.preprocess([{"image": image} for image in images]))
            return model.decode_image(encoding)

        def uncached(classify=classify) -> list[dict]:
            model._candidates.clear()
            return classify()

        shape = f"{batch} x {side} pixels, {NAMES:,} names"
        yield harness.compare(f"classification, {shape}", classify, image_alone, peer_name="image alone", at_most=1.05)
        if not args.quick:
            yield harness.compare(f"classification, {shape}, cached", classify, uncached, peer_name="not cached")


if __name__ == "__main__":
    harness.main(__doc__, rows)
