"""Mask DINO's checkpoints: every key is accounted for, and the same weights give the same boxes and masks."""

import logging
import math

import pytest
import torch
from detectron2.config import get_cfg
from torch import Tensor, nn

from uniperceiver_v2.checkpoint.adapters import convert, load_pretrained, mask_dino
from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.image_encoder import ImageEncoder, RegionTargets

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


FULL = {"ENCODER_LAYERS": 6, "DECODER_LAYERS": 9, "FFN_DIM": 2048, "OBJECTNESS_PARTS": 80}
PUBLISHED = {
    "R50": (keys.r50() | keys.heads((256, 512, 1024, 2048)), resnet_config(keys.R50["depths"]), 1, 52),
    "Swin-L": (
        keys.swin(**keys.SWIN_LARGE) | keys.heads((192, 384, 768, 1536), scales=4),
        swin_config(**keys.SWIN_LARGE),
        0,
        223,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_of_the_published_models_is_accounted_for(name):
    shapes, backbone, first_scale, millions = PUBLISHED[name]
    parameters = {key: shape for key, shape in shapes.items() if keys.shared_with(key) == key and "index" not in key}
    of_statistics = sum(math.prod(shape) for key, shape in parameters.items() if "running_" in key)
    assert (sum(map(math.prod, parameters.values())) - of_statistics) / 1e6 == pytest.approx(millions, abs=1)

    with torch.device("meta"):
        own = ImageEncoder(settings(backbone, FIRST_SCALE=first_scale, **FULL)).state_dict()
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    values, table = convert(state, own, mask_dino.plan(state, own, keys.HEADS))
    assert {key: value.shape for key, value in values.items()} == {key: own[key].shape for key in values}
    read = {source for entries in (table.loaded, table.converted, table.skipped) for source, _, _ in entries}
    assert read == shapes.keys()
    filled = {target for entries in (table.loaded, table.converted, table.supplied) for _, target, _ in entries}
    kept = {target for _, target, _ in table.kept}
    assert filled.isdisjoint(kept) and filled | kept == {
        key for key in own if key.startswith(("backbone.", "regions."))
    }
    assert {key for key in kept if key.startswith("regions.")} == {
        *(f"regions.decoder.covered.layers.0.{kind}" for kind in ("weight", "bias")),
        *(f"regions.select.one_to_many.{kind}" for kind in ("weight", "bias")),
    }


def test_the_table_is_in_the_log(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        table = load(small_encoder(), small_r50(), tmp_path)
    assert str(table) in caplog.text and str(tmp_path / "model.pth") in caplog.text
    assert "5 classes are the parts of the objectness" in str(table)
    assert "sem_seg_head.predictor.decoder.layers.*.norm3 -> regions.decoder.layers.*.ffn_norm" in str(table)


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    """A checkpoint with other values below `sem_seg_head.predictor`; None takes a key out."""
    named = {f"sem_seg_head.predictor.{key}": value for key, value in changes.items()}
    return {key: value for key, value in (small_r50() | named).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "region", "said"),
    [
        ({"extra.weight": torch.zeros(3)}, {}, ["sem_seg_head.predictor.extra.weight [3]: left over"]),
        ({"enc_output.bias": None}, {}, ["regions.select.project.0.bias [256]: gets no value"]),
        ({"bbox_embed.1.layers.2.bias": torch.ones(4)}, {}, ["bbox_embed.1.layers.2.bias: differs from"]),
        ({}, {"OBJECTNESS_PARTS": 1}, ["[5, 256] in the source, [1, 256] in the model", "OBJECTNESS_PARTS: 5"]),
        ({}, {"CONVENTIONS": ""}, ["regions.select.content.0.weight [256, 256]: gets no value", "mask_dino_mask2box"]),
        ({}, {"DECODER_LAYERS": 1}, ["regions.decoder.layers.1.", "not in the model"]),
        ({}, {"FIRST_SCALE": 0}, ["FIRST_SCALE: 1, EXTRA_SCALES: 1"]),
    ],
)
def test_what_does_not_fit_is_an_error_with_the_keys_and_changes_nothing(tmp_path, changes, region, said):
    encoder = small_encoder(**region)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load(encoder, changed(**changes), tmp_path)
    assert str(tmp_path / "model.pth") in str(caught.value)
    for words in said:
        assert words in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_the_encoder_learns_from_there(tmp_path):
    """Losses are finite, also of tokens at the border, and every part has a gradient."""
    encoder = small_encoder(DENOISING_QUERIES=4).train()
    load(encoder, small_r50(), tmp_path)
    images, valid = torch.randn(2, 3, 64, 1088), torch.tensor([[True, True], [True, False]])
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.4]).expand(2, 2, 4) * valid[..., None]
    masks = torch.rand(2, 2, 64, 1088) < 0.5
    targets = RegionTargets(boxes, masks, torch.zeros(2, 2, dtype=torch.int64), valid)
    maps = [m for _, m in sorted(encoder.backbone(images).items())]
    _, supervision = encoder.encode_maps(maps, torch.ones_like(images[:, 0], dtype=torch.bool), targets=targets)
    sum(supervision.losses.values()).backward()
    without = {name for name, parameter in encoder.regions.named_parameters() if parameter.grad is None}
    assert not without
    assert all(p.grad.isfinite().all() for p in encoder.regions.parameters())
