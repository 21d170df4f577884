"""Batches in the form in which the data mappers make them."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

NAMES = ("zero", "one", "two", "three", "seven")


def scene(size: tuple[int, int], boxes: list[tuple[int, int, int, int]], classes: list[int]) -> dict:
    """A grey image with a bright rectangle for each object. Higher classes are brighter."""
    height, width = size
    image = torch.full((3, height, width), 60, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1), label in zip(masks, boxes, classes, strict=True):
        mask[y0:y1, x0:x1] = True
        image[label % 3, y0:y1, x0:x1] = 140 + 20 * label
    return {
        "task": "scenes",
        "image": image,
        "height": height,
        "width": width,
        "candidates": NAMES,
        "instances": Instances(
            size,
            gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
            gt_classes=torch.tensor(classes, dtype=torch.int64),
            gt_masks=BitMasks(masks),
        ),
    }


@pytest.fixture
def scenes() -> list[dict]:
    """Images of different sizes, with two objects, none, and one."""
    return [
        scene((64, 64), [(4, 6, 28, 30), (36, 20, 60, 56)], [4, 1]),
        scene((48, 64), [], []),
        scene((64, 40), [(8, 16, 32, 48)], [2]),
    ]


@pytest.fixture
def digits() -> list[dict]:
    """One image of each of four classes."""
    images = torch.full((4, 3, 32, 32), 60, dtype=torch.uint8)
    for label, image in enumerate(images):
        image[label % 3, 8 * (label // 2) : 20, 4 : 12 + 5 * label] = 220
    return [{"task": "digits", "image": x, "candidates": NAMES, "label": i} for i, x in enumerate(images)]
