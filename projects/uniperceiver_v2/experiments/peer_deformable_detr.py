"""A peer for detection: Hugging Face's Deformable DETR, as large as our small model, on the same scenes and clock.

    python projects/uniperceiver_v2/experiments/peer_deformable_detr.py [--minutes 9] [--lr 5e-4] [--seed 0]

It has our small model's backbone, widths and numbers of layers and queries. Its feed-forward networks are wider, so
that it has about as many parameters. It is trained as by its authors (AdamW, gradients clipped at 0.1, two-stage, box
refinement, all auxiliary losses), with a one-cycle rate. It trains on digit_scenes_train with this project's loader for
the given time, and is evaluated on digit_scenes_test with the same evaluator. With
DETECTRON2_DATASETS=datasets/development it does not use test handwriting. Each run has its own folder below
output/peer_deformable_detr/ and is not repeated. Prints a table of all finished runs: parameters, iterations and box
AP.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from study import claimed, keep_report, report_of
from torch import nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, build_test_loader
from uniperceiver_v2.evaluation import build_evaluator
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.modeling.image_encoder.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from uniperceiver_v2.modeling.layers import replace_batch_norm

TASK, TEST_SET = "scenes", "digit_scenes_test"
NUM_CLASSES = 10


class Peer(nn.Module):
    """Hugging Face's model with Detectron2's interface."""

    def __init__(self, mean: list[float], std: list[float]):
        super().__init__()
        # The same backbone and the same replacement of batch normalisation as in our model, for a fair comparison.
        backbone = ResNetConfig(
            layer_type="basic",
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 256],
            depths=[2, 2, 2, 2],
            out_features=["stage2", "stage3", "stage4"],
        )
        config = DeformableDetrConfig(
            backbone_config=backbone,
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            d_model=128,
            encoder_layers=1,
            decoder_layers=3,
            encoder_ffn_dim=1536,
            decoder_ffn_dim=1536,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            num_queries=30,
            two_stage=True,
            two_stage_num_proposals=30,
            with_box_refine=True,
            auxiliary_loss=True,
            num_labels=NUM_CLASSES,
            dropout=0.0,
        )
        self.detr = DeformableDetrForObjectDetection(config)
        replace_batch_norm(self.detr.model.backbone, "GN")
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, inputs: list[dict]):
        images = ImageList.from_tensors([(x["image"].float() - self.mean) / self.std for x in inputs], 32)
        if self.training:
            return self.detr(pixel_values=images.tensor, labels=[self._labels(x["instances"]) for x in inputs]).loss
        outputs = self.detr(pixel_values=images.tensor)
        scores = outputs.logits.sigmoid()
        return [
            {"instances": self._instances(scores[i], outputs.pred_boxes[i], (x["height"], x["width"]))}
            for i, x in enumerate(inputs)
        ]

    @staticmethod
    def _labels(instances: Instances) -> dict:
        height, width = instances.image_size
        boxes = instances.gt_boxes.tensor / torch.tensor([width, height, width, height])
        return {"class_labels": instances.gt_classes, "boxes": xyxy_to_cxcywh(boxes).float()}

    @staticmethod
    def _instances(scores: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> Instances:
        best, flat = scores.flatten().topk(min(100, scores.numel()))
        corners = Boxes(cxcywh_to_xyxy(boxes[flat // scores.shape[1]]))
        corners.scale(size[1], size[0])
        return Instances(size, pred_boxes=corners, scores=best, pred_classes=flat % scores.shape[1])


def train(model: Peer, loader, minutes: float, peak_rate: float) -> int:
    """Trains for the given time. The rate rises for a twentieth of it and then falls as a cosine. Returns the number
    of iterations."""
    # Unlike in the authors' recipe, the backbone has the full rate, as it starts from random weights.
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=1e-4)
    start, iteration = time.perf_counter(), 0
    for batch in loader:
        share = (time.perf_counter() - start) / (60 * minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(20 * share, (1 + math.cos(math.pi * share)) / 2)
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        iteration += 1
        if iteration % 100 == 0:
            print(f"{iteration} iterations, {time.perf_counter() - start:.0f} s, loss {loss.item():.2f}", flush=True)
    return iteration


def run(folder: Path, minutes: float, peak_rate: float, seed: int) -> None:
    """Trains and tests one model and writes its report into the folder. Does nothing if the run is finished or in
    progress.

    An interrupted run starts from the beginning, as its length is measured by the clock.
    """
    with claimed(folder) as ours:
        if not ours or report_of(folder) is not None:
            return
        torch.manual_seed(seed)
        cfg = load_config(str(TINY_CONFIG), ["MODEL.MASK_ON", "False", "SEED", str(seed)])
        parameters = sum(p.numel() for p in build_model(cfg).parameters())
        model = Peer(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        size = sum(p.numel() for p in model.parameters())
        share = size / parameters
        print(f"Deformable DETR {size / 1e6:.2f}M parameters, ours {parameters / 1e6:.2f}M ({share:.2f} x)", flush=True)

        model.train()
        iterations = train(model, build_task_train_loader(cfg, TASK), minutes, peak_rate)
        evaluator = build_evaluator(cfg, TEST_SET, str(folder))
        box = inference_on_dataset(model, build_test_loader(cfg, TEST_SET), evaluator)["bbox"]
        keep_report(
            folder,
            {
                "parameters": size,
                "minutes": minutes,
                "lr": peak_rate,
                "seed": seed,
                "iterations": iterations,
                "results": {TEST_SET: {"bbox": box}},
            },
        )


def markdown(output: Path) -> str:
    """A row for each finished run in the folder."""
    lines = ["| minutes | rate | seed | parameters | iterations | box AP | AP50 | finished |", "|---:" * 7 + "|---|"]
    for folder in sorted(output.glob("*_*_*")):
        if (report := report_of(folder)) is not None:
            box = report["results"][TEST_SET]["bbox"]
            lines.append(
                f"| {report['minutes']:g} | {report['lr']:g} | {report['seed']} | {report['parameters'] / 1e6:.2f}M "
                f"| {report['iterations']:,} | {box['AP']:.1f} | {box['AP50']:.1f} | {report['date']} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The program: does the run unless it is finished, and prints the table of all finished runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/peer_deformable_detr"))
    args = parser.parse_args(arguments)
    run(args.output / f"{args.minutes:g}_{args.lr:g}_{args.seed}", args.minutes, args.lr, args.seed)
    print(markdown(args.output))


if __name__ == "__main__":
    main()
