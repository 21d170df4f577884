"""Parameters of the joint models by part: in training, in deployment, and with merged experts.

    python tools/count_parameters.py [KEY VALUE ...]

Prints a Markdown table for each model of configs/joint, in millions. "deployed" lacks what only training uses. "merged"
has a dense network for each class of tokens in place of the experts (`UnifiedDecoder.merge_experts`): once for the
classes of detection, classification and retrieval, once for all tasks of the paper. The paper's figures stand beside.
Weights are not needed: sizes are those of the published parts, and parameters are on the meta device.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "projects/uniperceiver_v2/benchmarks"))
import stand_ins

from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    TEXT_TO_TEXT,
    UnifiedDecoder,
    attribute_classes,
)

PAPER = {"swin_base": 308e6, "swin_large": 446e6}
PARTS = {
    "backbone": ("image_encoder.backbone",),
    "region network": ("image_encoder.regions",),
    "fusion and global tokens": ("image_encoder",),
    "text encoder": ("text_encoder",),
    "decoder and temperature": ("decoder", "likelihood"),
}
TRAINING_ONLY = ("image_encoder.regions.denoising_content", "image_encoder.regions.select.one_to_many")
MERGED = {
    "merged, image to text": [IMAGE_TO_TEXT],
    "merged, all": [IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT, TEXT_TO_TEXT],
}
Counts = dict[str, Counter[str]]  # the parameters of each part, by the column of the table


def count(cfg: CfgNode) -> Counts:
    """The numbers of a configuration's parameters."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    found = {"training": parts_of(model), "deployed": parts_of(model, TRAINING_ONLY)}
    if cfg.MODEL.UNIPERCEIVER_V2.DECODER.EXPERTS:
        for column, tasks in MERGED.items():
            decoder = UnifiedDecoder(cfg)  # with values, as these decide the routes
            report = decoder.merge_experts(attribute_classes(tasks))
            found[column] = found["deployed"].copy()
            found[column]["decoder and temperature"] += report.parameters_after - report.parameters_before
    return found


def parts_of(model: nn.Module, without: tuple[str, ...] = ()) -> Counter[str]:
    counts: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    for name, parameter in model.named_parameters():
        if not name.startswith(without):
            counts[next(part for part, prefixes in PARTS.items() if name.startswith(prefixes))] += parameter.numel()
    return counts


def table(model: str, counts: Counts) -> str:
    columns = list(counts)
    lines = [f"| {model} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for part in PARTS:
        lines.append(f"| {part} | " + " | ".join(f"{counts[c][part] / 1e6:.1f}" for c in columns) + " |")
    totals = [counts[column].total() for column in columns]
    lines.append("| **all** | " + " | ".join(f"**{total / 1e6:.1f}**" for total in totals) + " |")
    if model in PAPER:
        paper = PAPER[model]
        cells = (f"{total / paper - 1:+.1%}" for total in totals)
        lines.append(f"| beside the paper's {paper / 1e6:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for model in stand_ins.MODELS:
            cfg = stand_ins.joint_config(model, Path(folder), args.options)
            print(table(model, count(cfg)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
