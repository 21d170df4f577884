"""Queries are told how far a more certain one covers them, so that of two equal ones the decoder can call one
background."""

import pytest
import torch

from uniperceiver_v2.modeling.image_encoder.boxes import box_overlaps
from uniperceiver_v2.modeling.image_encoder.region_decoder import RegionDecoder, covered_by_better
from uniperceiver_v2.modeling.image_encoder.structures import FeatureMaps

DIM, DEPTH = 16, 2


@pytest.fixture
def decoder() -> RegionDecoder:
    decoder = RegionDecoder(DEPTH, DIM, heads=2, levels=1, points=2, ffn_dim=24)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder.eval()


@pytest.fixture
def features() -> FeatureMaps:
    tokens, valid = torch.randn(1, 12, DIM), torch.ones(1, 12, dtype=torch.bool)
    return FeatureMaps(tokens, torch.randn(1, 12, DIM), valid, [(3, 4)], torch.ones(1, 1, 2))


@pytest.fixture
def twins() -> tuple[torch.Tensor, torch.Tensor]:
    """Contents and boxes of three queries. The first two are equal."""
    contents, boxes = torch.randn(1, 2, DIM), torch.tensor([[[0.3, 0.4, 0.2, 0.2], [0.7, 0.7, 0.2, 0.3]]])
    order = torch.tensor([0, 0, 1])
    return contents[:, order], boxes[:, order]


def is_better(logits: list[float], other: int, query: int) -> bool:
    return logits[other] > logits[query] or (logits[other] == logits[query] and other < query)


def test_covered_by_better_equals_a_loop_over_pairs():
    boxes = torch.cat((torch.rand(2, 9, 2) * 0.3 + 0.3, torch.rand(2, 9, 2) * 0.3 + 0.2), dim=-1)
    objectness = torch.randint(-2, 3, (2, 9)).float()  # with equal ones
    found = covered_by_better(boxes, objectness)
    for image, logits in enumerate(objectness.tolist()):
        for query in range(9):
            overlaps = [
                box_overlaps(boxes[image, query], boxes[image, other])[0].item()
                for other in range(9)
                if is_better(logits, other, query)
            ]
            assert found[image, query].item() == pytest.approx(max(overlaps, default=0.0))
    assert ((found == 0).sum(1) >= 1).all()  # nobody covers the best
    assert (found > 0.3).any()


@torch.no_grad()
def test_of_two_equal_queries_the_less_certain_gets_another_state(decoder, features, twins):
    """Attention among queries alone cannot tell them apart."""
    contents, boxes = twins
    alike, _ = decoder(contents, boxes, features.tokens, features)
    torch.testing.assert_close(alike[:, :, 0], alike[:, :, 1])
    weight = torch.randn(DIM)
    told, _ = decoder(
        contents,
        boxes,
        features.tokens,
        features,
        None,
        torch.tensor([[0.1, 0.2, 0.0]]),
        lambda states: states @ weight,
    )
    assert ((told[:, :, 0] - told[:, :, 1]).abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_each_layer_orders_queries_by_the_objectness_of_the_layer_before(decoder, features, twins):
    contents, boxes = twins
    given = []
    decoder.covered.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0][0, :, 0].tolist()))
    later = [torch.tensor([[0.0, 1.0, 2.0]])]
    decoder(
        contents, boxes, features.tokens, features, None, torch.tensor([[1.0, 0.0, 2.0]]), lambda states: later.pop()
    )
    first, second = given
    assert first == pytest.approx([0.0, 1.0, 0.0])  # the first twin covers the second
    assert second[1] == 0.0 and second[0] > 0.9
    assert not later  # nothing is judged after the last layer


@torch.no_grad()
def test_denoising_queries_neither_cover_nor_are_covered(decoder, features, twins):
    """The first query is a denoising one, with the box of an ordinary one."""
    contents, boxes = twins
    given = []
    decoder.covered.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0][0, :, 0].tolist()))
    decoder(contents, boxes, features.tokens, features, None, torch.tensor([[0.0, 1.0]]), lambda states: states[..., 0])
    assert given[0] == [0.0, 0.0, 0.0]
