"""The image encoder beside Hugging Face's Deformable DETR: the same backbone, widths, layers and queries.

    python projects/uniperceiver_v2/benchmarks/image_encoder.py [--threads 2] [--quick]

Weights are random. Images are noise without padding. The peer is DeformableDetrForObjectDetection with two stages and
box refinement, one category and no loss: backbone, encoder, dense predictions, decoder, boxes and logits of all layers.
Both sides train the whole backbone, and both run deformable attention over the same tokens, of strides 8, 16, 32 and
64.

Rows of "equal work" run only the parts of our encoder that the peer has, too. Rows of "all of ours" add pixel
embeddings at stride 4, mask embeddings, the masks of all proposals, and equations (2) and (3), which make tokens from
proposals and maps. The loss of the backward pass is the sum of a side's outputs: boxes and logits, dense and of all
layers, hidden states, and the additional outputs of our encoder. In inference the peer predicts a box for every token,
and our encoder for each token that becomes a query. Memory is the peak above the weights.

The backbone is the same on both sides, apart from the implementation of fixed normalisation. The rows "backbone alone"
show how much of the total the other parts can change.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import harness
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

import uniperceiver_v2  # noqa: F401  (registers the backbone)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.modeling.image_encoder import ImageEncoder
from uniperceiver_v2.modeling.image_encoder.structures import RegionTargets, has_padding, resize_valid, valid_pixels
from uniperceiver_v2.modeling.layers import replace_batch_norm

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
    """The sizes that both sides have. The widths are those of both Transformers, ``layers`` are those of encoder and
    decoder."""

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
    cfg = load_config(str(TINY_CONFIG), overrides)
    cfg.defrost()
    cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG = CfgNode({"model_type": "resnet", **shape.backbone})
    encoder = ImageEncoder(cfg).to(device)
    encoder.regions.denoising_queries = 0
    return encoder


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
    if shape.norm != "FrozenBN":  # the peer's own default
        replace_batch_norm(peer.model.backbone, shape.norm)
    return peer.requires_grad_(True).to(device)  # by default the peer freezes the first stages of a backbone


def equal_work(encoder: ImageEncoder, images: ImageList, dense: bool) -> list[Tensor]:
    """The parts that the peer has, too: backbone, region encoder, selection, decoder and its heads."""
    regions = encoder.regions
    features = regions.project(encoder.maps(images)[1:], valid_pixels(images), has_padding(images))
    memory = regions.encoder(features)
    predicted, queries = regions.select(memory, features, dense=dense)
    hidden, boxes = regions.decoder(queries.contents, queries.boxes.detach(), memory, features)
    hidden = regions.norm(hidden)
    outputs = [hidden, boxes, regions.objectness(hidden)]
    return outputs + [predicted.objectness, predicted.boxes] if dense else outputs


def all_work(encoder: ImageEncoder, images: ImageList, targets: RegionTargets) -> list[Tensor]:
    """The encoder's work in training, without denoising and the losses."""
    maps, valid = encoder.maps(images), valid_pixels(images)
    output = encoder.regions(maps, valid, targets, has_padding(images))
    predictions, dense = output.predictions, output.dense
    tokens, _ = encoder.global_tokens(maps[-1], resize_valid(valid, maps[-1].shape[-2:]))
    outputs = [output.hidden, predictions.boxes, predictions.objectness, dense.objectness, dense.boxes]
    return [*outputs, predictions.mask_embeddings, tokens, encoder.fusion(output.proposals())]


def peer_work(peer: nn.Module, pixels: Tensor) -> list[Tensor]:
    found = peer(pixel_values=pixels)
    dense = found.enc_outputs_class, found.enc_outputs_coord_logits
    return [found.intermediate_hidden_states, found.logits, found.pred_boxes, *(x[x.isfinite()] for x in dense)]


def train(model: nn.Module, work: Callable[[], list[Tensor]]) -> None:
    model.train()
    sum(x.sum() for x in work()).backward()
    model.zero_grad()


def infer(model: nn.Module, work: Callable[[], object]) -> None:
    model.eval()
    with torch.no_grad():
        work()


def comparisons(
    shape: Shape, batch: int, side: int, device: str
) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """For each row, the name and the work of both sides."""
    ours, peer = build_ours(shape, device), build_peer(shape, device)
    pixels = torch.randn(batch, 3, side, side, device=device)
    images = ImageList(pixels, [(side, side)] * batch)
    objects = Instances((side, side), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    objects.gt_masks = BitMasks(torch.zeros(0, side, side))
    targets = RegionTargets.from_instances([objects] * batch, images)

    def train_peer() -> None:
        train(peer, lambda: peer_work(peer, pixels))

    def infer_peer() -> None:
        infer(peer, lambda: peer(pixel_values=pixels))

    yield "forward + backward, equal work", lambda: train(ours, lambda: equal_work(ours, images, True)), train_peer
    yield "forward + backward, all of ours", lambda: train(ours, lambda: all_work(ours, images, targets)), train_peer
    yield "inference, equal work", lambda: infer(ours, lambda: equal_work(ours, images, False)), infer_peer
    yield "inference, all of ours", lambda: infer(ours, lambda: ours(images)), infer_peer
    both = ours.backbone, peer.model.backbone.model
    for what, run in (("forward + backward", train), ("inference", infer)):
        mine, other = (
            lambda run=run, model=model: run(model, lambda: list(_maps(model(pixels)).values())) for model in both
        )
        yield f"{what}, backbone alone", mine, other


def _maps(found) -> dict[str, Tensor]:
    return found if isinstance(found, dict) and "feature_maps" not in found else dict(enumerate(found.feature_maps))


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    cases = [(SMALL, 8, 96), (LARGE, 2, 320)] + ([] if args.quick else [(LARGE, 1, 640)])
    for shape, batch, side in cases:
        for what, ours, peer in comparisons(shape, batch, side, args.device):
            name = f"image encoder, {what}, {shape.name}, {batch} × {side} px"
            whole, training = "backbone" not in what, what.startswith("forward")
            target = (1.3 if training else 1.5) if whole else None
            yield harness.compare(name, ours, peer, peer_name=PEER, at_least=target)
            if training:
                yield harness.compare_memory(name, ours, peer, peer_name=PEER, at_most=0.8 if whole else None)


if __name__ == "__main__":
    harness.main(__doc__, rows)
