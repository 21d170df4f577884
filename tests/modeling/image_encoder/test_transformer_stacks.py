"""The region network's two Transformers compared with Hugging Face's Deformable DETR with the same weights."""

import math

import pytest
import torch
from torch import nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrDecoder,
    DeformableDetrEncoder,
    DeformableDetrMLPPredictionHead,
)

from uniperceiver_v2.modeling.image_encoder.deformable_encoder import DeformableEncoder, grid_centres
from uniperceiver_v2.modeling.image_encoder.region_decoder import BoxPosition, RegionDecoder, inverse_sigmoid
from uniperceiver_v2.modeling.image_encoder.structures import FeatureMaps
from uniperceiver_v2.modeling.layers import sine_encoding

DIM, HEADS, POINTS, FFN_DIM, DEPTH = 32, 4, 2, 48, 3
SHAPES = [(6, 8), (3, 4), (2, 2)]
TOKENS = 6 * 8 + 3 * 4 + 2 * 2


@pytest.fixture
def features() -> FeatureMaps:
    """A full image, and one that covers 4×5 of the finest map."""
    valids = [torch.ones(2, h, w, dtype=torch.bool) for h, w in SHAPES]
    for valid, (height, width) in zip(valids, [(4, 5), (2, 3), (2, 2)], strict=True):
        valid[1, height:] = False
        valid[1, :, width:] = False
    extents = [torch.stack((v[:, 0].float().mean(1), v[:, :, 0].float().mean(1)), dim=-1) for v in valids]
    return FeatureMaps(
        tokens=torch.randn(2, TOKENS, DIM),
        positions=torch.randn(2, TOKENS, DIM),
        valid=torch.cat([v.flatten(1) for v in valids], dim=1),
        spatial_shapes=SHAPES,
        extents=torch.stack(extents, dim=1),
    )


def config() -> DeformableDetrConfig:
    return DeformableDetrConfig(
        d_model=DIM,
        encoder_layers=DEPTH,
        decoder_layers=DEPTH,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN_DIM,
        decoder_ffn_dim=FFN_DIM,
        encoder_n_points=POINTS,
        decoder_n_points=POINTS,
        num_feature_levels=len(SHAPES),
        dropout=0.0,
    )


def randomise(module: nn.Module) -> None:
    """Randomises the weights. With initial weights, sampling offsets and box corrections do not depend on their
    inputs."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


def rename(state: dict, names: dict[str, str]) -> dict:
    """Hugging Face's weights under our names. Longer names come first, as some contain others."""
    renamed = {}
    for key, value in state.items():
        for theirs, ours in names.items():
            if theirs in key:
                key = key.replace(theirs, ours)
                break
        renamed[key] = value
    return renamed


def shared(features: FeatureMaps) -> dict:
    return {
        "spatial_shapes": torch.tensor(features.spatial_shapes),
        "spatial_shapes_list": features.spatial_shapes,
        "valid_ratios": features.extents,
    }


@pytest.mark.parametrize("grad", [True, False])
def test_encoder_equals_deformable_detrs(features, grad):
    theirs = DeformableDetrEncoder(config()).eval()
    randomise(theirs)
    names = {"self_attn_layer_norm": "attention_norm", "self_attn": "attention", "mlp.fc": "linear"}
    ours = DeformableEncoder(DEPTH, DIM, HEADS, len(SHAPES), POINTS, FFN_DIM)
    ours.load_state_dict(rename(theirs.state_dict(), {**names, "final_layer_norm": "ffn_norm"}))
    with torch.set_grad_enabled(grad):
        found = ours(features)
        expected = theirs(
            inputs_embeds=features.tokens,
            attention_mask=features.valid,
            spatial_position_embeddings=features.positions,
            **shared(features),
        ).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class FixedPosition(nn.Module):
    """Positions of queries that do not depend on their boxes, as in Deformable DETR."""

    def __init__(self, positions):
        super().__init__()
        self.positions = positions

    def forward(self, boxes):
        return self.positions


@pytest.fixture
def decoders():
    """Ours and Hugging Face's with the same weights, including box heads."""
    theirs = DeformableDetrDecoder(config())
    theirs.bbox_embed = nn.ModuleList([DeformableDetrMLPPredictionHead(DIM, DIM, 4, 3)] * DEPTH)
    theirs.eval()
    randomise(theirs)
    ours = RegionDecoder(DEPTH, DIM, HEADS, len(SHAPES), POINTS, FFN_DIM)
    names = {
        "encoder_attn_layer_norm": "cross_attention_norm",
        "encoder_attn": "cross_attention",
        "self_attn_layer_norm": "self_attention_norm",
        "self_attn": "self_attention",
        "final_layer_norm": "ffn_norm",
        "mlp.fc": "linear",
        "bbox_embed.0": "box_head",
    }
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith(("bbox_embed.1", "bbox_embed.2"))}
    missing, unexpected = ours.load_state_dict(rename(state, names), strict=False)
    assert not unexpected
    assert all(key.startswith(("position.", "covered.")) for key in missing)
    return ours, theirs


@pytest.fixture
def queries():
    """Contents, positions and boxes of five queries of two images."""
    return torch.randn(2, 5, DIM), torch.randn(2, 5, DIM), torch.rand(2, 5, 4) * 0.8 + 0.1


@pytest.mark.parametrize("grad", [True, False])
def test_decoder_equals_deformable_detrs(features, decoders, queries, grad):
    ours, theirs = decoders
    contents, positions, boxes = queries
    ours.position = FixedPosition(positions)
    with torch.set_grad_enabled(grad):
        hidden, refined = ours(contents, boxes, features.tokens, features)
        expected = theirs(
            inputs_embeds=contents,
            encoder_hidden_states=features.tokens,
            encoder_attention_mask=features.valid,
            object_queries_position_embeddings=positions,
            reference_points=boxes,
            **shared(features),
        )
    torch.testing.assert_close(hidden.transpose(0, 1), expected.intermediate_hidden_states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(refined.transpose(0, 1), expected.intermediate_reference_points, atol=1e-4, rtol=1e-4)
    assert (refined[0] - boxes).abs().mean() > 0.01
    assert (refined[1] - refined[0]).abs().mean() > 0.01


def test_a_box_is_corrected_by_two_layers_and_no_more(features, queries):
    """Look forward twice: the loss at layer i reaches the box head's corrections in layers i and i-1 only."""
    decoder = RegionDecoder(DEPTH, DIM, HEADS, len(SHAPES), POINTS, FFN_DIM)
    randomise(decoder)
    contents, _, boxes = queries
    boxes.requires_grad_()
    corrections = []
    decoder.box_head.register_forward_hook(lambda module, inputs, output: corrections.append(output))
    # Without gradients through the contents, only those of the corrections are left.
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: output.detach())
    _, refined = decoder(contents, boxes, features.tokens, features)
    for layer in range(DEPTH):
        gradients = torch.autograd.grad(
            refined[layer].sum(), [boxes, *corrections], retain_graph=True, allow_unused=True
        )
        reached = [g is not None and bool(g.abs().sum() > 0) for g in gradients]
        # reached[0]: the initial boxes, reached[i + 1]: the correction of layer i.
        assert reached == [i in (layer, layer + 1) for i in range(DEPTH + 1)]


def test_masked_queries_are_independent(features, queries):
    decoder = RegionDecoder(DEPTH, DIM, HEADS, len(SHAPES), POINTS, FFN_DIM).eval()
    randomise(decoder)
    contents, _, boxes = queries
    mask = torch.tensor([0, 0, 1, 1, 1])[:, None] == torch.tensor([0, 0, 1, 1, 1])
    hidden, refined = decoder(contents, boxes, features.tokens, features, mask)
    for part in (slice(0, 2), slice(2, 5)):
        alone = decoder(contents[:, part], boxes[:, part], features.tokens, features)
        torch.testing.assert_close((hidden[:, :, part], refined[:, :, part]), alone, atol=1e-5, rtol=1e-5)


def test_without_training_boxes_stay_where_they_are(features, queries):
    decoder = RegionDecoder(DEPTH, DIM, HEADS, len(SHAPES), POINTS, FFN_DIM)
    contents, _, boxes = queries
    _, refined = decoder(contents, boxes, features.tokens, features)
    torch.testing.assert_close(refined, boxes.expand(DEPTH, -1, -1, -1))


def test_position_of_a_query_follows_its_box():
    position, boxes = BoxPosition(8), torch.rand(2, 3, 4)
    first, second = position.mlp.layers
    encoding = torch.cat([sine_encoding(boxes[..., i : i + 1], 4) for i in range(4)], dim=-1)
    torch.testing.assert_close(position(boxes), second(first(encoding).relu()))


def test_inverse_sigmoid():
    x = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    edges = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64), eps=1e-3)
    limit = math.log(1e-3)
    torch.testing.assert_close(edges, torch.tensor([limit, limit, -limit, -limit], dtype=torch.float64))


def test_grid_centres_are_pixel_centres_of_each_images_own_extent(features):
    centres = grid_centres(features.spatial_shapes, features.extents)
    assert centres.shape == (2, TOKENS, 2)
    # Token (row 1, column 3) of the middle scale, which the second image covers to 2×3 pixels.
    token = 6 * 8 + 1 * 4 + 3
    torch.testing.assert_close(centres[0, token], torch.tensor([3.5 / 4, 1.5 / 3]))
    torch.testing.assert_close(centres[1, token], torch.tensor([3.5 / 3, 1.5 / 2]))
    inside = (centres < 1).all(-1)
    assert torch.equal(inside, features.valid)
