"""How much of a pixel lies in a box, written out for one pixel."""

import torch


def share(pixel: int, pixels: int, centre: float, side: float) -> float:
    """Of a pixel along one axis. The box is in shares of the axis."""
    low, high = (centre - side / 2) * pixels, (centre + side / 2) * pixels
    return max(0.0, min(pixel + 1, high) - max(pixel, low))


def inside(box: list[float], size: tuple[float, float], pixels: tuple[int, int] | None = None) -> torch.Tensor:
    """Of each pixel [h,w], the share in a box (cx, cy, w, h), which is in shares of a size in pixels.

    Args:
        pixels: (h, w) where the map is larger than the size; by default it is the size.
    """
    (height, width), (cx, cy, w, h), (rows, columns) = size, box, pixels or size
    return torch.tensor(
        [[share(x, width, cx, w) * share(y, height, cy, h) for x in range(columns)] for y in range(rows)]
    )
