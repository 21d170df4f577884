"""Sampling of masks at points compared with grid_sample and plain sums."""

import pytest
import torch
import torch.nn.functional as F

from uniperceiver_v2.modeling.image_encoder.point_sampling import sample_masks, sample_points, uncertain_points


def random_points(*size: int) -> torch.Tensor:
    """Random points. Some are outside the map, some on its edges and corners."""
    points = torch.rand(*size, 2) * 1.4 - 0.2
    points[..., :3, :] = torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.5, 1.0]])
    return points


def test_sample_points_equals_bilinear_interpolation_by_hand():
    maps, points = torch.randn(2, 3, 4, 5), random_points(2, 6)
    found = sample_points(maps, points)
    expected = torch.zeros(2, 3, 6)
    for k in range(2):
        for p in range(6):
            x, y = points[k, p, 0] * 5 - 0.5, points[k, p, 1] * 4 - 0.5
            wx = (1 - (x - torch.arange(5)).abs()).clamp(min=0)
            wy = (1 - (y - torch.arange(4)).abs()).clamp(min=0)
            expected[k, :, p] = (maps[k] * (wy[:, None] * wx)).sum((1, 2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_sample_masks_equals_grid_sample_of_the_chosen_masks():
    masks, which = torch.rand(4, 6, 5) < 0.5, torch.tensor([3, 0, 3, 2, 1])
    points = random_points(5, 20)
    grid = 2 * points[:, None] - 1
    expected = F.grid_sample(masks[which][:, None].float(), grid, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(sample_masks(masks, which, points), expected)


def test_sample_masks_of_nothing():
    found = sample_masks(torch.zeros(2, 3, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.rand(0, 4, 2))
    assert found.shape == (0, 4)


def test_uncertain_points_lie_where_the_logit_is_near_zero():
    # A logit that grows from left to right and is zero at the vertical centre line.
    logits = torch.linspace(-10, 10, 32).expand(3, 32, 32).contiguous()
    points = uncertain_points(logits, count=40, oversampling=5.0, uncertain_share=0.75)
    assert points.shape == (3, 40, 2)
    assert ((points >= 0) & (points <= 1)).all()
    distance = (points[..., 0] - 0.5).abs()
    # The 30 nearest of 200 evenly spread ones are within 0.075 of it, on average 0.04; random ones on average 0.25.
    # (Few lie farther off: at the border samples mix with zeros outside of the map.)
    assert distance[:, :30].mean() < 0.06
    assert distance[:, 30:].mean() > 0.15


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_share_of_uncertain_points_may_be_none_or_all(share):
    assert uncertain_points(torch.randn(2, 8, 8), 10, 3.0, share).shape == (2, 10, 2)


def test_points_stay_in_their_windows_and_on_the_map():
    windows = torch.tensor([[0.3, 0.4, 0.2, 0.1], [0.9, 0.9, 0.4, 0.4]])
    points = uncertain_points(torch.randn(2, 8, 8), 50, 3.0, 0.75, windows)
    low, high = windows[:, None, :2] - windows[:, None, 2:] / 2, windows[:, None, :2] + windows[:, None, 2:] / 2
    assert (points >= low.clamp(min=0) - 1e-6).all() and (points <= high.clamp(max=1) + 1e-6).all()
    assert (points.amax(1) - points.amin(1) > 0.5 * windows[:, 2:].clamp(max=0.25)).all()


def test_points_of_several_parts_are_those_of_a_call_for_each():
    logits, windows = torch.randn(5, 8, 8), torch.rand(5, 4)
    torch.manual_seed(2)
    found = uncertain_points(logits, 12, 3.0, 0.75, windows, parts=(2, 0, 3))
    torch.manual_seed(2)
    rows = slice(0, 2), slice(2, 2), slice(2, 5)
    expected = [uncertain_points(logits[part], 12, 3.0, 0.75, windows[part]) for part in rows]
    torch.testing.assert_close(found, torch.cat(expected))
