from __future__ import annotations

import torch
from torch.nn import functional as F


def paste_masks_in_image(
    masks: torch.Tensor, boxes, image_shape: tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Paste square masks, each relative to its box, into images of the full size.

    Args:
        masks: float [N,M,M], probabilities in [0,1].
        boxes: ``Boxes`` or float [N,4], xyxy in pixels of the image. Box i is the place of mask i.
        image_shape: (height, width) of the image.
        threshold: a pixel with at least this probability is foreground.

    Returns:
        bool [N,height,width].
    """
    height, width = image_shape
    if not isinstance(boxes, torch.Tensor):
        boxes = boxes.tensor
    assert masks.shape[-1] == masks.shape[-2], "Only square mask predictions are supported"
    assert len(boxes) == len(masks), f"{len(masks)} masks for {len(boxes)} boxes"
    pasted = torch.zeros(len(masks), height, width, device=masks.device, dtype=torch.bool)
    # One mask at a time and only inside its box, so that probabilities of all N full-size masks are never in memory.
    for mask, (x0, y0, x1, y1), target in zip(masks.float(), boxes.tolist(), pasted, strict=True):
        left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
        right, bottom = min(int(x1) + 2, width), min(int(y1) + 2, height)
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            continue
        # A pixel has the value at its centre. Coordinates in the box are -1..1.
        x = (torch.arange(left, right, device=masks.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom, device=masks.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)
        soft = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        target[top:bottom, left:right] = soft >= threshold
    return pasted
