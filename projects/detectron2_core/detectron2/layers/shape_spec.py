from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """What a module knows about a feature map before it has seen one; an unknown part is None.

    ``stride`` is relative to the input image, ``height`` and ``width`` are in pixels of the map itself.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
