"""Generation with cached keys and values compared with decoding the whole sequence in each step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT, Attributes, Segment, UnifiedDecoder, attribute_classes
from uniperceiver_v2.modeling.decoder.unified_decoder import UnifiedDecoderLayer

DIM = 8
IMAGE = Attributes("image", "input", IMAGE_TEXT_TO_TEXT)
CAPTION = Attributes("text", "input", IMAGE_TEXT_TO_TEXT, causal=True)
KINDS = ("dense", "experts", "merged")


def decoder_of(kind: str, dtype: torch.dtype = torch.float64) -> UnifiedDecoder:
    experts = 0 if kind == "dense" else 4
    decoder = UnifiedDecoder(depth=2, dim=DIM, heads=2, ffn_dim=12, experts=experts, active_experts=2).to(dtype)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    if kind == "merged":
        decoder.merge_experts(attribute_classes([IMAGE_TEXT_TO_TEXT]))
    return decoder.eval()  # routes without noise


def images(batch: int, has_padding: bool, dtype: torch.dtype = torch.float64) -> list[Segment]:
    """Two segments. The first has different padding in every row."""
    valid = torch.rand(batch, 4) < 0.6 if has_padding else None
    tokens = torch.randn(2, batch, 4, DIM, dtype=dtype)
    return [Segment(tokens[0], valid, IMAGE), Segment(tokens[1], None, IMAGE)]


def rows_of(segments: list[Segment], rows: torch.Tensor) -> list[Segment]:
    return [Segment(s.tokens[rows], None if s.valid is None else s.valid[rows], s.attributes) for s in segments]


def anew(decoder: UnifiedDecoder, segments: list[Segment], words: torch.Tensor) -> torch.Tensor:
    return decoder([*segments, Segment(words, None, CAPTION)]).segments[-1]


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    has_padding=st.booleans(),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    batch=st.integers(1, 3),
)
def test_cached_equals_uncached(kind, has_padding, chunks, batch):
    torch.manual_seed(0)
    decoder, segments = decoder_of(kind), images(batch, has_padding)
    words = torch.randn(batch, sum(chunks), DIM, dtype=torch.float64)
    cache = decoder.begin(segments)
    found = torch.cat([decoder.extend(cache, chunk, CAPTION) for chunk in words.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(found, anew(decoder, segments, words))
    assert cache.length == 1 + 8 + sum(chunks)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    has_padding=st.booleans(),
    steps=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=5),
)
def test_rows_are_repeated_dropped_and_reordered(kind, has_padding, steps):
    torch.manual_seed(0)
    decoder, segments = decoder_of(kind), images(3, has_padding)
    words, owners = torch.empty(3, 0, DIM, dtype=torch.float64), torch.arange(3)
    cache = decoder.begin(segments)
    for choice in steps:
        rows = torch.tensor(choice) % len(owners)
        words, owners, cache = words[rows], owners[rows], cache.select(rows)
        new = torch.randn(len(rows), 1, DIM, dtype=torch.float64)
        words = torch.cat((words, new), dim=1)
        found = decoder.extend(cache, new, CAPTION)
        torch.testing.assert_close(found, anew(decoder, rows_of(segments, owners), words)[:, -1:])


@pytest.mark.parametrize("kind", KINDS)
def test_beams_in_single_precision(kind):
    """As in beam search: each image's beams are copied once, and later reordered among themselves."""
    decoder, segments, beams = decoder_of(kind, torch.float32), images(4, True, torch.float32), 3
    cache, owners = decoder.begin(segments), torch.arange(4).repeat_interleave(beams)
    cache = cache.select(owners)
    words = torch.empty(12, 0, DIM)
    kept = cache.past._buffer.data_ptr()
    for _ in range(20):
        rows = (owners * beams).view(4, beams) + torch.randint(0, beams, (4, beams))
        cache, words = cache.select(rows.flatten()), words[rows.flatten()]
        words = torch.cat((words, torch.randn(12, 1, DIM)), dim=1)
        found = decoder.extend(cache, words[:, -1:], CAPTION)
        torch.testing.assert_close(found, anew(decoder, rows_of(segments, owners), words)[:, -1:], atol=1e-5, rtol=1e-5)
    assert cache.past._buffer.data_ptr() == kept  # no image was copied


def test_a_cache_grows_without_end():
    decoder, segments = decoder_of("dense"), images(2, True)
    cache, words = decoder.begin(segments), torch.randn(2, 80, DIM, dtype=torch.float64)
    found = torch.cat([decoder.extend(cache, words[:, t : t + 1], CAPTION) for t in range(80)], dim=1)
    torch.testing.assert_close(found, anew(decoder, segments, words))


def test_a_cache_holds_no_gradients():
    decoder = decoder_of("experts")
    cache = decoder.begin(images(1, False))
    words = torch.randn(1, 2, DIM, dtype=torch.float64, requires_grad=True)
    assert not decoder.extend(cache, words, CAPTION).requires_grad


def test_what_is_causal_and_what_is_not():
    decoder, segments = decoder_of("dense"), images(1, False)
    with pytest.raises(ValueError, match="not causal"):
        decoder.begin([*segments, Segment(segments[0].tokens, None, CAPTION)])
    with pytest.raises(ValueError, match="only causal tokens"):
        decoder.extend(decoder.begin(segments), segments[0].tokens, IMAGE)


def test_a_merged_decoder_is_saved_and_loaded():
    """It is loaded into a decoder that was merged for the same classes from other experts."""
    decoder, segments = decoder_of("merged"), images(2, True)
    other = decoder_of("merged")
    words = torch.randn(2, 3, DIM, dtype=torch.float64)
    assert not torch.allclose(anew(other, segments, words), anew(decoder, segments, words))
    other.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(anew(other, segments, words), anew(decoder, segments, words))
    assert not any("router" in name for name in decoder.state_dict())


def test_merged_decoder_equals_the_one_with_experts():
    decoder, segments = decoder_of("experts", torch.float32), images(2, True, torch.float32)
    words = torch.randn(2, 5, DIM)
    before = decoder([*segments, Segment(words, None, CAPTION)])
    decoder.merge_experts(attribute_classes([IMAGE_TEXT_TO_TEXT]))
    after = decoder([*segments, Segment(words, None, CAPTION)])
    torch.testing.assert_close(after.spe, before.spe, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.segments, before.segments, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layers_are_prepared_once_and_again_when_a_weight_changes(kind, monkeypatch):
    decoder, segments, words = decoder_of(kind).eval(), images(2, False), torch.randn(2, 3, DIM, dtype=torch.float64)
    prepared, prepare = [], UnifiedDecoderLayer.prepare
    monkeypatch.setattr(UnifiedDecoderLayer, "prepare", lambda *args: prepared.append(1) or prepare(*args))
    # The last change, to the precision that it has already, is none.
    for change, times in (
        (lambda: None, 1),
        (lambda: decoder.layers[1].ffn_norm.weight.mul_(2), 2),
        (decoder.double, 2),
    ):
        change()
        found = decoder.extend(decoder.begin(segments), words, CAPTION)
        torch.testing.assert_close(found, anew(decoder, segments, words))
        assert len(prepared) == times * len(decoder.layers)
    assert len(decoder._prepared) == 1
    decoder.train()
    assert len(decoder._prepared) == 0


@torch.no_grad()
def test_steps_under_autocast():
    decoder, segments = decoder_of("experts", torch.float32).eval(), images(2, True, torch.float32)
    words = torch.randn(2, 3, DIM)
    exact = anew(decoder, segments, words)
    decoder.extend(decoder.begin(segments), words, CAPTION)  # prepared in single precision
    with torch.autocast("cpu", torch.bfloat16):
        cache = decoder.begin(segments)
        found = torch.cat([decoder.extend(cache, word, CAPTION) for word in words.split(1, dim=1)], dim=1)
    assert cache.past._buffer.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.15, rtol=0.1)
