"""A picture on which shapes and text are drawn. ``visualizer`` uses it and exports ``VisImage``."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageColor, ImageDraw, ImageFont

Color = str | Sequence[float] | np.ndarray
"""A triple in 0..1, "#rrggbb", a CSS name such as "orange", or one of matplotlib's letters such as "g"."""

_LETTERS = {
    "b": (0, 0, 1),
    "g": (0, 0.5, 0),
    "r": (1, 0, 0),
    "c": (0, 0.75, 0.75),
    "m": (0.75, 0, 0.75),
    "y": (0.75, 0.75, 0),
    "k": (0, 0, 0),
    "w": (1, 1, 1),
}
# On and off lengths of a line, in multiples of its width. OpenCV's round ends make the first longer by 1, the second
# shorter by 1.
_DASHES = {"-": (), "--": (2.7, 2.6), "-.": (5.4, 2.6, 0.0, 2.6), ":": (0.0, 2.65)}
_PIXELS_PER_POINT = 100 / 72  # widths and font sizes are in points, with upstream's 100 dots per inch
_SHIFT = 4  # OpenCV takes coordinates as integers, here in units of 1/16 pixel
_TEXT_BACKGROUND = (0, 0, 0, 204)
_TEXT_PADDING = 1


def to_rgb(color: Color) -> tuple[float, float, float]:
    """A colour as three numbers in 0..1.

    Raises:
        ValueError: it is not a colour.
    """
    if isinstance(color, str):
        if color in _LETTERS:
            return _LETTERS[color]
        return tuple(channel / 255 for channel in ImageColor.getrgb(color)[:3])
    rgb = tuple(float(channel) for channel in color[:3])
    if len(rgb) != 3 or not all(0 <= channel <= 1 for channel in rgb):
        raise ValueError(f"A colour has three numbers from 0 to 1, not {color}")
    return rgb


@functools.lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)


class VisImage:
    """A picture in progress, in the coordinates of the image that it starts from.

    The top left pixel covers (0, 0) to (1, 1) at every scale. ``Visualizer`` draws with the methods that begin with an
    underscore. They replace upstream's matplotlib figure.

    Attributes:
        img: the original image.
        scale: output pixels per image pixel.
        width, height: the size of the original image.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        """
        Args:
            img: RGB [H,W,3] in 0..255.
            scale: how much larger than the image the output is.
        """
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        # The small summand keeps 0.1 * 30 from becoming 2 pixels.
        self._shape = (int(self.height * scale + 1e-2), int(self.width * scale + 1e-2))
        self._labels: list[tuple[np.ndarray, int, int]] = []
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Replaces the picture by another image [H,W,3] of the same size. Text is kept."""
        img = np.ascontiguousarray(img.astype(np.uint8))
        # A copy even without resizing, so that drawing does not change the caller's array.
        self._canvas = cv2.resize(img, self._shape[::-1], interpolation=cv2.INTER_NEAREST).copy()

    def get_image(self) -> np.ndarray:
        """The picture so far, uint8 RGB [H * scale, W * scale, 3]; text is above all shapes."""
        picture = self._canvas.copy()
        for label, left, top in self._labels:
            height, width = label.shape[:2]
            window = picture[top : top + height, left : left + width]
            label = label[: window.shape[0], : window.shape[1]]
            _blend(window, label[..., :3], label[..., 3:] / np.float32(255))
        return picture

    def save(self, filepath: str) -> None:
        """Writes the picture to a file. The suffix decides the format."""
        image_format = Image.registered_extensions()["." + filepath.rsplit(".", 1)[-1].lower()]
        with PathManager.open(filepath, "wb") as file:
            Image.fromarray(self.get_image()).save(file, format=image_format)

    def _fill_coverage(self, coverage: np.ndarray, color: Color, alpha: float) -> None:
        """Blends a colour over the whole canvas, with the opacity ``alpha`` times a uint8 coverage (255 is full)."""
        left, top, width, height = cv2.boundingRect(coverage)
        self._blend_coverage(coverage[top : top + height, left : left + width], left, top, color, alpha)

    def _fill_mask(self, mask: np.ndarray, color: Color, edge_color: Color, alpha: float, linewidth: float) -> None:
        """Fills the pixels of a mask [H,W] of 0 and 1, without its holes, and outlines them."""
        coverage = cv2.resize(mask * np.uint8(255), self._shape[::-1], interpolation=cv2.INTER_LINEAR)
        self._fill_coverage(coverage, color, alpha)
        inside = (coverage >= 128).astype(np.uint8)
        contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outline = np.zeros_like(coverage)
        cv2.drawContours(outline, contours, -1, 255, self._pixels(linewidth), cv2.LINE_AA)
        self._fill_coverage(outline, edge_color, 1.0)

    def _fill_polygon(self, points: np.ndarray, color: Color, alpha: float) -> None:
        """Fills the polygon with corners [K,2]."""
        left, top, coverage = self._window(points, margin=2)
        cv2.fillPoly(coverage, [self._fixed_point(points, left, top)], 255, cv2.LINE_AA, _SHIFT)
        self._blend_coverage(coverage, left, top, color, alpha)

    def _draw_outline(
        self, points: np.ndarray, color: Color, alpha: float, linewidth: float, line_style: str = "-"
    ) -> None:
        """Draws the closed line through points [K,2], ``linewidth`` points (1/72 inch) wide.

        Raises:
            ValueError: a style other than "-", "--", "-." and ":".
        """
        if line_style not in _DASHES:
            raise ValueError(f"Line style {line_style!r} is none of {', '.join(_DASHES)}")
        thickness = self._pixels(linewidth)
        left, top, coverage = self._window(points, margin=thickness + 2)
        if line_style == "-":
            lines = [(points, True)]
        else:
            pattern = np.array(_DASHES[line_style]) * thickness / self.scale
            lines = [(dash, False) for dash in _dashes(points, pattern)]
        for line, closed in lines:
            fixed = self._fixed_point(line, left, top)
            cv2.polylines(coverage, [fixed], closed, 255, thickness, cv2.LINE_AA, _SHIFT)
        self._blend_coverage(coverage, left, top, color, alpha)

    def _draw_label(
        self, text: str, x: float, y: float, color: Color, size: float, alignment: str, rotation: float
    ) -> None:
        """Writes text on dark ground with its upper border at ``y``, moved so far that it lies inside.

        Args:
            size: of the font, in points (1/72 inch).
            alignment: "left", "center" or "right": which part of the text lies at ``x``.
            rotation: degrees counter-clockwise. The alignment is that of the rotated text's bounding box.
        """
        label = _render_text(text, max(round(size * _PIXELS_PER_POINT), 1), color, rotation)
        height, width = label.shape[:2]
        left = x * self.scale - width * {"left": 0, "center": 0.5, "right": 1}[alignment]
        left = min(max(round(left), 0), max(self._shape[1] - width, 0))
        top = min(max(round(y * self.scale), 0), max(self._shape[0] - height, 0))
        self._labels.append((label, left, top))

    def _pixels(self, linewidth: float) -> int:
        return max(round(linewidth * _PIXELS_PER_POINT), 1)

    def _window(self, points: np.ndarray, margin: int) -> tuple[int, int, np.ndarray]:
        """The part of the canvas around points: its left, its top, and an array for its coverage (may be empty)."""
        scaled = np.asarray(points, dtype=np.float64) * self.scale
        limits = np.array(self._shape[::-1])
        low = np.clip(np.floor(scaled.min(axis=0)) - margin, 0, limits).astype(int)
        high = np.clip(np.ceil(scaled.max(axis=0)) + margin, low, limits).astype(int)
        width, height = (high - low).tolist()
        return int(low[0]), int(low[1]), np.zeros((height, width), np.uint8)

    def _fixed_point(self, points: np.ndarray, left: int, top: int) -> np.ndarray:
        # OpenCV's origin is the centre of the first pixel, ours is its corner.
        positions = np.asarray(points, dtype=np.float64) * self.scale - 0.5 - (left, top)
        return np.round(positions * 2**_SHIFT).astype(np.int32)

    def _blend_coverage(self, coverage: np.ndarray, left: int, top: int, color: Color, alpha: float) -> None:
        height, width = coverage.shape
        window = self._canvas[top : top + height, left : left + width]
        rgb = np.array(to_rgb(color), dtype=np.float32) * 255
        _blend(window, rgb, coverage[..., None] * np.float32(alpha / 255))


def _blend(window: np.ndarray, rgb: np.ndarray, opacity: np.ndarray) -> None:
    """Writes ``rgb`` (0..255) into a uint8 picture, in place, by an opacity [h,w,1] in 0..1."""
    window[...] = np.round(window + (rgb - window.astype(np.float32)) * opacity)


def _dashes(points: np.ndarray, pattern: np.ndarray) -> list[np.ndarray]:
    """Cuts the closed line through points [K,2] into dashes [2,2]; on and off lengths repeat on each side."""
    dashes = []
    for start, end in zip(points, np.roll(points, -1, axis=0)):
        length = float(np.linalg.norm(end - start))
        if length == 0:
            continue
        direction, position, step = (end - start) / length, 0.0, 0
        while position < length:
            stop = min(position + pattern[step % len(pattern)], length)
            if step % 2 == 0:
                dashes.append(np.stack([start + direction * position, start + direction * stop]))
            position, step = stop, step + 1
    return dashes


def _render_text(text: str, pixels: int, color: Color, rotation: float) -> np.ndarray:
    """Text on its background, RGBA uint8 [h,w,4]. After a rotation, corners are transparent."""
    font = _font(pixels)
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGBA", (1, 1))).textbbox((0, 0), text, font=font)
    # As high as the highest letter, so that the labels "one" and "eight" have the same height.
    ascent, descent = font.getmetrics()
    bottom = max(bottom, ascent + descent // 2)
    size = (int(right - left) + 2 * _TEXT_PADDING, int(bottom - min(top, 0)) + 2 * _TEXT_PADDING)
    label = Image.new("RGBA", size, _TEXT_BACKGROUND)
    fill = tuple(round(channel * 255) for channel in to_rgb(color))
    ImageDraw.Draw(label).text((_TEXT_PADDING - left, _TEXT_PADDING - min(top, 0)), text, fill=fill, font=font)
    if rotation:
        label = label.rotate(rotation, expand=True, resample=Image.Resampling.BICUBIC)
    return np.asarray(label)
