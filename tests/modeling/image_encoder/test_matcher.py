"""Matching compared with every permutation and with loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from uniperceiver_v2.modeling.image_encoder.boxes import box_overlaps
from uniperceiver_v2.modeling.image_encoder.matcher import (
    MatchCosts,
    assign,
    focal_cost,
    one_to_many_match,
    pairwise_costs,
    pairwise_mask_costs,
    rows_of_images,
)
from uniperceiver_v2.modeling.image_encoder.query_selection import DensePredictions
from uniperceiver_v2.modeling.image_encoder.structures import Matches, RegionTargets


def region_targets(counts: list[int], size: int = 4) -> RegionTargets:
    """Random targets, ``counts`` of them for each image, padded with zeros."""
    number = max(1, *counts)
    valid = torch.arange(number) < torch.tensor(counts)[:, None]
    boxes = torch.rand(len(counts), number, 4) * 0.4 + 0.1
    boxes[..., :2] += 0.2
    masks = torch.rand(len(counts), number, size, size) < 0.5
    labels = torch.randint(3, valid.shape)
    return RegionTargets(boxes * valid[..., None], masks & valid[..., None, None], labels * valid, valid)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain_focal_cost(logit: float) -> float:
    p = sigmoid(logit)
    return -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)


def plain_mask_costs(logits: list[float], target: list[float]) -> tuple[float, float]:
    probabilities = [sigmoid(x) for x in logits]
    entropy = -sum(math.log(p) if t else math.log(1 - p) for p, t in zip(probabilities, target, strict=True))
    overlap = sum(p * t for p, t in zip(probabilities, target, strict=True))
    return entropy / len(logits), 1 - (2 * overlap + 1) / (sum(probabilities) + sum(target) + 1)


def test_focal_cost_equals_the_plain_formula():
    logits = torch.randn(7, dtype=torch.float64) * 3
    expected = [plain_focal_cost(x) for x in logits.tolist()]
    torch.testing.assert_close(focal_cost(logits), torch.tensor(expected, dtype=torch.float64))


def test_focal_cost_of_extreme_logits_is_finite_and_prefers_foreground():
    cost = focal_cost(torch.tensor([-1e4, -5.0, 0.0, 5.0, 1e4]))
    assert cost.isfinite().all()
    assert (cost.diff() < 0).all()


def test_pairwise_mask_costs_equal_loops():
    logits, targets = torch.randn(2, 3, 5, 9, dtype=torch.float64), torch.rand(2, 3, 4, 9) < 0.5
    entropy, dice = pairwise_mask_costs([(logits, targets.double())])
    assert entropy.shape == dice.shape == (2, 3, 5, 4)
    for a, b, q, n in itertools.product(range(2), range(3), range(5), range(4)):
        expected = plain_mask_costs(logits[a, b, q].tolist(), targets[a, b, n].double().tolist())
        found = torch.stack([entropy[a, b, q, n], dice[a, b, q, n]])
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_mask_costs_of_blocks_of_points_are_those_of_all_points():
    logits, targets = torch.randn(3, 5, 9, dtype=torch.float64), (torch.rand(3, 4, 9) < 0.5).double()
    sizes = (4, 3, 2)
    blocks = zip(logits.split(sizes, dim=-1), targets.split(sizes, dim=-1), strict=True)
    torch.testing.assert_close(pairwise_mask_costs(blocks), pairwise_mask_costs([(logits, targets)]))


COSTS = MatchCosts(objectness=2.0, box=5.0, giou=3.0, mask=4.0, dice=1.5)


def plain_cost(objectness, box, logits, target_box, target_mask) -> float:
    entropy, dice = plain_mask_costs(logits.tolist(), target_mask.tolist())
    giou = box_overlaps(box.double(), target_box.double())[1].item()
    return (
        COSTS.objectness * plain_focal_cost(objectness.item())
        + COSTS.box * (box.double() - target_box.double()).abs().sum().item()
        - COSTS.giou * giou
        + COSTS.mask * entropy
        + COSTS.dice * dice
    )


def matched(
    objectness: torch.Tensor,
    boxes: torch.Tensor,
    blocks: list[tuple[torch.Tensor, torch.Tensor]],
    targets: RegionTargets,
) -> Matches:
    """The one-to-one matches of queries."""
    return assign(pairwise_costs(objectness, boxes, blocks, targets, COSTS).numpy(), targets.counts)


def test_hungarian_match_is_the_cheapest_of_all_permutations():
    counts = [3, 0, 2, 4]
    targets = region_targets(counts)
    layers, queries, points = 2, 5, 6
    objectness = torch.randn(layers, 4, queries)
    boxes = torch.rand(layers, 4, queries, 4) * 0.5 + 0.2
    logits = torch.randn(layers, 4, queries, points) * 2
    at_points = (torch.rand(4, 4, points) < 0.5).float()
    blocks = [(rows_of_images(logits), at_points)]
    matches = matched(objectness, boxes, blocks, targets)

    found = set(zip(*(x.tolist() for x in vars(matches).values()), strict=True))
    expected = set()
    for layer, (image, count) in itertools.product(range(layers), enumerate(counts)):
        cost = [
            [
                plain_cost(
                    objectness[layer, image, q],
                    boxes[layer, image, q],
                    logits[layer, image, q],
                    targets.boxes[image, n],
                    at_points[image, n],
                )
                for n in range(count)
            ]
            for q in range(queries)
        ]
        best = min(
            itertools.permutations(range(queries), count), key=lambda qs: sum(cost[q][n] for n, q in enumerate(qs))
        )
        expected |= {(layer, image, q, n) for n, q in enumerate(best)}
    assert found == expected
    assert len(matches.image) == layers * sum(counts)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_costs_that_are_not_finite_are_the_highest(number, caplog):
    matches = assign(np.array([[[[number, 2.0], [1.0, number], [number, number]]]]), [2])
    assert "4 of 6 matching costs are not finite" in caplog.text
    assert (matches.query.tolist(), matches.target.tolist()) == ([0, 1], [1, 0])


def test_not_a_number_does_not_stop_the_matching(caplog):
    targets = region_targets([2])
    objectness = torch.tensor([[[math.nan, 0.0, 1.0]]])
    matches = matched(
        objectness, torch.rand(1, 1, 3, 4), [(torch.randn(1, 3, 4), torch.rand(1, 2, 4).round())], targets
    )
    assert "2 of 6 matching costs are not finite" in caplog.text
    assert sorted(matches.query.tolist()) == [1, 2]


def test_fewer_queries_than_targets_are_all_used():
    targets = region_targets([4])
    matches = matched(
        torch.randn(1, 1, 2),
        torch.rand(1, 1, 2, 4),
        [(torch.randn(1, 2, 4), torch.rand(1, 4, 4).round())],
        targets,
    )
    assert sorted(matches.query.tolist()) == [0, 1]
    assert len(set(matches.target.tolist())) == 2


def dense_predictions(batch: int, tokens: int) -> DensePredictions:
    centres = torch.rand(batch, tokens, 2)
    boxes = torch.cat((centres + torch.randn(batch, tokens, 2) * 0.05, torch.rand(batch, tokens, 2) * 0.4 + 0.1), -1)
    return DensePredictions(
        objectness=torch.randn(batch, tokens),
        boxes=boxes,
        centres=centres,
        valid=torch.rand(batch, tokens) < 0.8,
        tokens=torch.zeros(batch, tokens, 2),
    )


def plain_one_to_many(dense: DensePredictions, targets: RegionTargets, candidates: int):
    """TOOD's assignment, token by token: {(image, token): (quality, target)}."""
    result = {}
    for image in range(len(targets.valid)):
        iou, alignment, rescued = {}, {}, set()
        claims: dict[int, list[int]] = {}
        for n in range(int(targets.valid[image].sum())):
            cx, cy, w, h = targets.boxes[image, n].tolist()
            eligible = []
            for s in range(dense.centres.shape[1]):
                x, y = dense.centres[image, s].tolist()
                if not dense.valid[image, s] or abs(x - cx) > w / 2 or abs(y - cy) > h / 2:
                    continue
                iou[s, n] = box_overlaps(dense.boxes[image, s], targets.boxes[image, n])[0].item()
                alignment[s, n] = sigmoid(dense.objectness[image, s].item()) ** 0.5 * iou[s, n] ** 4 + 1e-9
                eligible.append(s)
            if not eligible:  # smaller than the distance of tokens: the nearest
                s = min(
                    (s for s in range(dense.centres.shape[1]) if dense.valid[image, s]),
                    key=lambda s, cx=cx, cy=cy, image=image: sum(
                        abs(a - b) for a, b in zip(dense.centres[image, s].tolist(), (cx, cy), strict=True)
                    ),
                )
                iou[s, n] = box_overlaps(dense.boxes[image, s], targets.boxes[image, n])[0].item()
                alignment[s, n] = sigmoid(dense.objectness[image, s].item()) ** 0.5 * iou[s, n] ** 4 + 1e-9
                eligible.append(s)
                rescued.add(n)
            for s in sorted(eligible, key=lambda s, n=n: -alignment[s, n])[:candidates]:
                claims.setdefault(s, []).append(n)
        owner = {s: max(ns, key=lambda n, s=s: (n in rescued, iou[s, n])) for s, ns in claims.items()}
        for n in set(owner.values()):
            own = [s for s, o in owner.items() if o == n]
            scale = max(1e-3, *(iou[s, n] for s in own)) / max(alignment[s, n] for s in own)
            result |= {(image, s): (alignment[s, n] * scale, n) for s in own}
    return result


@pytest.mark.parametrize("candidates", [1, 3, 100])
def test_one_to_many_match_equals_the_plain_loop(candidates):
    targets = region_targets([3, 0, 2])
    targets.boxes[0, 1] = targets.boxes[0, 0] * 1.02  # two objects that want the same tokens
    dense = dense_predictions(3, 40)
    quality, target = one_to_many_match(dense, targets, candidates)
    expected = plain_one_to_many(dense, targets, candidates)
    wanted = torch.zeros_like(quality)
    for place, (value, _) in expected.items():
        wanted[place] = value
    torch.testing.assert_close(quality, wanted, atol=1e-6, rtol=1e-4)
    overlapping = {place: n for place, (value, n) in expected.items() if value > 1e-3}
    assert len(overlapping) >= 2
    assert {place: target[place].item() for place in overlapping} == overlapping
    assert (quality[1] == 0).all()
    assert (quality[~dense.valid] == 0).all()


def test_best_token_of_an_object_gets_its_best_overlap():
    targets = region_targets([1])
    targets.boxes[0, 0] = torch.tensor([0.5, 0.5, 0.4, 0.4])
    centres = torch.tensor([[[0.5, 0.5], [0.6, 0.5], [0.4, 0.45], [0.9, 0.9]]])
    boxes = torch.cat((centres, torch.full((1, 4, 2), 0.4)), -1)
    dense = DensePredictions(torch.zeros(1, 4), boxes, centres, torch.ones(1, 4, dtype=torch.bool), boxes)
    quality, _ = one_to_many_match(dense, targets, 3)
    torch.testing.assert_close(quality[0, 0], torch.tensor(1.0))
    assert 0 < quality[0, 1] < 1
    assert quality[0, 3] == 0  # its centre lies outside of the object


def test_an_object_without_a_token_inside_gets_the_nearest_one():
    """Tokens at the centres of a 4×4 grid. The small object lies between four of them and inside a large object, whose
    tokens fit the large object better."""
    targets = region_targets([3])
    large, small, empty = [0.5, 0.5, 0.9, 0.9], [0.48, 0.51, 0.05, 0.05], [0.02, 0.98, 0.01, 0.01]
    targets.boxes[0] = torch.tensor([large, small, empty])
    steps = (torch.arange(4) + 0.5) / 4
    centres = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(1, 16, 2)
    boxes = torch.tensor(large).expand(1, 16, 4).clone()
    dense = DensePredictions(torch.zeros(1, 16), boxes, centres, torch.ones(1, 16, dtype=torch.bool), boxes)
    quality, target = one_to_many_match(dense, targets, 16)
    owners = {n: [s for s in range(16) if quality[0, s] > 0 and target[0, s] == n] for n in range(3)}
    assert owners[1] == [9]  # column 1, row 2: (0.375, 0.625)
    assert owners[2] == [12]  # the lower left corner; its box does not even touch the object
    assert quality[0, 12] == pytest.approx(1e-3)
    assert owners[0] == [s for s in range(16) if s not in (9, 12)]
