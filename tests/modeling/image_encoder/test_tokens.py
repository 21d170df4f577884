"""Equations (2) and (3): from proposals and maps to the decoder's tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uniperceiver_v2.modeling.image_encoder import Proposals
from uniperceiver_v2.modeling.image_encoder.tokens import AttentionPools, GlobalTokens, ProposalFusion
from uniperceiver_v2.modeling.layers import box_position_encoding, map_position_encoding

from .windows import inside

REGION, DIM, CHANNELS = 16, 24, 8


def proposals(size: tuple[int, int] = (56, 56), in_boxes: bool = True) -> Proposals:
    return Proposals(
        torch.randn(2, 3, REGION),
        torch.rand(2, 3, 4),
        torch.randn(2, 3, *size) * 3,
        torch.randn(2, 3),
        torch.randn(2, 3, CHANNELS),
        masks_in_boxes=in_boxes,
    )


@pytest.fixture
def fusion() -> ProposalFusion:
    """With random weights: at the start of training it may leave boxes and masks out."""
    fusion = ProposalFusion(REGION, DIM, CHANNELS)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.1)
    return fusion


@pytest.mark.parametrize("in_boxes", [False, True])
def test_fusion_is_the_sum_of_semantics_appearance_box_and_pooled_mask(fusion, in_boxes):
    given = proposals(in_boxes=in_boxes)
    kept = torch.stack([torch.stack([inside(box, (56, 56)) for box in image]) for image in given.boxes.tolist()])
    kept = kept if in_boxes else 1
    pooled = (given.masks.sigmoid() * kept).unflatten(2, (28, 2)).unflatten(4, (28, 2)).mean((3, 5)).flatten(2)
    box = box_position_encoding(given.boxes, fusion.BOX_ENCODING)
    expected = sum(
        x @ part.weight.T + part.bias
        for x, part in ((given.semantics, fusion.semantics), (box, fusion.box), (pooled, fusion.mask))
    )
    norm, linear = fusion.appearance
    expected = expected + linear(F.layer_norm(given.appearance, (CHANNELS,), norm.weight, norm.bias))
    torch.testing.assert_close(fusion(given), expected, atol=1e-5, rtol=1e-5)


def test_a_box_that_moves_a_little_changes_its_token_a_little(fusion):
    """Across the centre of a pixel and across its edge: whether a pixel counts must not hang on rounding."""
    given = proposals()
    for edge in (20.0, 20.5):
        tokens = []
        for high in (edge - 1e-4, edge + 1e-4):
            given.boxes[:] = torch.tensor([high / 2, 28.0, high, 28.0]) / 56  # from 0 to the edge
            tokens.append(fusion(given))
        torch.testing.assert_close(*tokens, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(7, 90), (28, 28), (1, 1)])
def test_fusion_takes_masks_of_any_size(fusion, size):
    assert fusion(proposals(size)).shape == (2, 3, DIM)


@pytest.mark.parametrize("part", ["semantics", "appearance", "boxes", "masks"])
def test_fusion_depends_on_every_part(fusion, part):
    given = proposals()
    tensor = getattr(given, part).requires_grad_()
    fusion(given).sum().backward()
    assert tensor.grad.flatten(2).abs().amax(-1).min() > 0


@pytest.fixture
def pools() -> AttentionPools:
    return AttentionPools(REGION, heads=2, count=3)


def test_attention_pools_are_attentions_from_the_mean_and_a_learned_query(pools):
    tokens = torch.randn(2, 5, REGION)
    found = pools(tokens, torch.ones(2, 5, dtype=torch.bool))
    attention = pools.attention
    for image in range(2):
        for pool in range(3):
            query = attention.q_proj(tokens[image].mean(0) + pools.queries[pool])
            keys, values = attention.k_proj(tokens[image]), attention.v_proj(tokens[image])
            heads = []
            for head in (slice(0, 8), slice(8, 16)):
                weights = (keys[:, head] @ query[head] / 8**0.5).softmax(0)
                heads.append(weights @ values[:, head])
            torch.testing.assert_close(found[image, pool], attention.o_proj(torch.cat(heads)), atol=1e-5, rtol=1e-5)


def test_attention_pools_ignore_padding(pools):
    tokens = torch.randn(1, 6, REGION)
    valid = torch.tensor([[True, True, False, True, False, False]])
    alone = pools(tokens[:, valid[0]], torch.ones(1, 3, dtype=torch.bool))
    tokens[~valid] = 100.0
    torch.testing.assert_close(pools(tokens, valid), alone)


def test_global_tokens_are_the_pools_and_the_flattened_last_map_with_positions():
    module, last = GlobalTokens(REGION, DIM, heads=2, pools=3), torch.randn(2, REGION, 2, 3)
    valid = torch.tensor([[[True] * 3] * 2, [[True, True, False]] * 2])
    tokens, token_valid = module(last, valid)
    assert tokens.shape == (2, 3 + 6, DIM)
    flat_valid = valid.flatten(1)
    assert torch.equal(token_valid, torch.cat((torch.ones(2, 3, dtype=torch.bool), flat_valid), dim=1))
    projected = F.linear(last.flatten(2).transpose(1, 2), module.project.weight, module.project.bias)
    flat = F.layer_norm(projected, (DIM,)) + map_position_encoding(valid, DIM).flatten(1, 2)
    torch.testing.assert_close(tokens[:, 3:], flat)
    torch.testing.assert_close(tokens[:, :3], module.pools(flat, flat_valid))


@pytest.mark.parametrize(("size", "padded"), [((24, 24), (30, 40)), ((28, 56), (28, 60)), ((33, 70), (50, 70))])
def test_masks_are_pooled_over_their_own_image_whatever_its_padding(size, padded):
    boxes = torch.cat((torch.rand(2, 5, 2), 0.05 + 0.6 * torch.rand(2, 5, 2)), dim=-1).double()
    masks = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    fusion, semantics, appearance = ProposalFusion(REGION, DIM, CHANNELS), torch.zeros(2, 5, REGION), torch.zeros(0)
    found = fusion._pooled_masks(Proposals(semantics, boxes, masks, torch.zeros(2, 5), appearance, masks_in_boxes=True))

    kept = torch.stack([torch.stack([inside(box, size) for box in image]) for image in boxes.tolist()]).double()
    expected = F.adaptive_avg_pool2d(masks.sigmoid() * kept, 28)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((pooled * weight).sum(), masks)[0] for pooled in (found, expected)]
    torch.testing.assert_close(*gradients)

    extent = torch.tensor([[size[1] / padded[1], size[0] / padded[0]]] * 2, dtype=torch.float64)
    wider = F.pad(masks, (0, padded[1] - size[1], 0, padded[0] - size[0]), value=3.0)
    cut = Proposals(semantics, boxes, wider, torch.zeros(2, 5), appearance, extent, masks_in_boxes=True)
    beside = fusion._pooled_masks(cut)
    torch.testing.assert_close(beside, expected)
