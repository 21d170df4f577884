"""Attention, MLP and normalisation compared with PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uniperceiver_v2.modeling.layers import MLP, FrozenBatchNorm2d, MultiHeadAttention, group_norm, replace_batch_norm


@pytest.fixture
def attentions():
    """Ours and PyTorch's with the same weights."""
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = MultiHeadAttention(12, 3).double()
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    with torch.no_grad():
        for projection, weight, bias in zip((ours.q_proj, ours.k_proj, ours.v_proj), weights, biases, strict=True):
            projection.weight.copy_(weight)
            projection.bias.copy_(bias)
    ours.o_proj.load_state_dict(theirs.out_proj.state_dict())
    return ours, theirs


@pytest.fixture
def qkv():
    return [torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 7, 7)]


def test_attention_equals_pytorchs(attentions, qkv):
    ours, theirs = attentions
    torch.testing.assert_close(ours(*qkv), theirs(*qkv, need_weights=False)[0])


def test_attention_with_padded_keys(attentions, qkv):
    ours, theirs = attentions
    valid = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    expected = theirs(*qkv, key_padding_mask=~valid, need_weights=False)[0]
    torch.testing.assert_close(ours(*qkv, mask=valid[:, None, None]), expected)


def test_attention_with_a_mask_of_queries_and_keys(attentions, qkv):
    ours, theirs = attentions
    allowed = torch.rand(5, 7) < 0.5
    allowed[:, 0] = True
    expected = theirs(*qkv, attn_mask=~allowed, need_weights=False)[0]
    torch.testing.assert_close(ours(*qkv, mask=allowed), expected)


def test_attention_to_projected_keys_and_values(attentions, qkv):
    """The keys come from two calls, as in a cache. Gradients are compared, too."""
    ours, theirs = attentions
    leaves = [x.requires_grad_() for x in qkv]
    query, key, value = leaves
    keys, values = (
        torch.cat([projection(part) for part in x.split((3, 4), dim=1)], dim=1)
        for projection, x in ((ours.k_proj, key), (ours.v_proj, value))
    )
    found, expected = ours.attend(query, keys, values), theirs(query, key, value, need_weights=False)[0]
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, leaves, upstream) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_attention_width_must_be_a_multiple_of_the_heads():
    with pytest.raises(ValueError, match="10 is not a multiple"):
        MultiHeadAttention(10, 3)


def test_mlp_is_linear_layers_with_relu_between():
    mlp = MLP(3, 5, 2, depth=3)
    x = torch.randn(4, 6, 3)
    first, second, third = mlp.layers
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(5, 3), (5, 5), (2, 5)]
    torch.testing.assert_close(mlp(x), third(F.relu(second(F.relu(first(x))))))


def trained_batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def test_frozen_batch_norm_equals_evaluated_batch_norm():
    source = trained_batch_norm(6).eval()
    frozen = FrozenBatchNorm2d(source).train()
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(frozen(x), source(x))
    assert list(frozen.parameters()) == []
    expected = frozen(x)
    source.running_mean.add_(1)  # nothing is shared with the source
    torch.testing.assert_close(frozen(x), expected)
    assert frozen(x.bfloat16()).dtype == torch.bfloat16


def test_frozen_batch_norm_loads_batch_norms_checkpoint():
    source = trained_batch_norm(6)
    frozen = FrozenBatchNorm2d(nn.BatchNorm2d(6, eps=1e-3))
    state = {name: x for name, x in source.state_dict().items() if name != "num_batches_tracked"}
    frozen.load_state_dict(state)
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(frozen(x), source.eval()(x))


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (128, 32), (64, 16), (32, 8), (20, 5), (30, 6), (7, 1), (2, 1)]
)
def test_group_norm_has_at_most_32_groups_of_at_least_four_channels(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups
    assert norm(torch.randn(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), trained_batch_norm(8), nn.Sequential(nn.ReLU(), trained_batch_norm(8)))


@pytest.mark.parametrize(
    ("norm", "kind"), [("", nn.BatchNorm2d), ("FrozenBN", FrozenBatchNorm2d), ("GN", nn.GroupNorm)]
)
def test_replace_batch_norm_reaches_every_depth(norm, kind):
    model = network()
    replaced = replace_batch_norm(model, norm)
    assert replaced is model
    assert isinstance(model[1], kind)
    assert isinstance(model[2][1], kind)
    assert isinstance(model[0], nn.Conv2d)


def test_frozen_network_equals_the_evaluated_one():
    model, x = network().eval(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    torch.testing.assert_close(replace_batch_norm(model, "FrozenBN").train()(x), expected)


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="SyncBN"):
        replace_batch_norm(network(), "SyncBN")
