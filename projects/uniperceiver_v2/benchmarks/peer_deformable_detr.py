"""A peer for detection: Hugging Face's Deformable DETR, as large as our small model, on the same scenes and clock.

    python projects/uniperceiver_v2/benchmarks/peer_deformable_detr.py [--minutes 9] [--lr 5e-4] [--seed 0]

It has our small model's backbone, widths and numbers of layers and queries, wider feed-forward networks to make up for
the parameters, and its authors' training (AdamW, gradients clipped at 0.1, two-stage, box refinement, all auxiliary
losses) with our one-cycle rate. Trains on digit_scenes_train through this project's loader for the given time,
and evaluates on digit_scenes_test through the same evaluator; with DETECTRON2_DATASETS=datasets/development without a
look at test handwriting. Prints iterations, parameters and box AP, and writes them to
output/peer_deformable_detr/results.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, build_test_loader
from uniperceiver_v2.evaluation import build_evaluator
from uniperceiver_v2.modeling.image_encoder.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from uniperceiver_v2.modeling.layers import replace_batch_norm

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "digit_scenes" / "uniperceiver_v2_tiny.yaml"
TASK, TEST_SET = "scenes", "digit_scenes_test"
NUM_CLASSES = 10


class Peer(nn.Module):
    """Hugging Face's model behind Detectron2's interface."""

    def __init__(self, mean: list[float], std: list[float]):
        super().__init__()
        # The same backbone as ours, batch normalisation replaced as in ours, so that neither has the better one.
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
    """Trains for the given time, the rate rising for a twentieth of it and then falling as a cosine; the number of
    iterations."""
    # The backbone starts from random weights here, so it learns at the full rate, unlike in the authors' recipe.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/peer_deformable_detr"))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    cfg = load_config(str(CONFIG), ["MODEL.MASK_ON", "False", "SEED", str(args.seed)])
    ours = sum(p.numel() for p in build_model(cfg).parameters())
    model = Peer(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    size = sum(p.numel() for p in model.parameters())
    print(f"Deformable DETR {size / 1e6:.2f}M parameters, ours {ours / 1e6:.2f}M ({size / ours:.2f} x)", flush=True)

    model.train()
    iterations = train(model, build_task_train_loader(cfg, TASK), args.minutes, args.lr)
    evaluator = build_evaluator(cfg, TEST_SET, str(args.output))
    box = inference_on_dataset(model, build_test_loader(cfg, TEST_SET), evaluator)["bbox"]
    figures = {"parameters": size, "minutes": args.minutes, "lr": args.lr, "iterations": iterations, "box": box}
    (args.output / "results.json").write_text(json.dumps(figures, indent=1))
    print(f"{iterations} iterations in {args.minutes} minutes: box AP {box['AP']:.1f}, AP50 {box['AP50']:.1f}")


if __name__ == "__main__":
    main()
