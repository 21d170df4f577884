"""Targets, valid pixels and padding."""

import torch
from detectron2.structures import BitMasks, Boxes, ImageList, Instances

from uniperceiver_v2.modeling.image_encoder import ImageEncoding, Proposals, RegionTargets
from uniperceiver_v2.modeling.image_encoder.structures import (
    average_over_masks,
    has_padding,
    resize_valid,
    valid_pixels,
)

from .windows import share


def instances(size: tuple[int, int], boxes: list, classes: list[int]) -> Instances:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return Instances(
        size,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_masks=BitMasks(masks),
    )


def images_of(*sizes: tuple[int, int]) -> ImageList:
    return ImageList.from_tensors([torch.zeros(3, *size) for size in sizes], 8)


def test_targets_are_relative_to_each_image_and_padded():
    images = images_of((10, 20), (16, 8))
    items = [instances((10, 20), [[2, 1, 6, 9], [0, 0, 20, 10]], [3, 1]), instances((16, 8), [[4, 8, 8, 16]], [2])]
    targets = RegionTargets.from_instances(items, images)
    assert targets.valid.tolist() == [[True, True], [True, False]]
    assert targets.labels.tolist() == [[3, 1], [2, 0]]
    expected = [[[4 / 20, 5 / 10, 4 / 20, 8 / 10], [0.5, 0.5, 1, 1]], [[6 / 8, 12 / 16, 4 / 8, 8 / 16], [0] * 4]]
    torch.testing.assert_close(targets.boxes, torch.tensor(expected))
    assert targets.masks.shape == (2, 2, 16, 24)
    assert targets.masks[0, 0, 1:9, 2:6].all()
    assert targets.masks.sum((2, 3)).tolist() == [[4 * 8, 20 * 10], [4 * 8, 0]]


def test_images_without_objects():
    images = images_of((10, 20), (16, 8))
    items = [instances((10, 20), [], []), instances((16, 8), [[4, 8, 8, 16]], [2])]
    targets = RegionTargets.from_instances(items, images)
    assert targets.valid.tolist() == [[False], [True]]
    targets = RegionTargets.from_instances(items[:1], images_of((10, 20)))
    assert targets.valid.tolist() == [[False]]
    assert targets.boxes.shape == (1, 1, 4)
    assert not targets.masks.any()


def test_valid_pixels_are_those_of_the_image():
    valid = valid_pixels(images_of((10, 20), (16, 8)))
    assert valid.shape == (2, 16, 24)
    assert valid[0, :10, :20].all()
    assert valid[1, :16, :8].all()
    assert valid.sum((1, 2)).tolist() == [200, 128]


def test_resize_valid_takes_the_nearest_pixel():
    valid = torch.zeros(1, 8, 8, dtype=torch.bool)
    valid[0, :5, :3] = True
    # Map pixel (i, j) asks image pixel (2i, 2j).
    expected = torch.tensor([[i * 2 < 5 and j * 2 < 3 for j in range(4)] for i in range(4)])
    assert torch.equal(resize_valid(valid, (4, 4))[0], expected)


def test_mean_global_token_leaves_padding_out():
    tokens = torch.randn(2, 3, 4)
    valid = torch.tensor([[True, False, True], [True, True, True]])
    nothing = Proposals(*[torch.zeros(2, 0)] * 5)
    found = ImageEncoding(tokens, valid, torch.zeros(2, 0, 4), nothing).mean_global_token()
    torch.testing.assert_close(found, torch.stack(((tokens[0, 0] + tokens[0, 2]) / 2, tokens[1].mean(0))))


def test_a_batch_is_padded_if_one_of_its_images_is_smaller():
    assert not has_padding(images_of((16, 24), (16, 24)))
    assert has_padding(images_of((16, 24), (16, 23)))
    assert has_padding(images_of((10, 20)))  # to a multiple of 8


def test_a_map_is_averaged_over_each_mask_within_its_box():
    features = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    boxes = torch.cat((torch.rand(2, 3, 2), 0.3 + 0.4 * torch.rand(2, 3, 2)), dim=-1).double()
    found = average_over_masks(features, masks, boxes)
    for image in range(2):
        for query, (x, y, w, h) in enumerate(boxes[image].tolist()):
            total, weights = torch.zeros(5, dtype=torch.float64), 0.0
            for row in range(6):
                for column in range(8):
                    weight = masks[image, query, row, column].sigmoid().item()
                    weight *= share(column, 8, x, w) * share(row, 6, y, h)
                    total, weights = total + weight * features[image, :, row, column].detach(), weights + weight
            torch.testing.assert_close(found[image, query].detach(), total / max(weights, 1.0))
    found.square().sum().backward()
    assert masks.grad is None and features.grad.abs().sum() > 0


def test_a_mask_of_nothing_has_no_appearance():
    outside = torch.tensor([[[2.0, 2.0, 0.1, 0.1]]])
    assert average_over_masks(torch.ones(1, 4, 3, 3), torch.zeros(1, 1, 3, 3), outside).abs().max() == 0
