"""Position encodings compared with plain formulas and Hugging Face's Deformable DETR."""

import math

import pytest
import torch
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrSinePositionEmbedding

from uniperceiver_v2.modeling.layers import box_position_encoding, map_position_encoding, sine_encoding


def plain_sine(coordinate: float, dim: int, temperature: float) -> list[float]:
    result = []
    for i in range(dim // 2):
        angle = 2 * math.pi * coordinate / temperature ** (2 * i / dim)
        result += [math.sin(angle), math.cos(angle)]
    return result


@pytest.mark.parametrize("temperature", [10000.0, 20.0])
def test_sine_encoding_equals_the_plain_formula(temperature):
    coordinates = torch.rand(3, 2)
    found = sine_encoding(coordinates, 6, temperature)
    expected = [[a for c in row for a in plain_sine(c, 6, temperature)] for row in coordinates.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="even, got 5"):
        sine_encoding(torch.rand(2), 5)


def test_boxes_are_encoded_coordinate_by_coordinate():
    boxes = torch.rand(2, 3, 4)
    found = box_position_encoding(boxes, 8)
    assert found.shape == (2, 3, 32)
    for i, part in enumerate(found.split(8, dim=-1)):
        torch.testing.assert_close(part, sine_encoding(boxes[..., i : i + 1], 8))


def valid_maps() -> torch.Tensor:
    valid = torch.zeros(3, 5, 7, dtype=torch.bool)
    valid[0] = True
    valid[1, :3, :7] = True
    valid[2, :5, :4] = True
    return valid


def test_maps_equal_hugging_faces_at_valid_pixels():
    """The conventions agree: y before x, pixel centres, normalisation by each image's own extent."""
    valid = valid_maps()
    theirs = DeformableDetrSinePositionEmbedding(num_position_features=8, normalize=True)
    expected = theirs((3, 16, 5, 7), "cpu", torch.float32, valid).permute(0, 2, 3, 1)
    torch.testing.assert_close(map_position_encoding(valid, 16)[valid], expected[valid], atol=2e-6, rtol=1e-5)


def test_maps_do_not_depend_on_padding():
    valid = valid_maps()
    found = map_position_encoding(valid, 16)
    alone = map_position_encoding(torch.ones(1, 3, 7, dtype=torch.bool), 16)
    torch.testing.assert_close(found[1:2, :3], alone)
    alone = map_position_encoding(torch.ones(1, 5, 4, dtype=torch.bool), 16)
    torch.testing.assert_close(found[2:, :, :4], alone)


def test_padding_is_finite():
    valid = torch.zeros(1, 4, 4, dtype=torch.bool)
    valid[0, :1, :1] = True
    assert map_position_encoding(valid, 8).isfinite().all()
