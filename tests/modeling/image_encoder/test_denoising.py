"""Denoising queries: the amount of their noise, their objects, and the queries that they may see."""

import pytest
import torch

from uniperceiver_v2.modeling.image_encoder.denoising import denoising_attention_mask, make_denoising_queries
from uniperceiver_v2.modeling.image_encoder.structures import RegionTargets

NEAR_MISSES, NOISE = 9, 0.6


@pytest.fixture
def targets() -> RegionTargets:
    """Two, none and three objects, so far from the borders that noise does not reach them."""
    valid = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    boxes = torch.cat((torch.rand(3, 3, 2) * 0.2 + 0.4, torch.rand(3, 3, 2) * 0.2 + 0.1), dim=-1)
    masks = torch.zeros(3, 3, 4, 4, dtype=torch.bool)
    return RegionTargets(boxes * valid[..., None], masks, torch.zeros(3, 3, dtype=torch.int64), valid)


def relative_noise(queries, targets) -> torch.Tensor:
    """[B,D,4], the changes of centre and size relative to the size of the query's original box."""
    original = targets.boxes.gather(1, queries.targets[..., None].expand(-1, -1, 4))
    return (queries.boxes - original) / original[..., 2:].repeat(1, 1, 2)


def test_near_misses_and_wide_misses_keep_their_bounds(targets):
    near, wide = [], []
    for _ in range(50):
        queries = make_denoising_queries(targets, NEAR_MISSES, NOISE)
        noise = relative_noise(queries, targets).abs()
        near.append(noise[queries.positive])
        wide.append(noise[queries.negative])
    near, wide = torch.cat(near), torch.cat(wide)
    assert near.max() <= NOISE / 2 + 1e-4
    assert wide.min() >= NOISE / 2 - 1e-4
    assert wide.max() <= NOISE + 1e-4
    # Both are spread over their whole range, in all coordinates.
    assert (near.amin(0) < 0.05 * NOISE).all()
    assert (near.amax(0) > 0.45 * NOISE).all()
    assert (wide.amax(0) > 0.95 * NOISE).all()


def test_noise_goes_both_ways_and_differs_between_groups(targets):
    queries = make_denoising_queries(targets, NEAR_MISSES, NOISE)
    noise = relative_noise(queries, targets)[queries.positive | queries.negative]
    assert ((noise > 0).any(0) & (noise < 0).any(0)).all()
    first, second = (queries.boxes[2, queries.groups[2] == group] for group in (0, 1))
    assert (first != second).all()


def test_order_flags_and_groups(targets):
    """Nine near misses, then nine wide ones. Two objects make four groups, three make three."""
    queries = make_denoising_queries(targets, NEAR_MISSES, NOISE)
    assert queries.boxes.shape == (3, 18, 4)
    assert queries.num_groups.tolist() == [4, 9, 3]
    used = torch.tensor([[True] * 8 + [False], [False] * 9, [True] * 9])
    assert torch.equal(queries.positive, torch.cat((used, torch.zeros_like(used)), dim=1))
    assert torch.equal(queries.negative, torch.cat((torch.zeros_like(used), used), dim=1))
    assert torch.equal(queries.valid, used.repeat(1, 2))
    for image, each in ((0, 2), (2, 3)):
        own = used[image].repeat(2)
        assert queries.targets[image, own].tolist() == [*range(each)] * (2 * len(used[image].nonzero()) // each)
        groups = [slot // each for slot in range(9)][: len(used[image].nonzero())]
        assert queries.groups[image, own].tolist() == groups * 2


def test_weights_sum_to_the_objects_of_an_image_twice_over(targets):
    """One for the near misses of an object together, one for its wide misses."""
    queries = make_denoising_queries(targets, NEAR_MISSES, NOISE)
    torch.testing.assert_close(queries.weights.sum(1), torch.tensor([4.0, 0.0, 6.0]))
    assert (queries.weights[~queries.valid] == 0).all()


def test_an_image_with_more_objects_than_near_misses_has_one_group_of_all(targets):
    queries = make_denoising_queries(targets, 1, NOISE)
    assert queries.num_groups.tolist() == [1, 1, 1] and queries.boxes.shape == (3, 6, 4)
    assert torch.equal(queries.valid, targets.valid.repeat(1, 2))
    assert queries.targets[2].tolist() == [0, 1, 2] * 2


def test_boxes_stay_in_the_image(targets):
    targets.boxes[..., :2] = torch.tensor([0.01, 0.99])
    queries = make_denoising_queries(targets, NEAR_MISSES, 2.0)
    assert queries.boxes.min() > 0
    assert queries.boxes.max() <= 1


def test_mask_separates_groups_and_ordinary_queries():
    """One image has one object, the other has none. There are two groups, the slightly changed boxes of both before the
    strongly changed ones. Denoising queries see the ordinary ones, which do not see them. Nobody sees a query that is
    not valid."""
    valid = torch.tensor([[True], [False]])
    targets = RegionTargets(torch.rand(2, 1, 4), torch.ones(2, 1, 4, 4).bool(), torch.zeros(2, 1).long(), valid)
    mask = denoising_attention_mask(make_denoising_queries(targets, 2, NOISE), num_queries=2)
    with_object = torch.tensor(
        [
            [1, 0, 1, 0, 1, 1],
            [0, 1, 0, 1, 1, 1],
            [1, 0, 1, 0, 1, 1],
            [0, 1, 0, 1, 1, 1],
            [0, 0, 0, 0, 1, 1],
            [0, 0, 0, 0, 1, 1],
        ]
    )
    without = torch.zeros(6, 6, dtype=torch.long)
    without[:, 4:] = 1
    assert torch.equal(mask, torch.stack((with_object, without)).unsqueeze(1).bool())


@pytest.mark.parametrize(("objects", "groups"), [(1, 100), (3, 33), (6, 16), (51, 1), (300, 1)])
def test_the_number_of_groups_adapts_to_the_objects_of_an_image_alone(objects, groups):
    """The second image has another number of objects."""
    valid = torch.arange(max(objects, 20)) < torch.tensor([[objects], [20]])
    targets = RegionTargets(torch.rand(*valid.shape, 4), torch.ones(*valid.shape, 1, 1).bool(), valid.long(), valid)
    assert make_denoising_queries(targets, 100, NOISE).num_groups.tolist() == [groups, 5]
