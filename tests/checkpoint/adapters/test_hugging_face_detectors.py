"""Deformable DETR and Mask2Former of Hugging Face: the converted parts compute what the originals do."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import Tensor, nn
from transformers import DeformableDetrConfig, Mask2FormerConfig, ResNetConfig, SwinConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrForObjectDetection
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentation

from uniperceiver_v2.checkpoint.adapters import load_pretrained
from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.modeling.image_encoder import ImageEncoder

DIM, HEADS, FFN_DIM, CLASSES = 128, 4, 48, 3
STAGES = [f"stage{n}" for n in range(1, 5)]
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}
SWIN = {"embed_dim": 16, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "image_size": 64}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def encoder_for(backbone: dict, **region) -> ImageEncoder:
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.MASK_ON = "build_huggingface_backbone", True
    node = cfg.MODEL.UNIPERCEIVER_V2
    node.BACKBONE.CONFIG.update(backbone)
    node.BACKBONE.NORM = "FrozenBN" if backbone["model_type"] == "resnet" else ""
    sizes = {"DIM": DIM, "MASK_DIM": DIM, "HEADS": HEADS, "FFN_DIM": FFN_DIM, "ENCODER_LAYERS": 2, "DECODER_LAYERS": 2}
    for key, value in {**sizes, "NUM_QUERIES": 7, **region}.items():
        node.REGION[key] = value
    return ImageEncoder(cfg).eval()


def randomise(model: nn.Module) -> None:
    """With initial weights, sampling offsets and box corrections do not depend on their inputs."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name.split(".")[-1]:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "norm" not in name:
            nn.init.normal_(parameter, std=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)


def deformable_detr(two_stage: bool) -> DeformableDetrForObjectDetection:
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(**RESNET, out_features=STAGES[1:]),
        d_model=DIM,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN_DIM,
        decoder_ffn_dim=FFN_DIM,
        num_queries=7,
        two_stage=two_stage,
        with_box_refine=two_stage,
        num_labels=CLASSES,
        dropout=0.0,
    )
    model = DeformableDetrForObjectDetection(config).eval()
    randomise(model)
    return model


def mask2former() -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN, out_features=STAGES, drop_path_rate=0.0),
        hidden_dim=DIM,
        feature_size=DIM,
        mask_feature_size=DIM,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=HEADS,
        encoder_feedforward_dim=FFN_DIM,
        dim_feedforward=FFN_DIM,
        num_queries=7,
        num_labels=CLASSES,
        dropout=0.0,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    randomise(model)
    return model


def whole(images: Tensor) -> Tensor:
    return torch.ones_like(images[:, 0], dtype=torch.bool)


def maps_of(encoder: ImageEncoder, images: Tensor) -> list[Tensor]:
    return [feature_map for _, feature_map in sorted(encoder.backbone(images).items())]


def test_deformable_detr_encodes_and_selects_the_same(tmp_path):
    original = deformable_detr(two_stage=True)
    original.save_pretrained(tmp_path)
    encoder = encoder_for({"model_type": "resnet", **RESNET}, OBJECTNESS_PARTS=CLASSES)
    (table,) = load_pretrained(encoder, HEADS, [str(tmp_path)])
    assert not [key for key, _, _ in table.skipped if "pos_trans" not in key and "embed" not in key]
    images = torch.randn(2, 3, 128, 160, requires_grad=True)
    theirs = original(images, pixel_mask=whole(images).long())
    regions = encoder.regions
    features = regions.project(maps_of(encoder, images)[1:], whole(images), has_padding=False)
    memory = regions.encoder(features)
    torch.testing.assert_close(memory, theirs.encoder_last_hidden_state, **TOLERANCE)
    weights = torch.randn_like(memory)
    ours_gradient, their_gradient = (
        torch.autograd.grad((x * weights).sum(), images, retain_graph=True)[0]
        for x in (memory, theirs.encoder_last_hidden_state)
    )
    torch.testing.assert_close(ours_gradient, their_gradient, atol=1e-4, rtol=1e-4)

    tokens = regions.select.project(memory)
    inside = theirs.enc_outputs_coord_logits.isfinite().all(-1)
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(regions.select.objectness(tokens)[inside], theirs.enc_outputs_class[inside], **TOLERANCE)
    dense, _ = regions.select(memory, features)
    torch.testing.assert_close(dense.boxes[inside], theirs.enc_outputs_coord_logits.sigmoid()[inside], **TOLERANCE)


@pytest.mark.parametrize("two_stage", [False, True])
def test_deformable_detr_decodes_the_same(tmp_path, two_stage):
    original = deformable_detr(two_stage)
    original.save_pretrained(tmp_path)
    encoder = encoder_for({"model_type": "resnet", **RESNET}, OBJECTNESS_PARTS=CLASSES)
    load_pretrained(encoder, HEADS, [str(tmp_path)])
    shapes = [(4, 6), (2, 3), (2, 2), (1, 1)]
    states, positions, memory = (torch.randn(2, size, DIM, requires_grad=True) for size in (7, 7, 35))
    boxes = torch.rand(2, 7, 4) * 0.5 + 0.2
    references = boxes[:, :, None].expand(-1, -1, 4, -1)
    first = torch.tensor([0, 24, 30, 34])
    for ours, theirs in zip(encoder.regions.decoder.layers, original.model.decoder.layers, strict=True):
        features = type("Features", (), {"spatial_shapes": shapes, "valid_or_none": None})
        found = ours(states, positions, references, memory, features, None)
        expected = theirs(
            states,
            object_queries_position_embeddings=positions,
            reference_points=references,
            spatial_shapes=torch.tensor(shapes),
            spatial_shapes_list=shapes,
            level_start_index=first,
            encoder_hidden_states=memory,
        )
        torch.testing.assert_close(found, expected, **TOLERANCE)
        weights, inputs = torch.randn_like(found), (states, positions, memory)
        gradients = [torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected)]
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    last = original.bbox_embed[1](states)
    torch.testing.assert_close(encoder.regions.decoder.box_head(states), last, **TOLERANCE)


def test_mask2former_gives_the_same_pixel_and_mask_embeddings(tmp_path):
    original = mask2former()
    original.save_pretrained(tmp_path)
    encoder = encoder_for({"model_type": "swin", **SWIN}, EXTRA_SCALES=0, CONVENTIONS="mask_dino")
    load_pretrained(encoder, HEADS, [str(tmp_path)])
    regions, images = encoder.regions, torch.randn(2, 3, 128, 192, requires_grad=True)
    theirs = original.model.pixel_level_module(images)
    maps = maps_of(encoder, images)
    for ours, expected in zip(
        maps,
        theirs.encoder_hidden_states or original.model.pixel_level_module.encoder(images).feature_maps,
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, **TOLERANCE)
    memory = regions.encoder(regions.project(maps[1:], whole(images), has_padding=False))
    sizes = [(16, 24), (8, 12), (4, 6)]
    scales = [
        x.transpose(1, 2).unflatten(2, s)
        for x, s in zip(memory.split([h * w for h, w in sizes], 1), sizes, strict=True)
    ]
    for ours, expected in zip(scales, reversed(theirs.decoder_hidden_states), strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)
    pixels = regions.pixel_embedding(maps[0], scales[0])
    torch.testing.assert_close(pixels, theirs.decoder_last_hidden_state, **TOLERANCE)
    # Where a sample lies at a pixel's centre, rounding decides which of two gradients its place has.
    mine, other = (
        torch.autograd.grad(x.square().sum(), images, retain_graph=True)[0]
        for x in (pixels, theirs.decoder_last_hidden_state)
    )
    assert (mine - other).norm() < 1e-2 * other.norm()

    states, decoder = torch.randn(2, 7, DIM), original.model.transformer_module.decoder
    expected = decoder.mask_predictor.mask_embedder(decoder.layernorm(states))
    torch.testing.assert_close(regions.mask_embedding(regions.norm(states)), expected, **TOLERANCE)
