"""The unified decoder compared with PyTorch's Transformer with the same weights."""

import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    Attributes,
    ConditionalFeedForward,
    DenseFeedForward,
    Segment,
    UnifiedDecoder,
)

DIM, HEADS, FFN_DIM, DEPTH = 16, 2, 24, 2
IMAGE, TEXT = Attributes("image", "input", IMAGE_TO_TEXT), Attributes("text", "target", IMAGE_TO_TEXT)
CAPTION = Attributes("text", "input", IMAGE_TEXT_TO_TEXT, causal=True)


def random_decoder(experts: int = 0) -> UnifiedDecoder:
    decoder = UnifiedDecoder(
        depth=DEPTH, dim=DIM, heads=HEADS, ffn_dim=FFN_DIM, experts=experts, active_experts=2
    ).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


@pytest.fixture
def decoder() -> UnifiedDecoder:
    return random_decoder()


def segment(length: int, attributes: Attributes = IMAGE, valid: torch.Tensor | None = None, batch: int = 2) -> Segment:
    return Segment(torch.randn(batch, length, DIM, dtype=torch.float64), valid, attributes)


def pytorchs(decoder: UnifiedDecoder) -> nn.TransformerEncoder:
    """The decoder's layers as layers of torch.nn, with copied weights."""
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, FFN_DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    stack = nn.TransformerEncoder(layer, DEPTH, norm=nn.LayerNorm(DIM), enable_nested_tensor=False).double()
    with torch.no_grad():
        for theirs, ours in zip(stack.layers, decoder.layers, strict=True):
            projections = ours.attention.q_proj, ours.attention.k_proj, ours.attention.v_proj
            theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
            theirs.self_attn.out_proj.load_state_dict(ours.attention.o_proj.state_dict())
            theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
            theirs.norm2.load_state_dict(ours.ffn_norm.state_dict())
            theirs.linear1.load_state_dict(ours.ffn.linear1.state_dict())
            theirs.linear2.load_state_dict(ours.ffn.linear2.state_dict())
        stack.norm.load_state_dict(decoder.norm.state_dict())
    return stack


@pytest.mark.parametrize("has_padding", [False, True])
def test_equals_pytorchs_transformer(decoder, has_padding):
    valid = torch.tensor([[True] * 4, [True, True, False, False]]) if has_padding else None
    parts = [segment(3, IMAGE), segment(4, TEXT, valid)]
    found = decoder(parts)
    norms = decoder.input_norms
    sequence = [decoder.spe.expand(2, 1, DIM), norms["image"](parts[0].tokens), norms["text"](parts[1].tokens)]
    padding = None if valid is None else torch.cat((torch.zeros(2, 4, dtype=torch.bool), ~valid), dim=1)
    expected = pytorchs(decoder).train()(torch.cat(sequence, dim=1), src_key_padding_mask=padding)
    torch.testing.assert_close(found.spe, expected[:, 0])
    torch.testing.assert_close(found.segments[0], expected[:, 1:4])
    kept = slice(None) if valid is None else valid
    torch.testing.assert_close(found.segments[1][kept], expected[:, 4:][kept])


@pytest.mark.parametrize("has_padding", [False, True])
def test_causal_tokens_equal_pytorchs_with_a_mask(decoder, has_padding):
    """PyTorch uses one mask for all tokens. Our decoder decodes the tokens before the causal ones separately."""
    before, valid = None, None
    if has_padding:
        before, valid = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
        before[0, 1] = valid[1, 3:] = valid[0, 2] = False
    parts = [segment(3, IMAGE, before), segment(5, CAPTION, valid)]
    for part in parts:
        part.tokens.requires_grad_()
    found = decoder(parts)
    norms = decoder.input_norms
    sequence = [decoder.spe.expand(2, 1, DIM), norms["image"](parts[0].tokens), norms["text"](parts[1].tokens)]
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    hidden[:4, :4] = False
    padding = torch.zeros(2, 9, dtype=torch.bool)
    if has_padding:
        padding[:, 1:] = ~torch.cat((before, valid), dim=1)
    expected = pytorchs(decoder).train()(torch.cat(sequence, dim=1), hidden, src_key_padding_mask=padding)
    ours = torch.cat([found.spe[:, None], *found.segments], dim=1)
    torch.testing.assert_close(ours[~padding], expected[~padding])
    upstream = torch.randn_like(expected[~padding])
    leaves = [part.tokens for part in parts]
    torch.testing.assert_close(
        torch.autograd.grad(ours[~padding], leaves, upstream),
        torch.autograd.grad(expected[~padding], leaves, upstream),
    )


@settings(max_examples=25, deadline=None)
@given(
    before=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([IMAGE, TEXT])), max_size=3),
    length=st.integers(1, 6),
    data=st.data(),
    experts=st.sampled_from([0, 4]),
)
def test_nothing_sees_a_later_causal_token(before, length, data, experts):
    torch.manual_seed(0)
    changed = data.draw(st.integers(0, length - 1))
    parts = [segment(n, attributes) for n, attributes in before]
    caption = segment(length, CAPTION)
    other = Segment(caption.tokens.clone(), None, CAPTION)
    other.tokens[:, changed] += torch.randn(DIM, dtype=torch.float64)
    decoder = random_decoder(experts)
    first, second = decoder([*parts, caption]), decoder([*parts, other])
    assert torch.equal(first.spe, second.spe)
    for ours, theirs in zip(first.segments[:-1], second.segments[:-1], strict=True):
        assert torch.equal(ours, theirs)
    moved = (first.segments[-1] - second.segments[-1]).abs().amax(-1)
    assert (moved[:, :changed] < 1e-12).all()
    assert (moved[:, changed:] > 1e-6).all()
    if parts:  # nor does it matter to the others that there is a causal segment; <SPE> takes the first one's task
        torch.testing.assert_close(decoder(parts).segments, first.segments[:-1])


def test_causal_tokens_see_what_stands_before(decoder):
    parts = [segment(2, IMAGE), segment(3, CAPTION)]
    parts[0].tokens.requires_grad_()
    for t in range(3):
        output = decoder(parts).segments[-1][:, t].square().sum()
        (gradient,) = torch.autograd.grad(output, parts[0].tokens)
        assert (gradient.abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("order", [(CAPTION, IMAGE), (IMAGE, CAPTION, CAPTION)])
def test_a_causal_segment_stands_last(decoder, order):
    with pytest.raises(ValueError, match="must be the last"):
        decoder([segment(2, attributes) for attributes in order])


def test_padding_is_invisible(decoder):
    valid = torch.tensor([[True, False, True, True, False]])
    padded = segment(5, TEXT, valid, batch=1)
    alone = Segment(padded.tokens[:, valid[0]], None, TEXT)
    expected = decoder([alone])
    padded.tokens[~valid] = 1e3
    found = decoder([padded])
    torch.testing.assert_close(found.spe, expected.spe)
    torch.testing.assert_close(found.segments[0][:, valid[0]], expected.segments[0])


def test_segments_come_back_as_they_went_in(decoder):
    """A change of a segment's tokens changes this segment's outputs the most."""
    parts = [segment(2), segment(5, TEXT), segment(1)]
    found = decoder(parts)
    assert [x.shape for x in found.segments] == [(2, 2, DIM), (2, 5, DIM), (2, 1, DIM)]
    assert found.spe.shape == (2, DIM)
    # Without attention every output depends on its own token alone.
    for layer in decoder.layers:
        nn.init.zeros_(layer.attention.o_proj.weight)
    before = decoder(parts)
    parts[1].tokens[:, 3] += 1.0
    after = decoder(parts)
    torch.testing.assert_close(after.spe, before.spe)
    torch.testing.assert_close([after.segments[0], after.segments[2]], [before.segments[0], before.segments[2]])
    changed = (after.segments[1] != before.segments[1]).any(-1)
    assert changed.tolist() == [[False, False, False, True, False]] * 2


def test_all_tokens_see_each_other(decoder):
    tokens = torch.randn(1, 3, DIM, dtype=torch.float64, requires_grad=True)
    for output in (lambda r: r.spe, lambda r: r.segments[0][:, 0], lambda r: r.segments[0][:, 2]):
        representations = decoder([Segment(tokens, None, IMAGE)])
        (gradient,) = torch.autograd.grad(output(representations).square().sum(), tokens)
        assert (gradient.abs().amax(-1) > 1e-6).all()


def test_modalities_have_norms_of_their_own(decoder):
    tokens = torch.randn(1, 3, DIM, dtype=torch.float64)
    as_image, as_text = decoder([Segment(tokens, None, IMAGE)]), decoder([Segment(tokens, None, TEXT)])
    assert not torch.allclose(as_image.spe, as_text.spe)
    decoder.input_norms["text"].load_state_dict(decoder.input_norms["image"].state_dict())
    torch.testing.assert_close(decoder([Segment(tokens, None, TEXT)]).spe, as_image.spe)


def test_layout_tells_which_attributes_stand_where(decoder):
    """A routed feed-forward network uses the layout."""
    seen = []
    decoder.layers[0].ffn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    decoder([segment(2, IMAGE), segment(3, TEXT)])
    assert list(seen[0]) == [(1, Attributes("special", "input", IMAGE_TO_TEXT)), (2, IMAGE), (3, TEXT)]
    decoder([segment(3, TEXT)])
    assert list(seen[1]) == [(1, Attributes("special", "target", IMAGE_TO_TEXT)), (3, TEXT)]


@pytest.mark.parametrize(("experts", "network"), [(0, DenseFeedForward), (5, ConditionalFeedForward)])
def test_sizes_from_the_configuration(experts, network):
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    node = cfg.MODEL.UNIPERCEIVER_V2
    node.EMBED_DIM = 24
    node.DECODER.update({"LAYERS": 3, "HEADS": 4, "FFN_DIM": 40, "EXPERTS": experts, "ACTIVE_EXPERTS": 3})
    decoder = UnifiedDecoder(cfg)
    assert len(decoder.layers) == 3
    assert decoder.layers[0].attention.heads == 4
    ffn = decoder.layers[0].ffn
    assert isinstance(ffn, network)
    if experts:
        assert (len(ffn.experts), ffn.router.active) == (5, 3)
    first = ffn.experts[0] if experts else ffn
    assert first.linear1.weight.shape == (40, 24)


def test_gradients_by_finite_differences():
    decoder = UnifiedDecoder(depth=1, dim=4, heads=2, ffn_dim=6).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    valid = torch.tensor([[True, True, False]])
    tokens = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def outputs(x):
        found = decoder([Segment(x, valid, IMAGE)])
        return found.spe, found.segments[0]

    assert torch.autograd.gradcheck(outputs, (tokens,))
