"""Dense, conditional and merged feed-forward networks compared with plain formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    TEXT_TO_TEXT,
    Attributes,
    ConditionalFeedForward,
    DenseFeedForward,
    UnifiedDecoder,
    attribute_classes,
)
from uniperceiver_v2.modeling.decoder.router import EMBEDDING

DIM, FFN_DIM, EXPERTS, ACTIVE = 6, 5, 4, 2
CLASSES = attribute_classes([IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT, TEXT_TO_TEXT])
SPE, IMAGE, CAPTION = CLASSES[4:7]
layouts = st.lists(st.tuples(st.integers(1, 8), st.sampled_from(CLASSES)), min_size=1, max_size=6)


def conditional(active: int = ACTIVE, experts: int = EXPERTS) -> ConditionalFeedForward:
    """A network in float64 with clearly different routes, without the noise of training."""
    network = ConditionalFeedForward(DIM, FFN_DIM, experts, active).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.7)
    return network


def tokens_of(layout, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, sum(n for n, _ in layout), DIM, dtype=torch.float64, requires_grad=True)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def embed(router, attributes: Attributes) -> torch.Tensor:
    embedded = router.embedding.weight @ torch.tensor(attributes.encoding(), dtype=torch.float64)
    embedded = embedded + router.embedding.bias
    centred = embedded - embedded.mean()
    return centred / (centred.square().mean() + router.norm.eps).sqrt()


def plain(network: ConditionalFeedForward, hidden: torch.Tensor, layout) -> torch.Tensor:
    """Computes token by token and expert by expert."""
    per_token = [attributes for length, attributes in layout for _ in range(length)]
    columns = []
    for x, attributes in zip(hidden.unbind(1), per_token, strict=True):
        router, total = network.router, torch.zeros_like(x)
        normalised = embed(router, attributes) - sum(embed(router, known) for known in CLASSES) / len(CLASSES)
        p = (router.gate.weight @ normalised / EMBEDDING**0.5).exp()
        chosen = sorted(range(len(p)), key=lambda e: -p[e].item())[: router.active]
        for e in chosen:
            first, second = network.experts[e].linear1, network.experts[e].linear2
            y = gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
            total = total + p[e] / (p[chosen].sum() if len(chosen) > 1 else p.sum()) * y
        columns.append(total)
    return torch.stack(columns, dim=1)


def test_dense_network_is_berts():
    ffn = DenseFeedForward(DIM, FFN_DIM).double()
    x = torch.randn(2, 3, DIM, dtype=torch.float64)
    hidden = x @ ffn.linear1.weight.T + ffn.linear1.bias
    torch.testing.assert_close(ffn(x, [(3, IMAGE)]), gelu(hidden) @ ffn.linear2.weight.T + ffn.linear2.bias)


@settings(max_examples=30, deadline=None)
@given(layout=layouts, active=st.integers(1, EXPERTS), seed=st.integers(0, 100))
def test_conditional_network_is_the_plain_formula(layout, active, seed):
    torch.manual_seed(seed)
    network, hidden = conditional(active), tokens_of(layout)
    found, expected = network(hidden, layout), plain(network, hidden, layout)
    torch.testing.assert_close(found, expected)
    leaves, upstream = [hidden, *network.parameters()], torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, leaves, upstream, allow_unused=True) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("batch", "lengths"), [(1, (1, 2, 1, 1)), (5, (1, 40, 20, 60))])
def test_a_class_is_one_product_for_each_layer_of_its_experts(batch, lengths, monkeypatch):
    """For any number of tokens and segments of the class."""
    network, products, linear = conditional(), [], F.linear
    layout = list(zip(lengths, (SPE, IMAGE, CAPTION, IMAGE)))

    def counted(x, weight, bias=None):
        products.append(tuple(weight.shape))
        return linear(x, weight, bias)

    hidden = tokens_of(layout, batch)
    monkeypatch.setattr(F, "linear", counted)
    network(hidden, layout)
    for part in (network.router.embedding, network.router.gate):  # of all classes together
        products.remove(tuple(part.weight.shape))
    assert products == [(FFN_DIM, DIM), (DIM, FFN_DIM)] * ACTIVE * 3
    merged = network.merge([SPE, IMAGE, CAPTION])
    products.clear()
    merged(hidden, layout)
    assert products == [(ACTIVE * FFN_DIM, DIM), (DIM, ACTIVE * FFN_DIM)] * 3


def test_active_operations_are_a_dense_networks():
    layout, counts = [(1, SPE), (30, IMAGE), (9, CAPTION)], []
    for network in (DenseFeedForward(DIM, ACTIVE * FFN_DIM).double(), conditional()):
        with FlopCounterMode(display=False) as counter:
            network(tokens_of(layout), layout)
        counts.append(counter.get_total_flops())
    classes = len(attribute_classes([SPE.task, IMAGE.task, CAPTION.task]))  # those of the whole task
    router = 2 * EMBEDDING * ((len(CLASSES) + classes) * Attributes.ENCODING_LENGTH + classes * EXPERTS)
    assert counts == [2 * 2 * 2 * 40 * DIM * ACTIVE * FFN_DIM, counts[0] + router]


@pytest.mark.parametrize("active", [0, 5])
def test_active_experts_out_of_range(active):
    with pytest.raises(ValueError, match=f"between 1 and 4.* not {active}"):
        ConditionalFeedForward(DIM, FFN_DIM, 4, active)


@settings(max_examples=20, deadline=None)
@given(layout=layouts, active=st.integers(1, EXPERTS), seed=st.integers(0, 100))
def test_merged_network_is_the_conditional_one(layout, active, seed):
    torch.manual_seed(seed)
    network, hidden = conditional(active), tokens_of(layout)
    classes = {attributes for _, attributes in layout}
    torch.testing.assert_close(network.merge(classes)(hidden, layout), network(hidden, layout))


def test_merged_network_refuses_other_attributes():
    merged = conditional().merge([SPE, IMAGE])
    with pytest.raises(ValueError, match=r"without a network for .*causal=True"):
        merged(tokens_of([(2, CAPTION)]), [(2, CAPTION)])


def decoder_with_experts(active: int = 2) -> UnifiedDecoder:
    decoder = UnifiedDecoder(depth=2, dim=DIM, heads=2, ffn_dim=FFN_DIM, experts=8, active_experts=active)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return decoder


def test_experts_start_without_output():
    """So that a decoder with experts starts as pooling, too."""
    decoder = UnifiedDecoder(depth=2, dim=DIM, heads=2, ffn_dim=FFN_DIM, experts=3, active_experts=2)
    for layer in decoder.layers:
        assert not layer.ffn(torch.randn(1, 4, DIM), [(1, SPE), (3, IMAGE)]).any()


def test_merge_report_counts_parameters():
    decoder, classes = decoder_with_experts(), attribute_classes([IMAGE_TO_TEXT])
    expert = 2 * DIM * FFN_DIM + DIM + FFN_DIM
    router = EMBEDDING * (Attributes.ENCODING_LENGTH + 1 + 8)
    used = [{e for route in layer.ffn.route(classes) for e, _ in route} for layer in decoder.layers]
    rest = sum(p.numel() for name, p in decoder.named_parameters() if ".ffn." not in name)
    report = decoder.merge_experts(classes)
    assert report.parameters_before == rest + 2 * (8 * expert + router)
    # The joined second layers of two experts have one bias.
    assert report.parameters_after == rest + 2 * 4 * (2 * expert - DIM)
    assert report.parameters_after == sum(p.numel() for p in decoder.parameters())
    assert report.dropped_experts == [8 - len(experts) for experts in used]
    with pytest.raises(ValueError, match="no experts to merge"):
        decoder.merge_experts(classes)


def test_merging_for_one_class_makes_a_decoder_smaller():
    report = decoder_with_experts(active=1).merge_experts(attribute_classes([IMAGE_TO_TEXT]))
    assert report.parameters_after < report.parameters_before
    assert min(report.dropped_experts) >= 4


def test_dense_networks_cannot_be_merged():
    decoder = UnifiedDecoder(depth=1, dim=DIM, heads=2, ffn_dim=FFN_DIM)
    with pytest.raises(ValueError, match="no experts to merge"):
        decoder.merge_experts(CLASSES)
