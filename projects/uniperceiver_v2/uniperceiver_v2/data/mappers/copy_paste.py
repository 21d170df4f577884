"""Objects of one image pasted onto another (Ghiasi et al., CVPR 2021).

Shapes: H, W of the image that is pasted onto; h, w of the other one; N and M objects.
"""

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from ..samples import DetectionSample


def paste_objects(sample: DetectionSample, other: DetectionSample) -> None:
    """Paste each object of another image onto a sample's with a probability of one half. Changes ``sample``.

    The other image lies at a random place over the sample's, inside it where it is the smaller one. Objects are cut at
    the border. What a pasted object covers is no longer part of the masks below. An object that is covered whole is
    left out, and one that is covered in part gets the box of what is left.

    Args:
        sample, other: with "image" uint8 [3, H, W] or [3, h, w], and "instances" with masks.
    """
    theirs = other["instances"]
    theirs = theirs[torch.from_numpy(np.random.uniform(size=len(theirs)) < 0.5)]
    size, other_size = tuple(sample["image"].shape[1:]), tuple(other["image"].shape[1:])
    y, x = (_place(a, b) for a, b in zip(size, other_size))
    masks = _moved(theirs.gt_masks.tensor, size, y, x)
    visible = masks.flatten(1).any(1)
    if not visible.any():
        return
    masks = masks[visible]
    # Where two pasted objects overlap, both masks stay as they were in their own image.
    covered = masks.any(0)
    sample["image"] = torch.where(covered, _moved(other["image"], size, y, x), sample["image"])
    pasted = Instances(
        size,
        gt_boxes=BitMasks(masks).get_bounding_boxes(),
        gt_classes=theirs.gt_classes[visible],
        gt_masks=BitMasks(masks),
    )
    sample["instances"] = Instances.cat([_behind(sample["instances"], covered), pasted])


def _behind(instances: Instances, covered: Tensor) -> Instances:
    """What is left of the objects behind the pixels ``covered`` [H, W]."""
    whole = instances.gt_masks.tensor
    left = BitMasks(whole & ~covered)
    changed = (whole & covered).flatten(1).any(1)
    boxes = torch.where(changed[:, None], left.get_bounding_boxes().tensor, instances.gt_boxes.tensor)
    kept = left.nonempty()
    return Instances(
        instances.image_size,
        gt_boxes=Boxes(boxes[kept]),
        gt_classes=instances.gt_classes[kept],
        gt_masks=left[kept],
    )


def _place(length: int, other: int) -> int:
    """Where the other image begins, in pixels: inside if it is shorter, else so that it covers the whole length."""
    low, high = sorted((0, length - other))
    return int(np.random.randint(low, high + 1))


def _moved(maps: Tensor, size: tuple[int, int], y: int, x: int) -> Tensor:
    """Maps [..., h, w] at the place (y, x) of zeros [..., H, W]."""
    result = maps.new_zeros(*maps.shape[:-2], *size)
    part = maps[..., max(-y, 0) : size[0] - y, max(-x, 0) : size[1] - x]
    top, left = max(y, 0), max(x, 0)
    result[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
    return result
