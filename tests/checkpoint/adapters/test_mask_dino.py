"""Mask DINO's checkpoints: every key is accounted for, and the same weights give the same boxes and masks."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import Tensor, nn

from uniperceiver_v2.checkpoint.adapters import load_pretrained
from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.image_encoder import ImageEncoder

from . import mask_dino_keys as keys
from . import plain_mask_dino as plain

CLASSES, QUERIES = 5, 20
SMALL_SWIN = {"width": 16, "depths": (2, 1, 1, 1), "heads": (1, 2, 2, 4), "window": 4}


def resnet_config(depths, width=64) -> dict:
    sizes = [4 * width * 2**stage for stage in range(4)]
    return {"model_type": "resnet", "embedding_size": width, "hidden_sizes": sizes, "depths": list(depths)}


def swin_config(width, depths, heads, window) -> dict:
    sizes = {"embed_dim": width, "depths": list(depths), "num_heads": list(heads), "window_size": window}
    return {"model_type": "swin", **sizes, "image_size": 384}


def settings(backbone: dict, **region):
    """As a user writes them in YAML."""
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.MASK_ON = "build_huggingface_backbone", True
    node = cfg.MODEL.UNIPERCEIVER_V2
    node.BACKBONE.CONFIG.update(backbone)
    if backbone["model_type"] == "resnet":
        node.BACKBONE.NORM = "FrozenBN"
    small = {
        "ENCODER_LAYERS": 1,
        "DECODER_LAYERS": 2,
        "FFN_DIM": 32,
        "NUM_QUERIES": QUERIES,
        "OBJECTNESS_PARTS": CLASSES,
    }
    for key, value in {**small, "CONVENTIONS": "mask_dino", **region}.items():
        node.REGION[key] = value
    return cfg


def small_heads(channels, **changes) -> keys.Shapes:
    return keys.heads(
        channels, **{"classes": CLASSES, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 32} | changes
    )


def small_r50(**changes) -> dict[str, Tensor]:
    shapes = keys.r50((1, 1, 1, 1), width=8) | small_heads((32, 64, 128, 256), **changes)
    return keys.random_checkpoint(shapes)


def small_encoder(**region) -> ImageEncoder:
    return ImageEncoder(settings(resnet_config((1, 1, 1, 1), width=8), **region)).eval()


def load(encoder: nn.Module, state: dict[str, Tensor], tmp_path):
    torch.save({"model": state, "iteration": 7}, tmp_path / "model.pth")
    (table,) = load_pretrained(encoder, keys.HEADS, [str(tmp_path / "model.pth")])
    return table


@torch.no_grad()
def proposals(encoder: ImageEncoder, images: Tensor):
    maps = [m for _, m in sorted(encoder.backbone(images).items())]
    return maps, encoder.encode_maps(maps, torch.ones_like(images[:, 0], dtype=torch.bool), has_padding=False)[
        0
    ].proposals


def assert_same_proposals(ours, theirs: dict[str, Tensor]) -> None:
    torch.testing.assert_close(ours.objectness, theirs["classes"].amax(-1), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(ours.boxes, theirs["boxes"], atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(ours.masks, theirs["masks"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("conventions", "from_masks", "mask_boxes"),
    [("mask_dino", True, "bitmask"), ("mask_dino_mask2box", True, "mask2box"), ("mask_dino", False, "no")],
)
def test_the_same_weights_give_the_same_boxes_and_masks(tmp_path, conventions, from_masks, mask_boxes):
    state = small_r50()
    encoder = small_encoder(CONVENTIONS=conventions, BOXES_FROM_MASKS=from_masks)
    load(encoder, state, tmp_path)
    images = torch.randn(2, 3, 128, 192)
    maps, found = proposals(encoder, images)
    for ours, theirs in zip(maps, expected := plain.resnet(state, images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert_same_proposals(found, plain.region_network(state, expected, QUERIES, mask_boxes))


def test_swin_and_a_scale_for_each_map(tmp_path):
    shapes = keys.swin(**SMALL_SWIN) | small_heads((16, 32, 64, 128), scales=4)
    state = keys.random_checkpoint(shapes)
    encoder = ImageEncoder(settings(swin_config(**SMALL_SWIN), FIRST_SCALE=0)).eval()
    load(encoder, state, tmp_path)
    images = torch.randn(1, 3, 128, 256)
    maps, found = proposals(encoder, images)
    expected = plain.swin(state, images, SMALL_SWIN["heads"], SMALL_SWIN["window"])
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert_same_proposals(found, plain.region_network(state, expected, QUERIES, "bitmask"))
