"""Batches of images of different sizes."""

import numpy as np
import pytest
import torch
from detectron2.structures import ImageList
from hypothesis import given, settings
from hypothesis import strategies as st

sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)


def images(sizes, leading=(3,)):
    return [torch.rand(*leading, height, width) for height, width in sizes]


@given(sizes, st.integers(0, 5), st.sampled_from([(), (3,), (2, 3)]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_padding_is_numpys(sizes, divisibility, leading):
    given = images(sizes, leading)
    batch = ImageList.from_tensors(given, divisibility, pad_value=-1.0)
    multiple = max(divisibility, 1)
    height, width = (int(np.ceil(max(side) / multiple)) * multiple for side in zip(*sizes))
    assert batch.tensor.shape == (len(sizes), *leading, height, width)
    for i, image in enumerate(given):
        padding = [(0, 0)] * len(leading) + [(0, height - image.shape[-2]), (0, width - image.shape[-1])]
        expected = np.pad(image.numpy(), padding, constant_values=-1.0)
        np.testing.assert_array_equal(batch.tensor[i].numpy(), expected)
        assert torch.equal(batch[i], image)
    assert [tuple(size) for size in batch.image_sizes] == sizes
    assert len(batch) == len(sizes)


def test_constraints_take_the_place_of_the_arguments():
    given = images([(4, 6), (5, 3)])
    square = ImageList.from_tensors(given, padding_constraints={"square_size": 10})
    assert square.tensor.shape == (2, 3, 10, 10)
    both = ImageList.from_tensors(given, 4, padding_constraints={"square_size": 10, "size_divisibility": 7})
    assert both.tensor.shape == (2, 3, 14, 14)
    only = ImageList.from_tensors(given, 4, padding_constraints={"size_divisibility": 7})
    assert only.tensor.shape == (2, 3, 7, 7)
    assert torch.equal(both[1], given[1])


def test_dtype_and_device_are_kept_and_changed_by_to():
    batch = ImageList.from_tensors([torch.zeros(3, 2, 2, dtype=torch.uint8)])
    assert batch.tensor.dtype == torch.uint8 and batch.device == torch.device("cpu")
    moved = batch.to(torch.float64)
    assert isinstance(moved, ImageList)
    assert moved.tensor.dtype == torch.float64 and moved.image_sizes == batch.image_sizes
    assert batch.to("meta").device.type == "meta"


def test_padding_copies():
    image = torch.ones(1, 2, 2)
    batch = ImageList.from_tensors([image, torch.ones(1, 3, 3)])
    batch.tensor.zero_()
    assert image.sum() == 4


def test_gradients_reach_the_images():
    image = torch.rand(1, 2, 3, requires_grad=True)
    ImageList.from_tensors([image, torch.rand(1, 4, 4)], 8).tensor.sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))


def test_what_is_no_batch_is_refused():
    with pytest.raises(AssertionError):
        ImageList.from_tensors([])
    with pytest.raises(AssertionError):
        ImageList.from_tensors([torch.zeros(3, 2, 2), torch.zeros(1, 2, 2)])
    with pytest.raises(AssertionError):
        ImageList.from_tensors([np.zeros((3, 2, 2))])
