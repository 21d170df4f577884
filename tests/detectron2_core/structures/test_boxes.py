"""Boxes and their overlaps, compared with formulas for single boxes."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, pairwise_ioa, pairwise_iou
from detectron2.structures.boxes import pairwise_intersection
from hypothesis import given, settings
from hypothesis import strategies as st

coordinate = st.floats(-50, 50, width=32)
side = st.floats(0, 60, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
many = st.lists(box, max_size=6)
stable = settings(derandomize=True, deadline=None, max_examples=60)


def area(b):
    return (b[2] - b[0]) * (b[3] - b[1])


def shared_area(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def table(function, first, second):
    return np.array([[function(a, b) for b in second] for a in first]).reshape(len(first), len(second))


class TestBoxMode:
    @pytest.mark.parametrize("kind", [list, tuple])
    def test_one_box_keeps_its_type(self, kind):
        xyxy = BoxMode.convert(kind([10.0, 20.0, 30.0, 5.0]), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert xyxy == kind([10.0, 20.0, 40.0, 25.0])
        assert BoxMode.convert(xyxy, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) == kind([10.0, 20.0, 30.0, 5.0])

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
    @pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
    def test_many_keep_type_and_input(self, dtype, to):
        values = np.array([[1, 2, 3, 4], [0, 0, 5, 6]], dtype=dtype)
        boxes = to(values.copy())
        converted = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert type(converted) is type(boxes) and converted.dtype == boxes.dtype
        assert converted.tolist() == [[1, 2, 4, 6], [0, 0, 5, 6]]
        assert boxes.tolist() == values.tolist()

    def test_the_same_mode_returns_the_input(self):
        box = [1, 2, 3, 4]
        assert BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYXY_ABS) is box

    @given(many)
    @stable
    def test_there_and_back(self, boxes):
        boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        xywh = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        np.testing.assert_allclose(xywh[:, 2] * xywh[:, 3], [area(b) for b in boxes], atol=1e-9)
        np.testing.assert_allclose(BoxMode.convert(xywh, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS), boxes, atol=1e-9)

    def test_numbers_are_those_of_dataset_files(self):
        assert [int(mode) for mode in BoxMode] == [0, 1, 2, 3, 4]
        assert BoxMode(1) is BoxMode.XYWH_ABS

    def test_what_has_no_conversion_is_refused(self):
        with pytest.raises(AssertionError):
            BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
        with pytest.raises(AssertionError):
            BoxMode.convert([0, 0, 1], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        with pytest.raises(NotImplementedError):
            BoxMode.convert([0.0, 0, 1, 1, 30], BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS)


class TestBoxes:
    rows = ((0.0, 0.0, 4.0, 6.0), (1.0, 2.0, 1.0, 9.0), (5.0, 5.0, 20.0, 8.0))

    def boxes(self):
        return Boxes(torch.tensor(self.rows))

    @pytest.mark.parametrize("make", [list, np.array, torch.tensor])
    def test_anything_with_four_columns(self, make):
        boxes = Boxes(make([[1, 2, 3, 4]]))
        assert boxes.tensor.dtype == torch.float32
        assert boxes.tensor.tolist() == [[1, 2, 3, 4]]

    @pytest.mark.parametrize("nothing", [[], torch.zeros(0), np.zeros((0, 4)), torch.zeros(0, 4)])
    def test_none(self, nothing):
        boxes = Boxes(nothing)
        assert boxes.tensor.shape == (0, 4)
        assert len(boxes) == 0
        assert boxes.area().shape == boxes.nonempty().shape == (0,)

    @pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(AssertionError):
            Boxes(torch.zeros(shape))

    def test_area_and_centres(self):
        assert self.boxes().area().tolist() == [area(b) for b in self.rows]
        assert self.boxes().get_centers().tolist() == [[2, 3], [1, 5.5], [12.5, 6.5]]

    def test_nonempty_needs_both_sides_above_the_threshold(self):
        assert self.boxes().nonempty().tolist() == [True, False, True]
        assert self.boxes().nonempty(threshold=3).tolist() == [True, False, False]
        assert self.boxes().nonempty(threshold=4).tolist() == [False, False, False]

    @given(many, st.integers(1, 40), st.integers(1, 40))
    @stable
    def test_clip_is_numpys(self, rows, height, width):
        boxes = Boxes(rows)
        boxes.clip((height, width))
        limits = [width, height, width, height]
        expected = np.clip(np.array(rows, dtype=np.float32).reshape(-1, 4), 0, limits)
        np.testing.assert_array_equal(boxes.tensor.numpy(), expected)

    def test_clip_refuses_what_is_not_finite(self):
        with pytest.raises(AssertionError):
            Boxes([[0, 0, float("nan"), 1]]).clip((5, 5))

    def test_inside_box(self):
        assert self.boxes().inside_box((7, 10)).tolist() == [True, False, False]
        assert self.boxes().inside_box((7, 10), boundary_threshold=3).tolist() == [True, True, False]

    def test_scale_in_place(self):
        boxes = self.boxes()
        boxes.scale(2, 0.5)
        assert boxes.tensor.tolist() == [[2 * a, b / 2, 2 * c, d / 2] for a, b, c, d in self.rows]

    @pytest.mark.parametrize(
        ("item", "expected"),
        [
            (1, [1]),
            (-1, [2]),
            (slice(1, None), [1, 2]),
            (torch.tensor([True, False, True]), [0, 2]),
            (torch.tensor([2, 0, 0]), [2, 0, 0]),
            (torch.zeros(3, dtype=torch.bool), []),
        ],
    )
    def test_indexing(self, item, expected):
        chosen = self.boxes()[item]
        assert isinstance(chosen, Boxes)
        assert chosen.tensor.tolist() == [list(self.rows[i]) for i in expected]

    def test_iteration_gives_rows(self):
        assert [tuple(row.tolist()) for row in self.boxes()] == list(self.rows)

    def test_cat_and_clone_do_not_share_storage(self):
        first = self.boxes()
        joined, clone = Boxes.cat([first, Boxes([]), first]), first.clone()
        first.tensor.zero_()
        assert joined.tensor.tolist() == [list(b) for b in self.rows * 2]
        assert clone.tensor.tolist() == [list(b) for b in self.rows]
        assert Boxes.cat([]).tensor.shape == (0, 4)

    def test_to(self):
        boxes = self.boxes().to("cpu")
        assert isinstance(boxes, Boxes) and boxes.device == torch.device("cpu")
        assert self.boxes().to("meta").device.type == "meta"

    def test_repr_shows_the_numbers(self):
        assert repr(Boxes([[1, 2, 3, 4]])) == "Boxes(tensor([[1., 2., 3., 4.]]))"


class TestPairwise:
    @given(many, many)
    @stable
    def test_against_one_pair_at_a_time(self, first, second):
        shared = table(shared_area, first, second)
        areas1 = np.array([area(a) for a in first]).reshape(-1, 1)
        areas2 = np.array([area(b) for b in second]).reshape(1, -1)
        union, whole = areas1 + areas2 - shared, np.broadcast_to(areas2, shared.shape)
        iou = np.divide(shared, union, where=shared > 0, out=np.zeros_like(shared))
        ioa = np.divide(shared, whole, where=shared > 0, out=np.zeros_like(shared))
        given = Boxes(first), Boxes(second)
        np.testing.assert_allclose(pairwise_intersection(*given), shared, rtol=1e-3, atol=1e-2)
        # Slivers lose their digits in float32; they have no overlap to speak of.
        clear = shared > 0.1
        np.testing.assert_allclose(pairwise_iou(*given).numpy()[clear], iou[clear], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(pairwise_ioa(*given).numpy()[clear], ioa[clear], rtol=1e-3, atol=1e-4)

    def test_boxes_that_only_touch_or_are_empty_do_not_overlap(self):
        boxes = Boxes([[0, 0, 2, 2], [2, 0, 4, 2], [1, 1, 1, 1]])
        for function in (pairwise_iou, pairwise_ioa, pairwise_intersection):
            off_diagonal = function(boxes, boxes) * (1 - torch.eye(3))
            assert off_diagonal.tolist() == torch.zeros(3, 3).tolist()
        assert pairwise_iou(boxes, boxes).diagonal().tolist() == [1, 1, 0]

    def test_ioa_divides_by_the_second_box(self):
        small, large = Boxes([[0, 0, 1, 1]]), Boxes([[0, 0, 2, 2]])
        assert pairwise_ioa(large, small).item() == 1
        assert pairwise_ioa(small, large).item() == 0.25
