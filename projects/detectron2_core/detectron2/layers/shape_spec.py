from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """The known shape of a feature map. An unknown part is None.

    ``stride`` is relative to the input image. ``height`` and ``width`` are in pixels of the map.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
