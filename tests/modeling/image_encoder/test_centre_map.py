"""The map of centres against plain loops, and where it stands in the model."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import given
from hypothesis import strategies as st

from uniperceiver_v2.config import load_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.modeling.image_encoder import RegionTargets
from uniperceiver_v2.modeling.image_encoder.centre_map import CentreMap, FineMap, centre_heat, centre_losses

SIDES = st.integers(1, 9)


def plain_heat(boxes, true, height: int, width: int) -> list:
    """Of one image, as a list [T][h][w]: the nearest of the objects that have the text, object by object."""
    heat = [[[0.0] * width for _ in range(height)] for _ in range(true.shape[1])]
    for (x, y, w, h), texts in zip(boxes.tolist(), true.tolist(), strict=True):
        column, row = min(int(x * width), width - 1), min(int(y * height), height - 1)
        across, down = max(w * width / 6, 0.5), max(h * height / 6, 0.5)
        for text in (place for place, is_true in enumerate(texts) if is_true):
            for i in range(height):
                for j in range(width):
                    near = math.exp(-(((j - column) / across) ** 2) / 2 - ((i - row) / down) ** 2 / 2)
                    heat[text][i][j] = max(heat[text][i][j], near)
    return heat


@given(SIDES, SIDES, st.integers(0, 4), st.integers(1, 3), st.integers(0, 2**16))
def test_heat_is_that_of_the_nearest_centre(height, width, objects, texts, seed):
    torch.manual_seed(seed)
    boxes, true = torch.rand(2, objects, 4, dtype=torch.float64), torch.rand(2, objects, texts) < 0.5
    found = centre_heat(boxes, true, (height, width))
    expected = torch.tensor(
        [plain_heat(*of_image, height, width) for of_image in zip(boxes, true)], dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_centre_on_the_far_edge_is_in_the_last_cell():
    heat = centre_heat(torch.tensor([[[1.0, 1.0, 0.1, 0.1]]]), torch.ones(1, 1, 1, dtype=torch.bool), (4, 5))
    assert (heat == 1).nonzero().tolist() == [[0, 0, 3, 4]]


def test_the_loss_is_the_plain_formula_with_its_gradients():
    logits = (torch.randn(3, 7, dtype=torch.float64) * 3).requires_grad_()
    heat = torch.rand(3, 7, dtype=torch.float64)
    heat[0, 0] = heat[2, 3] = 1
    p = torch.sigmoid(logits)
    terms = [
        -((1 - p[i, j]) ** 2) * torch.log(p[i, j])
        if heat[i, j] == 1
        else -((1 - heat[i, j]) ** 4) * p[i, j] ** 2 * torch.log(1 - p[i, j])
        for i in range(3)
        for j in range(7)
    ]
    expected = torch.stack(terms).view(3, 7)
    found = centre_losses(logits, heat)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    weights = torch.rand_like(heat)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), logits)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-15)


def test_what_is_not_asked_for_in_an_image_is_not_learned_there():
    centres = CentreMap(channels=4, dim=6)
    fine, texts = torch.randn(2, 4, 3, 5), torch.randn(3, 6, requires_grad=True)
    asked = torch.tensor([[True, False, True], [False, False, True]])
    targets = one_object_each(torch.tensor([[0.5, 0.5, 0.3, 0.3]] * 2))
    true = torch.tensor([[[False, False, True]], [[False, False, False]]])
    centres.loss(fine, texts, targets, true, asked).backward()
    assert texts.grad.abs().sum(1).bool().tolist() == [True, False, True]
    expected = 0.0
    for image, text in asked.nonzero().tolist():
        logits = centres(fine, texts)[image, text]
        expected += centre_losses(logits, centre_heat(targets.boxes, true, (3, 5))[image, text]).sum().item()
    assert centres.loss(fine, texts, targets, true, asked).item() == pytest.approx(expected, rel=1e-5)


def test_centres_of_a_padded_image_are_within_it():
    """Boxes are relative to the image, which has a half of the map here."""
    centres = CentreMap(channels=4, dim=6)
    fine, texts = torch.randn(1, 4, 8, 8), torch.randn(1, 6)
    whole = one_object_each(torch.tensor([[0.25, 0.5, 0.2, 0.5]]))
    padded = one_object_each(torch.tensor([[0.5, 0.5, 0.4, 0.5]]))
    padded.extent = torch.tensor([[0.5, 1.0]])
    true, asked = torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    of_padded, of_whole = (centres.loss(fine, texts, targets, true, asked) for targets in (padded, whole))
    torch.testing.assert_close(of_padded, of_whole)


def one_object_each(boxes: torch.Tensor) -> RegionTargets:
    """Targets of one object for each of the boxes [B,4], each in an image of its own."""
    count = len(boxes)
    ones = torch.ones(count, 1, dtype=torch.bool)
    return RegionTargets(boxes[:, None], torch.zeros(count, 1, 8, 8).bool(), torch.zeros(count, 1).long(), ones)


@given(st.lists(SIDES, min_size=2, max_size=4), SIDES)
def test_the_fine_map_has_the_size_of_the_finest_map(heights, width):
    heights = sorted(heights, reverse=True)
    fine = FineMap(channels=[3] * len(heights), width=8)
    maps = [torch.randn(2, 3, height, width) for height in heights]
    assert fine(maps).shape == (2, 8, heights[0], width)


@pytest.mark.parametrize("first_scale", [0, 1, 2])
@pytest.mark.parametrize("size", [(64, 64), (72, 40), (33, 61)])
def test_fine_features_enter_the_finest_scale(tiny_config, first_scale, size):
    region = tiny_config.MODEL.UNIPERCEIVER_V2.REGION
    region.FIRST_SCALE = first_scale
    regions = build_model(tiny_config).eval().image_encoder.regions
    assert regions.detail[0].stride == (2**first_scale,) * 2
    # Maps whose last row and column are cut off, as some backbones do with odd sides.
    sides = [[max(side // 4 >> level, 1) for side in size] for level in range(4)]
    maps = [torch.randn(1, width, *side) for width, side in zip((8, 12, 16, 24), sides, strict=True)]
    valid = torch.ones(1, *size, dtype=torch.bool)
    found = regions(maps, valid, None)
    assert found.fine.shape[-2:] == tuple(sides[0])
    with torch.no_grad():
        regions.detail[0].weight.zero_()
        regions.detail[1].bias.zero_()
    assert (regions(maps, valid, None).hidden - found.hidden).abs().max() > 1e-4


def test_a_weight_without_a_map_is_refused():
    options = ["MODEL.UNIPERCEIVER_V2.REGION.FINE_DIM", "0"]
    with pytest.raises(UserError, match=r"TASKS.scenes.CENTRE_WEIGHT needs .*REGION.FINE_DIM above 0"):
        load_config(str(TINY_CONFIG), options)
