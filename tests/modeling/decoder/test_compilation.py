"""The compiled decoder: the same function and the same names, and few graphs for all lengths and routes."""

import copy
import itertools

import pytest
import torch
from torch import nn

from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    Attributes,
    Segment,
    UnifiedDecoder,
)

from ..graphs import Graphs, fresh  # noqa: F401  (a fixture)

DIM = 16
IMAGE, TEXT = Attributes("image", "input", IMAGE_TO_TEXT), Attributes("text", "target", IMAGE_TO_TEXT)
SCENE = Attributes("image", "input", IMAGE_TEXT_TO_TEXT)
CAPTION = Attributes("text", "input", IMAGE_TEXT_TO_TEXT, causal=True)
SHAPES = list(itertools.product((2, 3, 5), (4, 12), (2, 9)))  # images, their tokens, those of a text


def random_decoder(experts: int, depth: int = 3) -> UnifiedDecoder:
    decoder = UnifiedDecoder(depth=depth, dim=DIM, heads=2, ffn_dim=24, experts=experts, active_experts=2)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


def compiled(decoder: UnifiedDecoder, backend) -> UnifiedDecoder:
    decoder = copy.deepcopy(decoder)
    decoder.compile_layers(backend)
    return decoder


def outputs(decoder: UnifiedDecoder, batch: int, tokens: int, words: int) -> torch.Tensor:
    """Outputs for an image, for padded texts, and for captions after padded images."""
    torch.manual_seed(batch + 10 * tokens + 100 * words)
    kept, said = (torch.arange(n) < torch.randint(1, n + 1, (batch, 1)) for n in (tokens, words))
    image, text = torch.randn(batch, tokens, DIM), torch.randn(batch, words, DIM)
    found = [
        decoder([Segment(image, None, IMAGE)]),
        decoder([Segment(text, said, TEXT)]),
        decoder([Segment(image, kept, SCENE), Segment(text, said, CAPTION)]),
    ]
    return torch.stack(
        [representations.spe.square().sum() + representations.segments[-1].sin().sum() for representations in found]
    )


def read(decoder: UnifiedDecoder, batch: int, tokens: int, words: int) -> torch.Tensor:
    """<SPE> of padded texts, the words of captions after images, and some positions of texts."""
    torch.manual_seed(batch + 10 * tokens + 100 * words)
    said = torch.arange(words) < torch.randint(1, words + 1, (batch, 1))
    image, text = torch.randn(batch, tokens, DIM), torch.randn(batch, words, DIM)
    found = [
        decoder.read_spe([Segment(text, said, TEXT)]),
        decoder.read_last([Segment(image, None, SCENE), Segment(text, said, CAPTION)]),
        decoder.read_last([Segment(text, said, TEXT)], torch.randint(words, (batch, 2))),
    ]
    return torch.stack([x.sin().sum() for x in found])


def text_outputs(decoder: UnifiedDecoder) -> torch.Tensor:
    torch.manual_seed(1)
    return decoder([Segment(torch.randn(2, 4, DIM), None, TEXT)]).segments[0]


def numbers(decoder: UnifiedDecoder, *shape: int) -> list[torch.Tensor]:
    found = outputs(decoder, *shape)
    return [found, *torch.autograd.grad(found.sum(), list(decoder.parameters()), allow_unused=True)]


@torch.no_grad()
def generated(decoder: UnifiedDecoder, batch: int, tokens: int, steps: int) -> torch.Tensor:
    torch.manual_seed(batch + tokens)
    kept = torch.arange(tokens) < torch.randint(1, tokens + 1, (batch, 1))
    cache = decoder.begin([Segment(torch.randn(batch, tokens, DIM), kept, SCENE)])
    cache = cache.select(torch.arange(batch).repeat_interleave(2))
    found = []
    for _ in range(steps):
        found.append(decoder.extend(cache, torch.randn(2 * batch, 1, DIM), CAPTION))
        cache = cache.select(torch.arange(2 * batch).flip(0).view(batch, 2).flip(0).flatten())
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("experts", [0, 3], ids=["dense", "experts"])
def test_training_in_few_graphs_whatever_the_lengths_and_routes(experts):
    decoder, graphs = random_decoder(experts), Graphs()
    other = compiled(decoder, graphs)
    counts = []
    for shape in SHAPES:
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if "router" in name:
                    other.get_parameter(name).copy_(nn.init.normal_(parameter))
        for found, expected in zip(numbers(other, *shape), numbers(decoder, *shape), strict=True):
            assert (found is None and expected is None) or torch.equal(found, expected)
        counts.append(len(graphs))
    assert 0 < counts[7] == counts[-1] <= 16, counts  # for three layers with different weights


@torch.no_grad()
@pytest.mark.parametrize("experts", [0, 3], ids=["dense", "experts"])
def test_reading_in_few_graphs(experts):
    decoder, graphs = random_decoder(experts), Graphs()
    other = compiled(decoder, graphs)
    for number, shape in enumerate(SHAPES):
        assert torch.equal(read(other, *shape), read(decoder, *shape))
        if number == 7:
            counts = len(graphs)
    assert counts == len(graphs) <= 20


def test_generation_in_few_graphs():
    decoder, graphs = random_decoder(experts=3).eval(), Graphs()
    other = compiled(decoder, graphs)
    for batch, tokens, steps in ((2, 5, 2), (3, 7, 40)):  # more steps than the cache makes room for at once
        assert torch.equal(generated(other, batch, tokens, steps), generated(decoder, batch, tokens, steps))
        counts = len(graphs)
    assert counts <= 10
    generated(other, 4, 5, 5)
    assert len(graphs) == counts


def test_names_stay_and_a_copy_has_weights_of_its_own():
    decoder = random_decoder(3)
    other = compiled(decoder, Graphs())
    assert other.state_dict().keys() == decoder.state_dict().keys()
    third = copy.deepcopy(other)
    with torch.no_grad():
        third.layers[0].attention.v_proj.weight.zero_()
    assert torch.equal(text_outputs(other), text_outputs(decoder))
    assert not torch.equal(text_outputs(third), text_outputs(decoder))


@torch.no_grad()
def test_merged_experts_are_compiled_too():
    decoder, graphs = random_decoder(3), Graphs()
    other = compiled(decoder, graphs)
    classes = [Attributes("special", TEXT.role, TEXT.task), TEXT]
    for each in (decoder, other):
        each.merge_experts(classes)
    assert torch.equal(text_outputs(other), text_outputs(decoder))
    assert any(node.target is torch.nn.functional.gelu for graph in graphs for node in graph.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("experts", [0, 3], ids=["dense", "experts"])
def test_inductor(experts):
    decoder = random_decoder(experts)
    other = copy.deepcopy(decoder)
    other.compile_layers()
    for shape in SHAPES[:2]:
        torch.testing.assert_close(numbers(other, *shape), numbers(decoder, *shape), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(generated(other, 2, 5, 3), generated(decoder, 2, 5, 3), atol=1e-4, rtol=1e-4)
