"""The image encoder beside Hugging Face's Deformable DETR: the same backbone, widths, layers and queries.

    python projects/uniperceiver_v2/benchmarks/image_encoder.py [--threads 2] [--quick]

Random weights, images of noise, none padded. The peer is DeformableDetrForObjectDetection with two stages and box
refinement, one category and no loss: backbone, encoder, dense predictions, decoder, boxes and logits of all layers.
Ours does all of that and, beside it, pixel and mask embeddings, the masks of all proposals, and equations (2) and (3)
that make tokens of proposals and maps: the targets have to be reached with more work than the peer's. In the backward
pass each side's outputs are summed up: hidden states, boxes and logits, and what only ours has. Memory is the peak
above the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

import uniperceiver_v2  # noqa: F401  (registers the backbone)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.image_encoder import ImageEncoder
from uniperceiver_v2.layers import replace_batch_norm

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "digit_scenes" / "uniperceiver_v2_tiny.yaml"
PEER = "Deformable DETR"
RESNET_50 = {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]}
RESNET_TINY = {
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [2, 2, 2, 2],
}


@dataclass
class Shape:
    """What both sides have in common; the widths are those of both Transformers, layers of each."""

    name: str
    backbone: dict
    dim: int
    ffn_dim: int
    layers: tuple[int, int]
    points: int
    queries: int
    norm: str


SMALL = Shape("tiny", RESNET_TINY, 128, 256, (1, 3), 2, 30, "GN")
LARGE = Shape("ResNet-50, 6+6 layers", RESNET_50, 256, 1024, (6, 6), 4, 300, "FrozenBN")


def build_ours(shape: Shape, device: str) -> ImageEncoder:
    sizes = {
        "BACKBONE.NORM": shape.norm,
        "REGION.DIM": shape.dim,
        "REGION.MASK_DIM": shape.dim,
        "REGION.POINTS": shape.points,
        "REGION.FFN_DIM": shape.ffn_dim,
        "REGION.ENCODER_LAYERS": shape.layers[0],
        "REGION.DECODER_LAYERS": shape.layers[1],
        "REGION.NUM_QUERIES": shape.queries,
    }
    overrides = [text for key, value in sizes.items() for text in (f"MODEL.UNIPERCEIVER_V2.{key}", str(value))]
    cfg = load_config(str(CONFIG), overrides)
    cfg.defrost()
    cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG = CfgNode({"model_type": "resnet", **shape.backbone})
    return ImageEncoder(cfg).to(device)


def build_peer(shape: Shape, device: str) -> nn.Module:
    config = DeformableDetrConfig(
        backbone_config=ResNetConfig(**shape.backbone, out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=shape.dim,
        encoder_layers=shape.layers[0],
        decoder_layers=shape.layers[1],
        encoder_ffn_dim=shape.ffn_dim,
        decoder_ffn_dim=shape.ffn_dim,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_n_points=shape.points,
        decoder_n_points=shape.points,
        num_queries=shape.queries,
        two_stage=True,
        two_stage_num_proposals=shape.queries,
        with_box_refine=True,
        num_labels=1,
        dropout=0.0,
        disable_custom_kernels=True,
    )
    peer = DeformableDetrForObjectDetection(config)
    if shape.norm != "FrozenBN":  # which it has by itself
        replace_batch_norm(peer.model.backbone, shape.norm)
    return peer.requires_grad_(True).to(device)  # of a backbone it would train the later stages alone


def train_ours(encoder: ImageEncoder, images: ImageList) -> None:
    """Forward and backward; the encoder's own forward pass, with the dense and all layers' predictions kept as well."""
    outputs: list[Tensor] = []
    with encoder.regions.register_forward_hook(lambda module, inputs, output: outputs.extend(_trained(output))):
        encoding, _ = encoder(images)
    outputs += (encoding.global_tokens, encoding.proposal_tokens)
    sum(x.sum() for x in outputs).backward()
    encoder.zero_grad()


def _trained(output) -> tuple[Tensor, ...]:
    predictions, dense = output.predictions, output.dense
    return output.hidden, predictions.objectness, predictions.boxes, dense.objectness, dense.boxes


def train_peer(peer: nn.Module, pixels: Tensor) -> None:
    found = peer(pixel_values=pixels)
    dense = found.enc_outputs_class, found.enc_outputs_coord_logits
    outputs = found.intermediate_hidden_states, found.logits, found.pred_boxes, *(x[x.isfinite()] for x in dense)
    sum(x.sum() for x in outputs).backward()
    peer.zero_grad()


def pair(shape: Shape, batch: int, side: int, device: str) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """Both sides' work by its name."""
    ours, peer = build_ours(shape, device), build_peer(shape, device)
    pixels = torch.randn(batch, 3, side, side, device=device)
    images = ImageList(pixels, [(side, side)] * batch)

    def infer_ours() -> None:
        with torch.no_grad():
            ours.eval()(images)

    def infer_peer() -> None:
        with torch.no_grad():
            peer.eval()(pixel_values=pixels)

    return (
        {"train": lambda: train_ours(ours.train(), images), "infer": infer_ours},
        {"train": lambda: train_peer(peer.train(), pixels), "infer": infer_peer},
    )


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    cases = [(SMALL, 8, 96), (LARGE, 2, 320)] + ([] if args.quick else [(LARGE, 1, 640)])
    for shape, batch, side in cases:
        ours, peer = pair(shape, batch, side, args.device)
        name = f"{shape.name}, {batch} × {side} px"
        for what, work, target in (("forward + backward", "train", 1.3), ("inference", "infer", 1.5)):
            yield harness.compare(
                f"image encoder, {what}, {name}", ours[work], peer[work], peer_name=PEER, at_least=target
            )
        yield harness.compare_memory(
            f"image encoder, forward + backward, {name}", ours["train"], peer["train"], peer_name=PEER, at_most=0.8
        )


if __name__ == "__main__":
    harness.main(__doc__, rows)
