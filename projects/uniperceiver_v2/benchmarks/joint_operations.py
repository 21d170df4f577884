"""Operations of a training of configs/joint, counted without computing them.

    python projects/uniperceiver_v2/benchmarks/joint_operations.py [--models r50 swin_base swin_large] [--ranks 32]

The first table has the forward pass of each task: TFLOP of an image (or text), and TFLOP of the candidates, which the
ranks share in each iteration (`CANDIDATES.SPLIT`), or else each encodes for itself. Parameters and activations are on
the meta device, where PyTorch counts products and convolutions. What only training has is not counted: denoising
queries and losses.

The second table has the whole run. A backward pass counts twice its forward pass, and a part with activation
checkpointing passes forwards twice. Experts are counted as the dense network of the same width.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import stand_ins
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT, IMAGE_TO_TEXT, TEXT_TO_TEXT, Attributes, Segment
from uniperceiver_v2.modeling.model import UniPerceiver
from uniperceiver_v2.solver.build import sampling_ratios
from uniperceiver_v2.tasks.captioning import CAPTION

TOKENS = {"category": 4, "class": 10, "word": 3, "caption": 14, "text": 128}  # of a text, <s> and </s> included
Parts = Counter[str]  # operations of the parts that may have activation checkpointing


class Counted:
    """A model on the meta device, and the operations of what it encodes."""

    def __init__(self, cfg: CfgNode):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "meta"
        decoder = cfg.MODEL.UNIPERCEIVER_V2.DECODER
        # A route of experts is a value, which the meta device does not have.
        decoder.FFN_DIM, decoder.EXPERTS = decoder.FFN_DIM * max(1, decoder.ACTIVE_EXPERTS * bool(decoder.EXPERTS)), 0
        with torch.device("meta"):
            self.model: UniPerceiver = build_model(cfg).eval()
        self._images: dict[int, tuple[Parts, object]] = {}

    def image(self, side: int) -> tuple[Parts, object]:
        """Of a square image, and its encoding."""
        if side not in self._images:
            images = ImageList(torch.zeros(1, 3, side, side, device="meta"), [(side, side)])
            backbone, _ = operations(lambda: self.model.image_encoder.backbone(images.tensor))
            whole, (encoding, _) = operations(lambda: self.model.image_encoder(images))
            self._images[side] = Counter(backbone=backbone, region_network=whole - backbone), encoding
        return self._images[side]

    def texts(self, count: int, length: int, causal: bool = False) -> tuple[Parts, Tensor]:
        """Of texts in the text encoder, and their tokens."""
        ids = torch.zeros(count, length, dtype=torch.long, device="meta")
        found, tokens = operations(lambda: self.model.text_encoder(ids, None, causal))
        return Counter(text_encoder=found), tokens

    def candidates(self, count: int, length: int) -> Parts:
        parts, tokens = self.texts(count, length)
        target = Segment(tokens, None, Attributes("text", "target", IMAGE_TO_TEXT))
        return parts + self.decoded(lambda: self.model.decoder.read_spe([target]))

    def decoded(self, work: Callable[[], object]) -> Parts:
        return Counter(decoder=operations(work)[0])


def operations(work: Callable[[], object]) -> tuple[int, object]:
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops(), result


def of_task(counted: Counted, cfg: CfgNode, task: str) -> tuple[Parts, Parts]:
    """Forward operations of an image or text of a task, and of its candidates."""
    node, model = cfg.TASKS[task], counted.model
    if node.KIND == "language_modelling":
        parts, tokens = counted.texts(1, TOKENS["text"])
        text = Segment(tokens, None, Attributes("text", "input", TEXT_TO_TEXT))
        masked = torch.zeros(1, round(node.MASKED_SHARE * TOKENS["text"]), dtype=torch.long, device="meta")
        read = counted.decoded(lambda: model.decoder.read_last([text], masked))
        return parts + read, counted.candidates(node.VOCABULARY_SAMPLE, TOKENS["word"])
    side = node.JITTER_SIZE if node.KIND == "detection" else node.IMAGE_SIZE
    parts, encoding = counted.image(side or cfg.INPUT.MIN_SIZE_TRAIN[-1])
    if node.KIND == "detection":
        return parts + counted.decoded(lambda: model.decode_proposals(encoding)), counted.candidates(
            80, TOKENS["category"]
        )
    if node.KIND == "classification":
        return parts + counted.decoded(lambda: model.decode_image(encoding)), counted.candidates(1000, TOKENS["class"])
    if node.KIND == "retrieval":
        image = parts + counted.decoded(lambda: model.decode_image(encoding))
        return image + counted.candidates(1, TOKENS["caption"]), Counter()
    said, tokens = counted.texts(1, TOKENS["caption"], causal=True)
    segments = [*model.image_segments(encoding, IMAGE_TEXT_TO_TEXT), Segment(tokens, None, CAPTION)]
    read = counted.decoded(lambda: model.decoder.read_last(segments))
    return parts + said + read, counted.candidates(node.VOCABULARY_SAMPLE, TOKENS["word"])


def trained(parts: Parts, cfg: CfgNode) -> int:
    """Operations of forward and backward passes."""
    again = cfg.MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING
    return sum((4 if part in again else 3) * count for part, count in parts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=stand_ins.MODELS, default=stand_ins.MODELS)
    parser.add_argument("--ranks", type=int, default=32, help="GPUs")
    args = parser.parse_args()
    forward = ["| model | task | TFLOP of an image or text | TFLOP of the candidates |", "|---|---|---:|---:|"]
    runs = ["| model | task | iterations | batch | EFLOP | of these the candidates' |", "|---|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            cfg = stand_ins.joint_config(model, Path(folder), [])
            counted, totals = Counted(cfg), Counter()
            for task, ratio in sampling_ratios(cfg).items():
                image, candidates = of_task(counted, cfg, task)
                forward.append(f"| {model} | {task} | {image.total() / 1e12:.3f} | {candidates.total() / 1e12:.3f} |")
                draws, batch = ratio * cfg.SOLVER.MAX_ITER, cfg.TASKS[task].IMS_PER_BATCH
                encoders = 1 if cfg.MODEL.UNIPERCEIVER_V2.CANDIDATES.SPLIT else args.ranks
                of_names = draws * encoders * trained(candidates, cfg)
                whole = draws * batch * trained(image, cfg) + of_names
                totals += Counter(whole=whole, names=of_names)
                runs.append(
                    f"| {model} | {task} | {draws:.0f} | {batch} | {whole / 1e18:.1f} | {of_names / 1e18:.1f} |"
                )
            runs.append(f"| **{model}** | | | | **{totals['whole'] / 1e18:.0f}** | **{totals['names'] / 1e18:.0f}** |")
    print("\n".join([*forward, "", *runs]))


if __name__ == "__main__":
    main()
