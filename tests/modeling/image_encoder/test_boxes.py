"""Overlaps of boxes compared with plain arithmetic and with Hugging Face's."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.loss.loss_for_object_detection import generalized_box_iou

from uniperceiver_v2.modeling.image_encoder.boxes import box_overlaps, cxcywh_to_xyxy, xyxy_to_cxcywh


def plain_overlaps(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and GIoU of two boxes (cx, cy, w, h)."""
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    intersection = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - intersection
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return intersection / union, intersection / union - (hull - union) / hull


side = st.floats(0.01, 1)
place = st.floats(-0.5, 1.5)
boxes = st.tuples(place, place, side, side)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(boxes, boxes)
def test_overlaps_equal_the_plain_formula(a, b):
    iou, giou = box_overlaps(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    expected = plain_overlaps(a, b)
    torch.testing.assert_close(torch.stack([iou, giou]), torch.tensor(expected, dtype=torch.float64))
    assert 0 <= iou <= 1 + 1e-9
    assert -1 <= giou <= iou + 1e-9


def test_all_pairs_by_broadcasting_equal_hugging_faces():
    a, b = torch.rand(6, 4) + 0.01, torch.rand(5, 4) + 0.01
    iou, giou = box_overlaps(a[:, None], b)
    assert iou.shape == giou.shape == (6, 5)
    torch.testing.assert_close(giou, generalized_box_iou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)))


def test_gradients_by_finite_differences():
    a = torch.rand(4, 4, dtype=torch.float64) * 0.5 + 0.25
    b = torch.rand(4, 4, dtype=torch.float64) * 0.5 + 0.25
    assert torch.autograd.gradcheck(box_overlaps, (a.requires_grad_(), b.requires_grad_()))


def test_empty_boxes_give_zero_and_finite_gradients():
    empty = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    iou, giou = box_overlaps(empty, torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    assert iou.item() == 0
    assert giou.item() == 0
    (iou + giou).sum().backward()
    assert empty.grad.isfinite().all()


def test_identical_and_disjoint_boxes():
    box = torch.tensor([0.3, 0.3, 0.2, 0.2])
    iou, giou = box_overlaps(box, box)
    torch.testing.assert_close(torch.stack([iou, giou]), torch.ones(2))
    # Two unit squares four apart: hull 5×1, union 2.
    iou, giou = box_overlaps(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([4.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(torch.stack([iou, giou]), torch.tensor([0.0, -3 / 5]))


def test_corners_and_centres_are_inverse():
    corners = torch.tensor([[1.0, 2.0, 5.0, 10.0]])
    torch.testing.assert_close(xyxy_to_cxcywh(corners), torch.tensor([[3.0, 6.0, 4.0, 8.0]]))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(corners)), corners)
