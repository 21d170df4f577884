"""Bitmaps and polygons, compared with the COCO API and plain geometry."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks, polygons_to_bitmask
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 7.0, 2.0, 7.0]
TRIANGLE = [10.0, 10.0, 14.0, 10.0, 14.0, 16.0]
stable = settings(derandomize=True, deadline=None, max_examples=60)
bitmaps = st_numpy.arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(1, 7)))


class TestPolygonsToBitmask:
    def test_pixels_whose_centre_lies_inside(self):
        mask = polygons_to_bitmask([np.array(SQUARE)], 10, 12)
        expected = np.zeros((10, 12), dtype=bool)
        expected[3:7, 2:8] = True
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, expected)

    def test_union_of_the_parts(self):
        both = polygons_to_bitmask([np.array(SQUARE), np.array(TRIANGLE)], 20, 20)
        parts = [polygons_to_bitmask([np.array(p)], 20, 20) for p in (SQUARE, TRIANGLE)]
        np.testing.assert_array_equal(both, parts[0] | parts[1])

    def test_no_polygons(self):
        mask = polygons_to_bitmask([], 3, 4)
        assert mask.shape == (3, 4) and mask.dtype == bool and not mask.any()


class TestBitMasks:
    @given(bitmaps)
    @stable
    def test_boxes_and_emptiness(self, masks):
        bit_masks = BitMasks(masks)
        expected = []
        for mask in masks:
            ys, xs = mask.nonzero()
            expected.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0])
        assert bit_masks.get_bounding_boxes().tensor.tolist() == expected
        assert bit_masks.nonempty().tolist() == [bool(mask.any()) for mask in masks]
        assert len(bit_masks) == len(masks)
        assert tuple(bit_masks.image_size) == masks.shape[1:]

    @pytest.mark.parametrize("make", [torch.tensor, np.array])
    def test_what_is_not_zero_is_inside(self, make):
        masks = BitMasks(make([[[0, 1], [2, 0]]]))
        assert masks.tensor.dtype == torch.bool
        assert masks.tensor.tolist() == [[[False, True], [True, False]]]

    def test_other_shapes_are_refused(self):
        with pytest.raises(AssertionError):
            BitMasks(torch.zeros(3, 4))

    @pytest.mark.parametrize(
        ("item", "rows"),
        [
            (1, [1]),
            (-1, [2]),
            (slice(0, 2), [0, 1]),
            (torch.tensor([True, False, True]), [0, 2]),
            (torch.tensor([2, 0]), [2, 0]),
        ],
    )
    def test_indexing(self, item, rows):
        tensor = torch.rand(3, 4, 5) > 0.5
        chosen = BitMasks(tensor)[item]
        assert isinstance(chosen, BitMasks)
        assert torch.equal(chosen.tensor, tensor[rows])

    def test_iteration_cat_and_to(self):
        tensor = torch.rand(3, 4, 5) > 0.5
        masks = BitMasks(tensor)
        assert all(torch.equal(a, b) for a, b in zip(masks, tensor))
        assert torch.equal(BitMasks.cat([masks, masks[1]]).tensor, tensor[[0, 1, 2, 1]])
        assert masks.device == torch.device("cpu")
        assert masks.to("meta").device.type == "meta"
        with pytest.raises(AssertionError):
            BitMasks.cat([])

    @pytest.mark.parametrize("wrap", [PolygonMasks, list])
    def test_from_polygons(self, wrap):
        instances = [[np.array(SQUARE)], [np.array(SQUARE), np.array(TRIANGLE)]]
        masks = BitMasks.from_polygon_masks(wrap(instances), 20, 18)
        assert masks.tensor.shape == (2, 20, 18)
        for mask, polygons in zip(masks, instances):
            rle = coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in polygons], 20, 18))
            np.testing.assert_array_equal(mask.numpy(), coco_mask.decode(rle))

    def test_from_no_polygons(self):
        assert BitMasks.from_polygon_masks([], 3, 4).tensor.shape == (0, 3, 4)


class TestPolygonMasks:
    masks = PolygonMasks([[SQUARE], [SQUARE, TRIANGLE], [TRIANGLE]])

    def test_polygons_are_float64_arrays(self):
        masks = PolygonMasks([[torch.tensor(SQUARE)], [SQUARE, np.array(TRIANGLE, dtype=np.int64)]])
        assert [len(polygons) for polygons in masks] == [1, 2]
        for polygons in masks.polygons:
            assert all(isinstance(p, np.ndarray) and p.dtype == np.float64 for p in polygons)

    def test_boxes_and_areas(self):
        boxes = self.masks.get_bounding_boxes().tensor.tolist()
        assert boxes == [[2, 3, 8, 7], [2, 3, 14, 16], [10, 10, 14, 16]]
        assert self.masks.area().tolist() == [24, 36, 12]

    @given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=3, max_size=3))
    @stable
    def test_area_of_a_triangle(self, corners):
        (x0, y0), (x1, y1), (x2, y2) = corners
        half_cross_product = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) / 2
        area = PolygonMasks([[[x0, y0, x1, y1, x2, y2]]]).area().item()
        assert area == pytest.approx(half_cross_product, abs=1e-4)

    def test_nonempty(self):
        assert PolygonMasks([[SQUARE], []]).nonempty().tolist() == [True, False]
        assert PolygonMasks([]).nonempty().tolist() == []

    @pytest.mark.parametrize(
        ("item", "areas"),
        [
            (0, [24]),
            (-1, [12]),
            (slice(1, 3), [36, 12]),
            ([2, 0], [12, 24]),
            (torch.tensor([2, 0]), [12, 24]),
            (torch.tensor([True, False, True]), [24, 12]),
        ],
    )
    def test_indexing(self, item, areas):
        chosen = self.masks[item]
        assert isinstance(chosen, PolygonMasks)
        assert chosen.area().tolist() == areas

    def test_indexing_by_floats_is_refused(self):
        with pytest.raises(ValueError, match="dtype"):
            self.masks[torch.tensor([0.0])]

    def test_cat_and_to(self):
        joined = PolygonMasks.cat([self.masks, self.masks[0]])
        assert joined.area().tolist() == [24, 36, 12, 24]
        assert len(joined) == 4
        assert joined.to("cpu") is joined
        assert joined.device == torch.device("cpu")
        with pytest.raises(AssertionError):
            PolygonMasks.cat([])

    @pytest.mark.parametrize(
        "wrong",
        [np.array(SQUARE), [np.array(SQUARE)], [[[0, 0, 1, 1]]], [[[0, 0, 1, 1, 2, 2, 3]]]],
        ids=["no list", "no polygons", "two corners", "half a corner"],
    )
    def test_what_is_no_polygon_is_refused(self, wrong):
        with pytest.raises(ValueError, match=r"polygon|PolygonMasks"):
            PolygonMasks(wrong)


def test_text_tells_the_number():
    assert repr(BitMasks(torch.zeros(2, 3, 3))) == "BitMasks(num_instances=2)"
    assert repr(TestPolygonMasks.masks) == "PolygonMasks(num_instances=3)"
