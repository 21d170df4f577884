"""The router of the Conditional MoE: its choices, its noise, what it learns, and its table."""

import statistics

import pytest
import torch
from torch import nn

from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    TEXT_TO_TEXT,
    ConditionalFeedForward,
    UnifiedDecoder,
    attribute_classes,
    expert_routes,
    routes_table,
)
from uniperceiver_v2.modeling.decoder.router import Router
from uniperceiver_v2.shared_noise import begin_step, shared_normal

EXPERTS, ACTIVE = 4, 2
CLASSES = attribute_classes([IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT, TEXT_TO_TEXT])
SPE, IMAGE, CAPTION = CLASSES[4:7]


@pytest.fixture(autouse=True)
def first_step():
    """Leaves the shared noise as a process without a trainer has it."""
    torch.manual_seed(0)
    yield
    begin_step(0, 0)


def chosen(routes) -> list[frozenset[int]]:
    return [frozenset(e for e, _ in route) for route in routes]


def numbers(routes) -> list[list[tuple[int, float]]]:
    return [[(e, w.item()) for e, w in route] for route in routes]


def test_weights_of_the_chosen_sum_to_one_and_order_them():
    for route in Router(EXPERTS, 3).route(CLASSES):
        weights = torch.stack([w for _, w in route])
        assert weights.sum().item() == pytest.approx(1)
        assert weights.tolist() == sorted(weights.tolist(), reverse=True)


def test_classes_start_with_different_experts():
    """Over seeds: nearly as different as independent choices (5.4 of 6 pairs, the most common in 4.2 of 13 classes)."""
    pairs = []
    for seed in range(40):
        torch.manual_seed(seed)
        pairs.append(chosen(Router(EXPERTS, ACTIVE).route(CLASSES)))
    assert statistics.mean(len(set(each)) for each in pairs) > 4.8
    most_common = [max(map(each.count, each)) for each in pairs]
    assert statistics.mean(most_common) < 5
    assert max(most_common) < 9  # without the start of the embedding's bias all 13 in some seeds, 8.7 in the mean


def test_a_new_network_averages_its_experts():
    """No weight is far from 1/2, so that both experts learn from the first step."""
    firsts = [route[0][1].item() for seed in range(20) for route in seeded_router(seed).route(CLASSES)]
    assert 0.5 < statistics.mean(firsts) < 0.65


def seeded_router(seed: int, active: int = ACTIVE, layer: int = 0) -> Router:
    torch.manual_seed(seed)
    return Router(EXPERTS, active, layer)


def test_noise_changes_routes_in_training_alone():
    router = seeded_router(0)
    quiet = numbers(router.route(CLASSES))
    begin_step(3, 5)
    assert numbers(router(CLASSES)) != quiet
    assert numbers(router.route(CLASSES)) == quiet
    router.eval()
    assert numbers(router(CLASSES)) == quiet


def test_noise_has_v_moes_deviation():
    """1/E on the logits, read off the weights of two experts of two: their log-odds are the logits' difference."""
    router = seeded_router(0)
    router.active = EXPERTS  # all experts have a weight
    nn.init.zeros_(router.gate.weight)
    logits = []
    for step in range(400):
        begin_step(0, step)
        weights = torch.zeros(EXPERTS)
        for expert, weight in router([IMAGE])[0]:
            weights[expert] = weight.detach()
        logits.append(weights.log() - weights.log().mean())
    deviation = (
        torch.stack(logits).std(0) / (1 - 1 / EXPERTS) ** 0.5
    )  # the mean of four takes a quarter of the variance
    torch.testing.assert_close(deviation, torch.full((EXPERTS,), 1 / EXPERTS), rtol=0.15, atol=0)


def test_noise_is_a_function_of_seed_iteration_layer_and_class():
    """Whatever torch's generator is at, whichever classes stand beside, and however often it is asked."""
    router = seeded_router(0)
    begin_step(1, 7)
    all_together = numbers(router(CLASSES))
    torch.manual_seed(123)
    assert numbers(router(CLASSES[::-1])) == all_together[::-1]
    assert numbers(router([CLASSES[3]]))[0] == [(e, pytest.approx(w)) for e, w in all_together[3]]
    for other in ((2, 7), (1, 8)):
        begin_step(*other)
        assert numbers(router(CLASSES)) != all_together
    begin_step(1, 7)
    assert numbers(router(CLASSES)) == all_together
    router.layer = 1
    assert numbers(router(CLASSES)) != all_together
    nn.init.zeros_(router.gate.weight)  # logits are then the noise alone
    assert len({tuple(w for _, w in route) for route in numbers(router(CLASSES))}) == len(CLASSES)


def test_shared_normal_is_normal():
    begin_step(0, 0)
    values = torch.tensor(shared_normal(4000, 1, 2))
    assert abs(values.mean().item()) < 0.06
    assert abs(values.std().item() - 1) < 0.05


def test_layers_of_a_decoder_have_numbers_of_their_own():
    decoder = UnifiedDecoder(depth=3, dim=6, heads=2, ffn_dim=5, experts=EXPERTS, active_experts=ACTIVE)
    assert [layer.ffn.router.layer for layer in decoder.layers] == [0, 1, 2]


@pytest.mark.parametrize("active", [1, 2])
def test_the_gate_learns_the_best_experts(active):
    """Also with one active expert, and also experts that no class had at the start: each class has experts that give
    a lower loss than the others, and finds them."""
    router = seeded_router(2, active)
    torch.nn.init.zeros_(router.gate.weight)
    with torch.no_grad():  # at first all classes take the experts 0 and 1, which are the worse ones
        router.norm.bias.fill_(1.0)
        router.gate.weight[:2] += 0.6 / 64
    assert set.union(*map(set, chosen(router.route(CLASSES)))) == set(range(active))
    optimizer = torch.optim.Adam(router.parameters(), 0.01)
    losses = {e: float(e < 2) for e in range(EXPERTS)}
    for step in range(300):
        begin_step(0, step)
        optimizer.zero_grad()
        sum(w * losses[e] - (w if active == 1 else 0) for route in router(CLASSES) for e, w in route).backward()
        assert router.gate.weight.grad.abs().sum() > 0
        optimizer.step()
    assert all(experts <= {2, 3} for experts in chosen(router.route(CLASSES)))


def test_router_sees_nothing_but_attributes():
    network, seen = ConditionalFeedForward(6, 5, EXPERTS, ACTIVE).eval(), []
    network.router.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layout = [(1, SPE), (3, IMAGE), (2, CAPTION), (2, IMAGE)]
    for scale in (1.0, -50.0):
        network(scale * torch.randn(2, 8, 6), layout)
    expected = torch.tensor([x.encoding() for x in (SPE, IMAGE, CAPTION)], dtype=torch.float32)
    assert len(seen) == 2
    assert all(torch.equal(x, expected) for x in seen)


@torch.no_grad()
def test_kept_routes_follow_the_router():
    """In place, by loading, and by other storage; without a change they are not computed anew."""
    router, calls = seeded_router(0).eval(), []
    router.gate.register_forward_hook(lambda *_: calls.append(1))

    def check(expected_calls: int) -> None:
        found = router([SPE, IMAGE])
        assert len(calls) == expected_calls
        with torch.enable_grad():
            assert found == router([SPE, IMAGE])
        calls.clear()

    check(1)
    check(0)
    router.norm.bias += 1
    check(1)
    router.load_state_dict(seeded_router(1).state_dict())
    check(1)
    router.gate.weight.data = -router.gate.weight.data
    check(1)
    assert router([CAPTION]) != router([IMAGE])
    assert len(calls) == 1


@torch.no_grad()
def test_noisy_routes_are_not_kept():
    """Of the same weights, the next iteration has other routes."""
    router = seeded_router(0)
    found = []
    for step in range(2):
        begin_step(0, step)
        found.append(numbers(router(CLASSES)))
    assert found[0] != found[1]


@pytest.mark.parametrize("training", [False, True])
def test_routes_do_not_depend_on_the_precision(training):
    network = ConditionalFeedForward(6, 5, EXPERTS, ACTIVE).train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = network.router(CLASSES)
        assert network(torch.randn(1, 2, 6), [(2, IMAGE)]).dtype == torch.bfloat16
    assert lower == network.router(CLASSES)


def test_merging_in_training_mode_has_evaluations_routes():
    network = ConditionalFeedForward(6, 5, EXPERTS, ACTIVE)
    begin_step(0, 3)
    hidden, layout = torch.randn(2, 5, 6), [(1, SPE), (4, IMAGE)]
    merged = network.merge([SPE, IMAGE])
    assert not torch.allclose(merged(hidden, layout), network(hidden, layout))
    torch.testing.assert_close(merged(hidden, layout), network.eval()(hidden, layout))


def test_table_of_routes():
    decoder = UnifiedDecoder(depth=2, dim=6, heads=2, ffn_dim=5, experts=EXPERTS, active_experts=ACTIVE)
    layers = expert_routes(decoder)  # although in training mode, without noise
    assert [list(layer) for layer in layers] == [CLASSES, CLASSES]
    for layer, routes in zip(decoder.layers, layers):
        assert [routes[c] for c in CLASSES] == numbers(layer.ffn.route(CLASSES))
    routes = {IMAGE: [(3, 0.75), (0, 0.25)], CAPTION: [(0, 0.5), (3, 0.5)]}, {IMAGE: [(1, 1.0)], CAPTION: [(2, 1.0)]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in routes_table(routes).splitlines()]
    assert rows[0] == ["token", "sequence", "task", "layer 0", "layer 1"]
    assert rows[2:] == [
        ["image", "input", "image+text to text", "3 (0.75) 0 (0.25)", "1 (1.00)"],
        ["causal text", "input", "image+text to text", "0 (0.50) 3 (0.50)", "2 (1.00)"],
        ["different sets", "", "", "1 for 2 classes", "2 for 2 classes"],
        ["classes of expert", "", "", "0: 2 3: 2", "1: 1 2: 1"],
    ]
    decoder.merge_experts(CLASSES)
    assert expert_routes(decoder) == []
