"""Reading some positions gives the same as the whole forward pass at these positions, and costs less."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT, IMAGE_TO_TEXT, Attributes, Segment, UnifiedDecoder

DIM, HEADS, FFN_DIM, DEPTH = 8, 2, 12, 2
IMAGE, TEXT = Attributes("image", "input", IMAGE_TO_TEXT), Attributes("text", "target", IMAGE_TO_TEXT)
CAPTION = Attributes("text", "input", IMAGE_TEXT_TO_TEXT, causal=True)


def random_decoder(experts: int) -> UnifiedDecoder:
    decoder = UnifiedDecoder(
        depth=DEPTH, dim=DIM, heads=HEADS, ffn_dim=FFN_DIM, experts=experts, active_experts=2
    ).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


def segments_of(kinds: list[tuple[int, Attributes]], batch: int, has_padding: bool) -> list[Segment]:
    found = []
    for length, attributes in kinds:
        valid = torch.rand(batch, length) < 0.7 if has_padding else None
        tokens = torch.randn(batch, length, DIM, dtype=torch.float64, requires_grad=True)
        found.append(Segment(tokens, valid, attributes))
    return found


def assert_same(decoder: UnifiedDecoder, segments: list[Segment], found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compares values and gradients. The gradient of an unread input is zero in one case and None in the other."""
    torch.testing.assert_close(found, expected)
    leaves, upstream = [*(s.tokens for s in segments), *decoder.parameters()], torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, leaves, upstream, allow_unused=True) for y in (found, expected)]
    for leaf, ours, theirs in zip(leaves, *gradients, strict=True):
        ours, theirs = (torch.zeros_like(leaf) if g is None else g for g in (ours, theirs))
        torch.testing.assert_close(ours, theirs)


drawn = given(
    before=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([IMAGE, TEXT])), max_size=3),
    last=st.tuples(st.integers(1, 5), st.sampled_from([IMAGE, TEXT, CAPTION])),
    batch=st.integers(1, 3),
    has_padding=st.booleans(),
    experts=st.sampled_from([0, 4]),
)


@settings(max_examples=25, deadline=None)
@drawn
def test_spe_alone(before, last, batch, has_padding, experts):
    torch.manual_seed(0)
    decoder, segments = random_decoder(experts), segments_of([*before, last], batch, has_padding)
    assert_same(decoder, segments, decoder.read_spe(segments), decoder(segments).spe)


@settings(max_examples=25, deadline=None)
@drawn
def test_last_segment_alone(before, last, batch, has_padding, experts):
    torch.manual_seed(0)
    decoder, segments = random_decoder(experts), segments_of([*before, last], batch, has_padding)
    assert_same(decoder, segments, decoder.read_last(segments), decoder(segments).segments[-1])


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 5), count=st.integers(1, 6), batch=st.integers(1, 3), experts=st.sampled_from([0, 4]))
def test_positions_of_the_last_segment(length, count, batch, experts):
    torch.manual_seed(0)
    decoder, segments = random_decoder(experts), segments_of([(2, IMAGE), (length, TEXT)], batch, True)
    positions = torch.randint(length, (batch, count))
    expected = decoder(segments).segments[-1][torch.arange(batch)[:, None], positions]
    assert_same(decoder, segments, decoder.read_last(segments, positions), expected)


def test_positions_of_a_causal_segment_are_refused():
    segments = segments_of([(2, IMAGE), (3, CAPTION)], 1, False)
    with pytest.raises(ValueError, match="all positions are read"):
        random_decoder(0).read_last(segments, torch.zeros(1, 1, dtype=torch.long))


def products(run) -> int:
    """The operations of projections and networks, without those between tokens."""
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(operation, 0) for operation in (torch.ops.aten.addmm, torch.ops.aten.mm))


@torch.no_grad()
@pytest.mark.parametrize("experts", [0, 4])
def test_the_last_layer_works_for_what_is_read(experts):
    """It computes keys and values of all tokens, and everything else only for the tokens that are read."""
    decoder = random_decoder(experts).eval()  # training chooses experts anew each time
    image, text, caption = (segments_of([(n, kind)], 1, False)[0] for n, kind in ((30, IMAGE), (5, TEXT), (5, CAPTION)))
    per_token = 2 * (2 * DIM * DIM + 2 * DIM * (2 * FFN_DIM if experts else FFN_DIM))
    decoder([image, text]), decoder([image, caption])  # from here on routes are known

    def saved(reading, segments: list[Segment]) -> int:
        return products(lambda: decoder(segments)) - products(lambda: reading(segments))

    assert saved(decoder.read_spe, [image, text]) == 35 * per_token
    assert saved(decoder.read_last, [image, text]) == 31 * per_token
    positions = torch.zeros(1, 2, dtype=torch.long)
    assert saved(lambda s: decoder.read_last(s, positions), [image, text]) == 34 * per_token
    assert saved(decoder.read_last, [image, caption]) == 31 * per_token
    assert saved(decoder.begin, [image]) == 31 * per_token
