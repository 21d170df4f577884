"""The router of the Conditional MoE: its choices, its noise, what it learns, and its table."""

import itertools
import statistics

import pytest
import torch
from torch import nn

from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    TEXT_TO_TEXT,
    ConditionalFeedForward,
    Segment,
    UnifiedDecoder,
    attribute_classes,
    expert_routes,
    routes_table,
)
from uniperceiver_v2.modeling.decoder import router as router_module
from uniperceiver_v2.modeling.decoder.router import Router
from uniperceiver_v2.shared_noise import noise_of_step, shared_normal
from uniperceiver_v2.transfer import fetch

EXPERTS, ACTIVE = 4, 2
CLASSES = attribute_classes([IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT, TEXT_TO_TEXT])
SPE, IMAGE, CAPTION = CLASSES[4:7]


def chosen(routes) -> list[frozenset[int]]:
    return [frozenset(e for e, _ in route) for route in routes]


def numbers(routes) -> list[list[tuple[int, float]]]:
    return [[(e, w.item()) for e, w in route] for route in routes]


def test_weights_of_the_chosen_sum_to_one_and_order_them():
    for route in Router(EXPERTS, 3).route(CLASSES):
        weights = torch.stack([w for _, w in route])
        assert weights.sum().item() == pytest.approx(1)
        assert weights.tolist() == sorted(weights.tolist(), reverse=True)


@pytest.mark.parametrize(
    ("experts", "different_sets", "alike", "uses"),
    [(4, 5, 2, range(5, 9)), (8, 8, 1, range(2, 6))],
)
def test_the_start_is_spread_with_every_seed(experts, different_sets, alike, uses):
    """Experts serve about equally many of the 13 classes, and classes of different modality or role have different
    experts: `alike` is the most pairs of such classes with the same two experts."""
    for seed in range(100):
        torch.manual_seed(seed)
        pairs = chosen(Router(experts, ACTIVE).route(CLASSES))
        assert len(set(pairs)) >= different_sets
        assert {sum(e in pair for pair in pairs) for e in range(experts)} <= set(uses)
        together = [(a, b) for (a, p), (b, q) in itertools.combinations(zip(CLASSES, pairs), 2) if p == q]
        assert sum((a.modality, a.role) != (b.modality, b.role) for a, b in together) <= alike


def test_noise_seldom_changes_a_route_of_the_start():
    """It did in 29% of cases with logits of standard deviation 0.6; then experts learn the same."""
    changed = []
    for seed in range(20):
        router = seeded_router(seed)
        quiet = chosen(router.route(CLASSES))
        for step in range(20):
            with noise_of_step(0, step):
                changed += [a != b for a, b in zip(chosen(router(CLASSES)), quiet)]
    assert 0.02 < statistics.mean(changed) < 0.2


def test_no_expert_can_be_preferred_by_all_classes():
    """Whatever the weights, the logits of an expert sum to 0 over the known classes."""
    router = seeded_router(0)
    for parameter in router.parameters():
        nn.init.normal_(parameter, mean=1.0)
    logits = []
    router.gate.register_forward_hook(lambda module, inputs, output: logits.append(output))
    router.route(CLASSES)
    assert logits[0].abs().mean() > 0.1
    torch.testing.assert_close(logits[0].sum(0), torch.zeros(EXPERTS), rtol=0, atol=1e-4)


def test_a_new_network_uses_all_its_experts():
    """No weight is far from 1/2, so that both experts learn from the first step."""
    firsts = [route[0][1].item() for seed in range(20) for route in seeded_router(seed).route(CLASSES)]
    assert 0.5 < statistics.mean(firsts) < 0.75


def seeded_router(seed: int, active: int = ACTIVE, layer: int = 0) -> Router:
    torch.manual_seed(seed)
    return Router(EXPERTS, active, layer)


def test_noise_changes_routes_in_training_alone():
    router = seeded_router(0)
    quiet = numbers(router.route(CLASSES))
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
        weights = torch.zeros(EXPERTS)
        with noise_of_step(0, step):
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

    def at(seed: int, iteration: int, classes=CLASSES) -> list[list[tuple[int, float]]]:
        with noise_of_step(seed, iteration):
            return numbers(router(classes))

    found = at(1, 7)
    torch.manual_seed(123)
    assert at(1, 7, CLASSES[::-1]) == found[::-1]
    assert at(1, 7, [CLASSES[3]])[0] == [(e, pytest.approx(w)) for e, w in found[3]]
    assert at(2, 7) != found
    assert at(1, 8) != found
    assert at(1, 7) == found
    assert at(0, 0) == numbers(router(CLASSES))  # outside of a step
    router.layer = 1
    assert at(1, 7) != found
    nn.init.zeros_(router.gate.weight)  # logits are then the noise alone
    assert len({tuple(w for _, w in route) for route in at(1, 7)}) == len(CLASSES)


def test_shared_normal_is_normal():
    values = torch.tensor(shared_normal(4000, 1, 2))
    assert abs(values.mean().item()) < 0.06
    assert abs(values.std().item() - 1) < 0.05


def test_layers_of_a_decoder_have_numbers_of_their_own():
    decoder = UnifiedDecoder(depth=3, dim=6, heads=2, ffn_dim=5, experts=EXPERTS, active_experts=ACTIVE)
    assert [layer.ffn.router.layer for layer in decoder.layers] == [0, 1, 2]


@pytest.mark.parametrize("active", [1, 2])
def test_unused_experts_become_used_by_their_classes(active):
    """Text starts with the first experts, other tokens start with the last ones. Each would lose less with those of
    the other, and finds them. Without noise nothing would change, and with k = 1 nothing without the softmax over all
    experts."""
    router = seeded_router(2, active)
    first, last = set(range(active)), set(range(EXPERTS - active, EXPERTS))
    text = torch.tensor([attributes.modality == "text" for attributes in CLASSES])
    with torch.no_grad():
        inputs = router._embed(router.gate.weight.new_tensor([attributes.encoding() for attributes in CLASSES]))
        direction = nn.functional.normalize(inputs[text].mean(0), dim=0)
        nn.init.zeros_(router.gate.weight)
        router.gate.weight[:active] = direction / 2
        router.gate.weight[-active:] = -direction / 2
    assert chosen(router.route(CLASSES)) == [first if is_text else last for is_text in text]
    best = [last if is_text else first for is_text in text]
    optimizer = torch.optim.Adam(router.parameters(), 0.01)
    for step in range(300):
        optimizer.zero_grad()
        with noise_of_step(0, step):
            routes = router(CLASSES)
        sum(w if e not in good else -w for route, good in zip(routes, best) for e, w in route).backward()
        optimizer.step()
    assert chosen(router.route(CLASSES)) == best


def test_router_sees_nothing_but_attributes(monkeypatch):
    network, seen, embed = ConditionalFeedForward(6, 5, EXPERTS, ACTIVE).eval(), [], router_module._embed
    monkeypatch.setattr(router_module, "_embed", lambda bits, *parts: (seen.append(bits), embed(bits, *parts))[1])
    layout = [(1, SPE), (3, IMAGE), (2, CAPTION), (2, IMAGE)]
    for scale in (1.0, -50.0):
        network(scale * torch.randn(2, 8, 6), layout)
    of_task = attribute_classes([IMAGE_TEXT_TO_TEXT])
    asked = (*CLASSES, SPE, IMAGE, CAPTION, *(x for x in of_task if x not in (SPE, IMAGE, CAPTION)))
    expected = torch.tensor([x.encoding() for x in asked], dtype=torch.float32)
    assert len(seen) == 2
    assert all(torch.equal(x, expected) for x in seen)


def test_a_step_waits_for_routes_once(monkeypatch):
    """For all layers and both passes, of images and of candidates; also if gradients are enabled."""
    decoder = UnifiedDecoder(depth=3, dim=6, heads=2, ffn_dim=5, experts=EXPERTS, active_experts=ACTIVE).train()
    waits = []
    monkeypatch.setattr(router_module, "fetch", lambda *tensors: (waits.append(1), fetch(*tensors))[1])
    image, text = CLASSES[1], CLASSES[3]
    assert (image.role, text.role, image.task) == ("input", "target", text.task)
    for step in range(2):
        with noise_of_step(0, step):
            for attributes in (image, text, image):
                decoder.read_spe([Segment(torch.randn(2, 3, 6), None, attributes)])
        assert len(waits) == step + 1
    with torch.no_grad(), noise_of_step(0, 1):
        decoder.layers[0].ffn.router.gate.weight += 1
        decoder.read_spe([Segment(torch.randn(2, 3, 6), None, text)])
    assert len(waits) == 3


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
    router.embedding.bias += 1
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
        with noise_of_step(0, step):
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
