"""Every loss of the region network compared with a plain float64 formula."""

import itertools
import math

import numpy as np
import pytest
import torch

from uniperceiver_v2.modeling.image_encoder import criterion as criterion_module
from uniperceiver_v2.modeling.image_encoder.criterion import (
    RegionCriterion,
    RegionPredictions,
    dice_loss,
    masks_of,
    quality_focal_loss,
)
from uniperceiver_v2.modeling.image_encoder.denoising import make_denoising_queries
from uniperceiver_v2.modeling.image_encoder.matcher import MatchCosts, one_to_many_match
from uniperceiver_v2.modeling.image_encoder.point_sampling import uncertain_points
from uniperceiver_v2.modeling.image_encoder.query_selection import DensePredictions
from uniperceiver_v2.modeling.image_encoder.structures import Matches, RegionTargets

LAYERS, BATCH, QUERIES, DIM = 2, 3, 5, 4
WEIGHTS = {"objectness": 3.0, "box": 5.0, "giou": 2.0, "mask": 4.0, "dice": 1.5}
POINTS, OVERSAMPLING, UNCERTAIN = 7, 3.0, 0.75
# (layer, image, query, target) of images with 2, 0 and 3 objects
PLACES = [(0, 0, 3, 0), (0, 0, 1, 1), (0, 2, 0, 2), (0, 2, 4, 0), (0, 2, 2, 1)]
PLACES += [(1, 0, 0, 0), (1, 0, 2, 1), (1, 2, 1, 0), (1, 2, 2, 1), (1, 2, 3, 2)]
NOTHING = Matches(*torch.zeros(4, 0, dtype=torch.int64))
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def make_criterion(masks_in_boxes: bool = True, **costs: float) -> RegionCriterion:
    all_costs = dict.fromkeys(WEIGHTS, 0.0) | (costs or dict.fromkeys(WEIGHTS, 1.0))
    return RegionCriterion(WEIGHTS, MatchCosts(**all_costs), POINTS, OVERSAMPLING, UNCERTAIN, 3, masks_in_boxes)


def make_targets(counts=(2, 0, 3)) -> RegionTargets:
    number = max(1, *counts)
    valid = torch.arange(number) < torch.tensor(counts)[:, None]
    boxes = torch.cat((torch.rand(BATCH, number, 2) * 0.4 + 0.3, torch.rand(BATCH, number, 2) * 0.3 + 0.1), dim=-1)
    masks = torch.rand(BATCH, number, 8, 8) < 0.5
    labels = torch.zeros(BATCH, number, dtype=torch.int64)
    return RegionTargets(boxes * valid[..., None], masks & valid[..., None, None], labels, valid)


def make_predictions(queries: int = QUERIES) -> RegionPredictions:
    return RegionPredictions(
        torch.randn(LAYERS, BATCH, queries, requires_grad=True),
        (torch.rand(LAYERS, BATCH, queries, 4) * 0.4 + 0.2).requires_grad_(),
        torch.randn(LAYERS, BATCH, queries, DIM, requires_grad=True),
    )


def windows_of(places, targets: RegionTargets) -> torch.Tensor:
    """A mask is learned in its object's box, enlarged by a fifth."""
    boxes = [targets.boxes[image, target].tolist() for _, image, _, target in places]
    return torch.tensor([[cx, cy, 1.2 * w, 1.2 * h] for cx, cy, w, h in boxes])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain_quality_focal(logit: float, quality: float) -> float:
    p = sigmoid(logit)
    focus = 1.0 if quality > 0 else p**1.5
    return -focus * (quality * math.log(p) + (1 - quality) * math.log(1 - p))


def plain_overlaps(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and GIoU of (cx, cy, w, h)."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b))
    intersection = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - intersection
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return intersection / union, intersection / union - (hull - union) / hull


def plain_bilinear(grid: torch.Tensor, point: list[float]) -> float:
    """Sample of a map [h,w], zero outside, at (x, y) in 0..1."""
    height, width = grid.shape
    x, y = point[0] * width - 0.5, point[1] * height - 0.5
    wx = (1 - (x - torch.arange(width, dtype=torch.float64)).abs()).clamp(min=0)
    wy = (1 - (y - torch.arange(height, dtype=torch.float64)).abs()).clamp(min=0)
    return (grid.double() * wy[:, None] * wx).sum().item()


def plain_mask_losses(logits: list[float], targets: list[float]) -> tuple[float, float]:
    p = [sigmoid(x) for x in logits]
    entropy = -sum(t * math.log(a) + (1 - t) * math.log(1 - a) for a, t in zip(p, targets, strict=True)) / len(p)
    overlap = sum(a * t for a, t in zip(p, targets, strict=True))
    return entropy, 1 - (2 * overlap + 1) / (sum(p) + sum(targets) + 1)


def plain_losses(predictions, places, valid, pixels, targets, divisor, points, groups=(1,) * BATCH) -> dict[str, float]:
    """places: the matched (layer, image, query, target). points [K,P,2]: the points at which each match's masks are
    compared. groups: by which each image's losses are divided."""
    sums = dict.fromkeys(WEIGHTS, 0.0)
    quality = {}
    for k, (layer, image, query, target) in enumerate(places):
        box, wanted = predictions.boxes[layer, image, query].tolist(), targets.boxes[image, target].tolist()
        iou, giou = plain_overlaps(box, wanted)
        quality[layer, image, query] = max(iou, 1e-3)
        sums["box"] += sum(abs(a - b) for a, b in zip(box, wanted, strict=True)) / groups[image]
        sums["giou"] += (1 - giou) / groups[image]
        mask = torch.einsum("d,dhw->hw", predictions.mask_embeddings[layer, image, query], pixels[image]).detach()
        entropy, dice = plain_mask_losses(
            [plain_bilinear(mask, p) for p in points[k].tolist()],
            [plain_bilinear(targets.masks[image, target], p) for p in points[k].tolist()],
        )
        sums["mask"] += entropy / groups[image]
        sums["dice"] += dice / groups[image]
    for place in itertools.product(*map(range, predictions.objectness.shape)):
        if valid[place[1], place[2]]:
            loss = plain_quality_focal(predictions.objectness[place].item(), quality.get(place, 0.0))
            sums["objectness"] += loss / groups[place[1]]
    return {name: WEIGHTS[name] * value / divisor for name, value in sums.items()}


def assert_losses_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    torch.testing.assert_close({k: v.double().item() for k, v in found.items()}, expected, **TOLERANCE)


def test_quality_focal_loss_equals_the_plain_formula():
    logits = torch.randn(12, dtype=torch.float64) * 3
    quality = torch.rand(12, dtype=torch.float64) * (torch.arange(12) % 3 == 0)
    weight = torch.rand(12, dtype=torch.float64)
    triples = zip(logits.tolist(), quality.tolist(), weight.tolist(), strict=True)
    expected = sum(w * plain_quality_focal(x, q) for x, q, w in triples)
    torch.testing.assert_close(quality_focal_loss(logits, quality, weight).item(), expected)


def test_quality_focal_loss_pulls_towards_the_quality():
    """Its gradient is weight·focus·(p - q). The focus is a constant, so that it cannot lower the loss."""
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    quality = torch.tensor([0.0, 0.3, 0.0, 1.0, 0.8, 0.0], dtype=torch.float64)
    quality_focal_loss(logits, quality, torch.full((6,), 2.0)).backward()
    p = logits.detach().sigmoid()
    focus = torch.where(quality > 0, 1.0, p**1.5)
    torch.testing.assert_close(logits.grad, 2 * focus * (p - quality))


def test_quality_focal_loss_of_very_low_logits_at_padding_is_zero():
    loss = quality_focal_loss(torch.full((3,), -1e4), torch.zeros(3), torch.zeros(3))
    assert loss.item() == 0


def test_dice_loss_equals_the_plain_formula_and_finite_differences():
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(3, 6) < 0.5).double()
    expected = [plain_mask_losses(a, b)[1] for a, b in zip(logits.tolist(), targets.tolist(), strict=True)]
    torch.testing.assert_close(dice_loss(logits, targets), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(dice_loss, (logits, targets))


def test_masks_of_equals_a_loop():
    embeddings, pixels = torch.randn(7, DIM, dtype=torch.float64), torch.randn(4, DIM, 3, 5, dtype=torch.float64)
    image = torch.tensor([2, 0, 2, 3, 0, 2, 0])  # not in order, and nothing of image 1
    found = masks_of(embeddings, image, pixels)
    expected = torch.stack([torch.einsum("d,dhw->hw", e, pixels[i]) for e, i in zip(embeddings, image, strict=True)])
    torch.testing.assert_close(found, expected)


def test_gradients_of_masks_of_by_finite_differences():
    embeddings = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    pixels = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    image = torch.tensor([1, 0, 1])
    assert torch.autograd.gradcheck(lambda e, p: masks_of(e, image, p), (embeddings, pixels))


@pytest.mark.parametrize("masks_in_boxes", [True, False])
def test_losses_equal_the_plain_formulas(masks_in_boxes):
    """A mask that does not end at its box is learned in the whole image."""
    criterion, targets, predictions = make_criterion(masks_in_boxes), make_targets(), make_predictions()
    pixels = torch.randn(BATCH, DIM, 4, 4)
    matches = Matches(*torch.tensor(PLACES).T)
    torch.manual_seed(3)
    found, answering = criterion.losses(predictions, matches, pixels, targets, num_objects=4.0)
    assert all(torch.equal(a, b) for a, b in zip(vars(answering).values(), vars(matches).values(), strict=True))
    torch.manual_seed(3)
    embeddings = predictions.mask_embeddings[matches.layer, matches.image, matches.query]
    logits = masks_of(embeddings, matches.image, pixels)
    windows = windows_of(PLACES, targets) if masks_in_boxes else None
    points = uncertain_points(logits, POINTS, OVERSAMPLING, UNCERTAIN, windows)
    valid = torch.ones(BATCH, QUERIES, dtype=torch.bool)
    assert_losses_equal(found, plain_losses(predictions, PLACES, valid, pixels, targets, 4.0, points))


def test_quality_is_a_target_and_no_way_for_gradients():
    """Objectness must not be improved by moving the box."""
    criterion, targets, predictions = make_criterion(), make_targets(), make_predictions()
    matches = Matches(*torch.tensor([[0, 0, 1, 0]]).T)
    losses = criterion.losses(predictions, matches, torch.randn(BATCH, DIM, 4, 4), targets, 1.0)[0]
    (gradient,) = torch.autograd.grad(losses["objectness"], predictions.boxes, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_batches_without_objects_teach_background_only():
    criterion, targets, predictions = make_criterion(), make_targets((0, 0, 0)), make_predictions()
    pixels = torch.randn(BATCH, DIM, 4, 4, requires_grad=True)
    matches = one_to_one(criterion, predictions, pixels, targets)
    assert len(matches.image) == 0
    losses, _ = criterion.losses(predictions, matches, pixels, targets, 1.0)
    assert {name for name, value in losses.items() if value.item() != 0} == {"objectness"}
    sum(losses.values()).backward()
    assert predictions.objectness.grad.abs().min() > 0
    assert not predictions.mask_embeddings.grad.any()


@pytest.mark.parametrize("by", ["box", "giou", "mask", "dice", "objectness"])
def test_each_cost_alone_finds_its_match(by):
    """Queries with perfect predictions for the targets, in another order, are matched to them."""
    criterion, targets = make_criterion(**{by: 1.0}), make_targets((3, 3, 3))
    order = torch.stack([torch.randperm(QUERIES) for _ in range(BATCH)])  # the query that answers for target n
    boxes = torch.full((1, BATCH, QUERIES, 4), 0.05)
    embeddings = torch.zeros(1, BATCH, QUERIES, 4)
    embeddings[..., 3] = 1
    objectness = torch.zeros(1, BATCH, QUERIES)
    for image, target in itertools.product(range(BATCH), range(3)):
        query = order[image, target]
        boxes[0, image, query] = targets.boxes[image, target]
        embeddings[0, image, query] = torch.eye(4)[target]
        objectness[0, image, query] = 1.0
    # The embeddings' directions 0 to 2 are the targets' masks, direction 3 is background everywhere.
    pixels = torch.cat([targets.masks * 20.0 - 10, torch.full((BATCH, 1, 8, 8), -10.0)], dim=1)
    criterion.num_points = 200
    matches = one_to_one(criterion, RegionPredictions(objectness, boxes, embeddings), pixels, targets)
    if by == "objectness":  # says which queries, not for what
        assert set(zip(matches.image.tolist(), matches.query.tolist(), strict=True)) == {
            (image, order[image, n].item()) for image in range(BATCH) for n in range(3)
        }
    else:
        assert torch.equal(matches.query, order[matches.image, matches.target])
    assert len(matches.image) == 9


@pytest.mark.parametrize("masks_in_boxes", [True, False])
def test_masks_outside_of_their_boxes_count_in_matching_where_they_do_not_end_there(masks_in_boxes):
    """The boxes of all queries are the same small one in a corner. Each mask is that of one target."""
    criterion, targets = make_criterion(masks_in_boxes, mask=1.0), make_targets((3, 3, 3))
    criterion.num_points = 200
    order = torch.stack([torch.randperm(3) for _ in range(BATCH)])  # the query that has the mask of target n
    embeddings = torch.eye(3)[order.argsort(1)][None]
    boxes = torch.full((1, BATCH, 3, 4), 0.02)
    predictions = RegionPredictions(torch.zeros(1, BATCH, 3), boxes, embeddings)
    matches = one_to_one(criterion, predictions, targets.masks * 20.0 - 10, targets)
    assert torch.equal(matches.query, order[matches.image, matches.target]) != masks_in_boxes


def test_denoising_losses_equal_the_plain_formulas():
    criterion, targets = make_criterion(), make_targets()
    denoising = make_denoising_queries(targets, near_misses=6, box_noise=0.5)
    count = denoising.boxes.shape[1]
    predictions, pixels = make_predictions(count), torch.randn(BATCH, DIM, 4, 4)
    # 6 near misses, then 6 wide ones. Images have 2, 0 and 3 objects, which make 3 and 2 groups.
    places = [
        (layer, image, slot, slot % number)
        for layer in range(LAYERS)
        for image, number in ((0, 2), (2, 3))
        for slot in range(6)
    ]
    valid = torch.tensor([[number > 0] * 12 for number in (2, 0, 3)])

    torch.manual_seed(5)
    found, matches = criterion.losses(predictions, NOTHING, pixels, targets, 5.0, denoising)
    torch.manual_seed(5)
    assert list(zip(*(x.tolist() for x in vars(matches).values()), strict=True)) == places
    layer, image, query, _ = torch.tensor(places).T
    logits = masks_of(predictions.mask_embeddings[layer, image, query], image, pixels)
    points = uncertain_points(logits, POINTS, OVERSAMPLING, UNCERTAIN, windows_of(places, targets))
    assert_losses_equal(found, plain_losses(predictions, places, valid, pixels, targets, 5.0, points, (3, 1, 2)))


@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0, 0)])
def test_one_pass_over_ordinary_and_denoising_queries_equals_two(counts):
    """Values, gradients, random points and matches are the same. Ordinary queries are numbered after the denoising
    queries."""
    criterion, targets = make_criterion(), make_targets(counts)
    denoising = make_denoising_queries(targets, near_misses=6, box_noise=0.5)
    known = denoising.boxes.shape[1]
    predictions, pixels = make_predictions(known + QUERIES), torch.randn(BATCH, DIM, 4, 4, requires_grad=True)
    matches = Matches(*torch.tensor(PLACES).T) if sum(counts) else NOTHING
    leaves = *vars(predictions).values(), pixels

    torch.manual_seed(5)
    found, answering = criterion.losses(predictions, matches, pixels, targets, 5.0, denoising)
    torch.manual_seed(5)
    parts = [
        criterion.losses(predictions.queries(slice(known, None)), matches, pixels, targets, 5.0),
        criterion.losses(predictions.queries(slice(0, known)), NOTHING, pixels, targets, 5.0, denoising),
    ]
    expected = {name: sum(losses[name] for losses, _ in parts) for name in WEIGHTS}
    torch.testing.assert_close(found, expected)
    for name in WEIGHTS:
        gradients = (
            torch.autograd.grad(losses[name], leaves, retain_graph=True, materialize_grads=True)
            for losses in (found, expected)
        )
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
    ordinary, denoised = (other for _, other in parts)
    shifted = torch.stack((ordinary.layer, ordinary.image, ordinary.query + known, ordinary.target))
    both = torch.cat((shifted, torch.stack(tuple(vars(denoised).values()))), dim=1)
    assert torch.equal(torch.stack(tuple(vars(answering).values())), both)


@pytest.mark.parametrize("has_padding", [False, True])
def test_matches_do_not_depend_on_how_many_masks_are_compared_at_once(monkeypatch, has_padding):
    criterion, targets, predictions = make_criterion(), make_targets(), make_predictions()
    if has_padding:
        targets.extent = torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.75, 0.5]])
    pixels = torch.randn(BATCH, DIM, 4, 4)
    found = []
    for at_once in (2**22, 1, 2 * BATCH * LAYERS * QUERIES):
        monkeypatch.setattr("uniperceiver_v2.modeling.image_encoder.criterion.MATCHED_AT_ONCE", at_once)
        torch.manual_seed(6)
        found.append(torch.stack(tuple(vars(one_to_one(criterion, predictions, pixels, targets)).values())))
    assert found[0].shape[1] == LAYERS * 5
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


def test_matching_computes_in_float32_under_autocast(monkeypatch):
    """In bf16 a cost has three digits, and near misses would take an object's place from one step to the next."""
    criterion, predictions, targets = make_criterion(), make_predictions(), make_targets()
    pixels, costs = torch.randn(BATCH, DIM, 4, 4), []
    assign = criterion_module.assign
    monkeypatch.setattr(criterion_module, "assign", lambda table, counts: costs.append(table) or assign(table, counts))
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            one_to_one(criterion, predictions, pixels, targets)
    assert costs[1].dtype == np.float32 and (costs[0] == costs[1]).all()


def test_blocks_for_the_caches_of_a_cpu_are_made_on_a_cpu_alone(monkeypatch):
    """Elsewhere each block is a dozen launches more, and only memory bounds it."""
    monkeypatch.setattr(criterion_module, "MATCHED_AT_ONCE", 1)
    counts = {}
    for device in ("cpu", "meta"):
        with torch.device(device):
            criterion, predictions, pixels = make_criterion(), make_predictions(), torch.randn(BATCH, DIM, 4, 4)
            boxes, masks, valid = torch.rand(BATCH, 3, 4), torch.rand(BATCH, 3, 8, 8) < 0.5, torch.ones(BATCH, 3).bool()
            targets = RegionTargets(boxes, masks, valid.long(), valid, counts=(2, 1, 3))
            points = torch.rand(BATCH, POINTS, 2)
            counts[device] = len(list(criterion._mask_blocks(predictions, pixels, targets, points)))
    assert counts == {"cpu": POINTS, "meta": 1}


def one_to_one(
    criterion: RegionCriterion, predictions: RegionPredictions, pixels: torch.Tensor, targets: RegionTargets
) -> Matches:
    """The matches of predictions, whatever the encoder's tokens predict."""
    batch = len(targets.valid)
    boxes = torch.full((batch, 1, 4), 0.5)
    dense = DensePredictions(boxes[..., 0], boxes, boxes[..., :2], torch.ones(batch, 1).bool(), boxes)
    return criterion.match(predictions, pixels, targets, dense)[0]


def of_tokens(
    criterion: RegionCriterion, dense: DensePredictions, targets: RegionTargets
) -> tuple[torch.Tensor, Matches]:
    """The target objectness of the encoder's tokens and their matches, whatever the decoder predicts."""
    batch = len(targets.valid)
    predictions = RegionPredictions(
        torch.zeros(1, batch, 1), torch.full((1, batch, 1, 4), 0.5), torch.ones(1, batch, 1, 1)
    )
    return criterion.match(predictions, torch.ones(batch, 1, 4, 4), targets, dense)[1:]


def dense_predictions(tokens: int = 60) -> DensePredictions:
    centres = torch.rand(BATCH, tokens, 2)
    return DensePredictions(
        objectness=torch.randn(BATCH, tokens, requires_grad=True),
        boxes=torch.cat((centres, torch.rand(BATCH, tokens, 2) * 0.3 + 0.1), -1).requires_grad_(),
        centres=centres,
        valid=torch.rand(BATCH, tokens) < 0.8,
        tokens=torch.zeros(BATCH, tokens, DIM),
    )


def test_dense_losses_equal_the_plain_formulas():
    criterion, targets, dense = make_criterion(), make_targets(), dense_predictions()
    quality, target = one_to_many_match(dense, targets, 3)  # tested separately
    assert (quality > 0).sum() >= 5
    sums = {"objectness": 0.0, "box": 0.0, "giou": 0.0}
    for image, token in itertools.product(range(BATCH), range(60)):
        q = quality[image, token].item()
        if dense.valid[image, token]:
            sums["objectness"] += plain_quality_focal(dense.objectness[image, token].item(), q)
        if q > 0:
            box, wanted = dense.boxes[image, token].tolist(), targets.boxes[image, target[image, token]].tolist()
            share = q / sum(
                other.item() for other, object_ in zip(quality[image], target[image]) if object_ == target[image, token]
            )
            sums["box"] += share * sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
            sums["giou"] += share * (1 - plain_overlaps(box, wanted)[1])
    sums["objectness"] /= (1 + criterion.one_to_many) / 2
    expected = {name: WEIGHTS[name] * value / 5.0 for name, value in sums.items()}
    found_quality, matches = of_tokens(criterion, dense, targets)
    assert torch.equal(found_quality, quality)
    assert_losses_equal(criterion.dense_losses(dense, quality, matches, targets, 5.0), expected)
    answering = {(i, s, target[i, s].item()) for i, s in (quality > 0).nonzero().tolist()}
    assert set(zip(matches.image.tolist(), matches.query.tolist(), matches.target.tolist(), strict=True)) == answering


def test_dense_losses_of_nothing_teach_background():
    criterion, dense = make_criterion(), dense_predictions()
    targets = make_targets((0, 0, 0))
    quality, matches = of_tokens(criterion, dense, targets)
    losses = criterion.dense_losses(dense, quality, matches, targets, 1.0)
    assert len(matches.image) == 0
    assert losses["box"].item() == losses["giou"].item() == 0
    sum(losses.values()).backward()
    assert torch.equal(dense.objectness.grad > 0, dense.valid)
    assert not dense.boxes.grad.any()


@pytest.mark.parametrize("masks_in_boxes", [True, False])
def test_masks_that_are_compared_in_parts_have_the_same_losses_and_gradients(monkeypatch, masks_in_boxes):
    fixed = torch.rand(2 * POINTS * 3, 2)  # each row of points has the same numbers, in whatever order rows are drawn
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda x: x.copy_(fixed[: x.shape[1]].expand_as(x)))
    targets = make_targets()
    targets.with_mask = targets.valid.clone()
    targets.with_mask[2, 1] = False
    denoising = make_denoising_queries(targets, near_misses=6, box_noise=0.5)
    predictions = make_predictions(denoising.boxes.shape[1] + QUERIES)
    pixels, seen = torch.randn(BATCH, DIM, 4, 4, requires_grad=True), []
    leaves = predictions.mask_embeddings, pixels

    def losses(kept: int) -> tuple:
        monkeypatch.setattr(criterion_module, "MASKS_KEPT", kept)
        criterion = make_criterion(masks_in_boxes)
        compare = criterion._compared_masks
        criterion._compared_masks = lambda logits, *rest: seen.append(len(logits)) or compare(logits, *rest)
        matches = Matches(*torch.tensor(PLACES).T)
        found, _ = criterion.losses(predictions, matches, pixels, targets, 5.0, denoising)
        return found, torch.autograd.grad(found["mask"] + found["dice"], leaves)

    whole, parts = losses(2**26), losses(4 * 4 * 4 * 4)  # four masks of 4 x 4 at a time
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    assert seen[0] == len(PLACES) + 24
    # 16 matches of the first image and 18 of the third, once more in the backward pass
    assert sorted(seen[1:]) == sorted(2 * (4 * [4] + 4 * [4] + [2]))
