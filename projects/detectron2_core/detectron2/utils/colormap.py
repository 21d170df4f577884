"""Colours that are easy to distinguish."""

from __future__ import annotations

import colorsys
import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_GOLDEN_RATIO = (5**0.5 - 1) / 2


def _palette(size: int) -> np.ndarray:
    """[size,3] in 0..1. Steps of the golden ratio keep neighbours in the list far apart in hue."""
    saturations, values = (0.9, 0.55), (1.0, 0.85, 0.7)
    hsv = [(i * _GOLDEN_RATIO % 1, saturations[i % 2], values[i % 3]) for i in range(size)]
    return np.array([colorsys.hsv_to_rgb(*color) for color in hsv], dtype=np.float32)


_COLORS = _palette(79)


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """All colours, float32 [N,3].

    Args:
        rgb: channels in the order RGB; otherwise BGR.
        maximum: 255 or 1, the value of a full channel.
    """
    assert maximum in (255, 1), maximum
    colors = _COLORS * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One colour [3], drawn with NumPy's global generator. Arguments as in ``colormap``."""
    return colormap(rgb, maximum)[np.random.randint(len(_COLORS))]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """``N`` different colours, drawn with Python's global generator. Arguments as in ``colormap``.

    Raises:
        ValueError: ``N`` is larger than the number of colours.
    """
    colors = colormap(rgb, maximum)
    return [colors[index] for index in random.sample(range(len(colors)), N)]
