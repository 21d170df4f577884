"""How much an image's result depends on a wider image in its batch.

    python projects/uniperceiver_v2/experiments/neighbours.py zoo/digit_scenes_small/model.safetensors
        [--config-file zoo/digit_scenes_small/config.yaml] [--images 20] [--wider 1.5]

Batches of training may hold images of several sizes. The narrower ones are padded, over which GroupNorm averages, and
at whose edge convolutions see zeros. Prints by how much of their norm an image's encodings change beside a wider
neighbour, on average and at most. Batches of evaluation hold images of one size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from probes import load_model
from torch import Tensor

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_test_loader
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.modeling.model import UniPerceiver


@torch.no_grad()
def encodings(model: UniPerceiver, batch: list[dict]) -> dict[str, Tensor]:
    """Of the first image of a batch: the means of its global tokens and of its proposal tokens, and its feature."""
    encoding = model.image_encoder(model.preprocess(batch))[0]
    tokens = encoding.global_tokens[0][encoding.global_valid[0]]
    return {
        "global tokens": tokens.mean(0),
        "proposal tokens": encoding.proposal_tokens[0].mean(0),
        "image's feature": model.decode_image(encoding)[0],
    }


def changes(model: UniPerceiver, images: list[Tensor], wider: float) -> Iterator[dict[str, float]]:
    """For each image the change of its encodings beside a neighbour, in percent of their norm."""
    for image in images:
        size = (image.shape[1], round(wider * image.shape[2]))
        neighbour = torch.nn.functional.interpolate(image[None].float(), size).to(image.dtype)[0]
        alone = encodings(model, [{"image": image}])
        beside = encodings(model, [{"image": image}, {"image": neighbour}])
        yield {name: 100 * float((beside[name] - own).norm() / own.norm()) for name, own in alone.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", help="a checkpoint")
    parser.add_argument("--config-file", default=str(TINY_CONFIG))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--wider", type=float, default=1.5, help="the neighbour's width, in widths of the image")
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", args.weights], training=False)
    model = load_model(cfg).eval()
    records = (record for batch in build_test_loader(cfg, "digit_scenes_test") for record in batch)
    images = [record["image"] for record, _ in zip(records, range(args.images))]
    found = list(changes(model, images, args.wider))
    for name in found[0]:
        values = [change[name] for change in found]
        print(f"{name}: {sum(values) / len(values):.1f}% on average, {max(values):.1f}% at most")


if __name__ == "__main__":
    main()
