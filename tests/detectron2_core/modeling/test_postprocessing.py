"""Predictions scaled to the size of the user's image."""

import math

import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import detector_postprocess
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, Instances


def test_boxes_are_scaled_clipped_and_dropped_when_empty():
    results = Instances((100, 200))
    results.pred_boxes = Boxes(
        torch.tensor([[10.0, 20, 30, 40], [190, 90, 260, 130], [50, 60, 50, 80], [210, 5, 230, 9]])
    )
    results.scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    resized = detector_postprocess(results, 50, 400)
    assert resized.image_size == (50, 400)
    # x doubles, y halves; the third has no width, the fourth lies outside of the image.
    torch.testing.assert_close(resized.pred_boxes.tensor, torch.tensor([[20.0, 10, 60, 20], [380, 45, 400, 50]]))
    assert resized.scores.tolist() == pytest.approx([0.9, 0.8])


def test_proposals_and_keypoints_are_scaled_too():
    results = Instances((10, 10))
    results.proposal_boxes = Boxes(torch.tensor([[1.0, 2, 3, 4]]))
    results.pred_keypoints = torch.tensor([[[1.0, 2.0, 0.5]]])
    resized = detector_postprocess(results, 30, 20)
    assert resized.proposal_boxes.tensor.tolist() == [[2, 6, 6, 12]]
    assert resized.pred_keypoints.tolist() == [[[2, 6, 0.5]]]


def test_predictions_without_boxes_are_refused():
    results = Instances((10, 10))
    results.scores = torch.tensor([0.5])
    with pytest.raises(AssertionError):
        detector_postprocess(results, 10, 10)


def pasted_value(mask, box, x, y):
    """The value at the centre of pixel (x, y) of the mask, stretched bilinearly over the box and zero around it."""
    size = len(mask)
    u = (x + 0.5 - box[0]) / (box[2] - box[0]) * size - 0.5
    v = (y + 0.5 - box[1]) / (box[3] - box[1]) * size - 0.5
    value = 0.0
    for i in (math.floor(v), math.floor(v) + 1):
        for j in (math.floor(u), math.floor(u) + 1):
            if 0 <= i < size and 0 <= j < size:
                value += (1 - abs(v - i)) * (1 - abs(u - j)) * float(mask[i][j])
    return value


def test_masks_are_pasted_into_their_boxes():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 5, 5, generator=generator)
    # Inside, over two borders, and smaller than the mask's own grid.
    boxes = torch.tensor([[2.3, 1.1, 14.8, 9.2], [-4.0, 5.5, 6.5, 19.0], [10.2, 8.1, 12.9, 10.4]])
    height, width = 12, 16
    pasted = paste_masks_in_image(masks, boxes, (height, width), threshold=0.5)
    assert pasted.shape == (3, height, width)
    assert pasted.dtype == torch.bool
    for mask, box, got in zip(masks.tolist(), boxes.tolist(), pasted, strict=True):
        expected = [[pasted_value(mask, box, x, y) for x in range(width)] for y in range(height)]
        assert torch.equal(got, torch.tensor(expected) >= 0.5)
    assert pasted.flatten(1).any(1).all()


def test_postprocess_turns_relative_masks_into_image_masks():
    results = Instances((10, 10))
    results.pred_boxes = Boxes(torch.tensor([[1.0, 1, 1, 5], [2, 2, 6, 6]]))
    results.pred_masks = torch.zeros(2, 1, 4, 4)
    results.pred_masks[1, 0, :, :2] = 1
    resized = detector_postprocess(results, 20, 30, mask_threshold=0.3)
    assert resized.pred_masks.shape == (1, 20, 30)
    expected = torch.zeros(20, 30, dtype=torch.bool)
    box = [6.0, 4.0, 18.0, 12.0]
    mask = [[1, 1, 0, 0]] * 4
    for y in range(20):
        for x in range(30):
            expected[y, x] = pasted_value(mask, box, x, y) >= 0.3
    assert torch.equal(resized.pred_masks[0], expected)
    assert expected[8, 8] and not expected[8, 16]


def test_no_masks_paste_to_none():
    assert paste_masks_in_image(torch.zeros(0, 5, 5), torch.zeros(0, 4), (6, 7)).shape == (0, 6, 7)


def test_sem_seg_postprocess_cuts_the_padding_and_resizes():
    logits = torch.full((2, 8, 8), 1000.0)
    logits[:, :4, :6] = torch.arange(6.0)
    resized = sem_seg_postprocess(logits, (4, 6), 8, 12)
    assert resized.shape == (2, 8, 12)
    # Bilinear at half the step, constant beyond the outermost centres.
    row = torch.tensor([max(0.0, min(5.0, (x + 0.5) / 2 - 0.5)) for x in range(12)])
    torch.testing.assert_close(resized, row.expand(2, 8, 12))
