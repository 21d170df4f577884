"""Cards: an image with the answers of a model about it, and sheets of them.

    +-----------+-----------+
    | objects   | phrases   |   panels, side by side
    +-----------+-----------+
    | a caption, its log P  |
    | seven  ████████  98%  |   probabilities of labels
    +-----------------------+

All lengths are in pixels. Cards of the same panels and answers have the same size, as the frames of a video need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .caption_sheet import _font, _place, _wrap

_MARGIN = 12
_TEXT_SIZE, _SMALL_SIZE, _LABEL_SIZE, _TITLE_SIZE = 16, 12, 13, 18
_LINE, _SMALL_LINE, _BAR_LINE = 21, 17, 22
_CAPTION_LINES, _BARS, _HEADING_LINES = 2, 3, 1
_PAPER, _FRAME, _INK, _PALE_INK, _BAR, _TRACK = "#ffffff", "#eceef2", "#14181f", "#6b7280", "#2f6fdb", "#e3e7ee"
# Light hues, so that names on them are black everywhere. Dark edges keep them visible on light images.
_PALETTE = (
    (255, 92, 92),
    (66, 170, 255),
    (255, 204, 51),
    (72, 214, 122),
    (214, 120, 255),
    (255, 148, 61),
    (54, 224, 220),
    (255, 128, 190),
    (176, 222, 70),
    (150, 150, 255),
    (222, 184, 135),
    (200, 208, 216),
)

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Mark:
    """A found object, in pixels of a panel's picture.

    Attributes:
        text: its name and score.
        colour: any whole number; marks of the same number have the same colour.
        box: absolute XYXY.
        mask: bool [H,W], or None.
    """

    text: str
    colour: int
    box: Box
    mask: np.ndarray | None


@dataclass(frozen=True)
class Panel:
    """A picture with its marks already drawn, and a heading above it ("" for none)."""

    picture: Image.Image
    heading: str = ""


@dataclass(frozen=True)
class Answers:
    """What stands below the panels. None means that nobody asked.

    Attributes:
        caption: a caption and its log-likelihood.
        classes: labels with their probabilities, best first.
    """

    caption: tuple[str, float] | None = None
    classes: Sequence[tuple[str, float]] | None = None


def fitted(image: np.ndarray, smallest: int = 480, largest: int = 1600) -> np.ndarray:
    """An image, uint8 [H,W,3], scaled until its longer side is between these numbers of pixels."""
    height, width = image.shape[:2]
    scale = min(max(max(height, width), smallest), largest) / max(height, width)
    if scale == 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Bicubic interpolation rings at the edges of an enlarged image; a smaller image needs an average.
    method = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize(size, method))


def draw_marks(image: np.ndarray, marks: Iterable[Mark]) -> Image.Image:
    """Masks with contours, boxes and names on an image.

    Args:
        image: uint8 [H,W,3], RGB.
        marks: best first. Each mask is needed for a moment only, so that a generator keeps memory small.
    """
    pixels = np.ascontiguousarray(image).copy()
    named = []
    for mark in marks:
        if mark.mask is not None:
            _fill(pixels, mark.mask, _PALETTE[mark.colour % len(_PALETTE)])
        named.append((mark.text, mark.box, _PALETTE[mark.colour % len(_PALETTE)]))
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for _, box, colour in named:
        _outline(draw, box, colour)
    taken: list[Box] = []
    for text, box, colour in named:
        taken.append(_name(draw, picture.size, text, box, colour, taken))
    return picture


def _fill(pixels: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """A light tint, which leaves the object's own colour visible, and a contour."""
    pixels[mask] = (0.75 * pixels[mask] + 0.25 * np.array(colour)).astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for width, ink in ((3, (20, 24, 31)), (1, colour)):
        cv2.drawContours(pixels, contours, -1, ink, width, cv2.LINE_AA)


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int]) -> None:
    # A coloured line between dark ones is visible on any background.
    for inset, ink in ((-1, _INK), (2, _INK), (0, colour), (1, colour)):
        x0, y0, x1, y1 = (round(value) for value in box)
        left, top = x0 + inset, y0 + inset
        draw.rectangle((left, top, max(x1 - inset, left), max(y1 - inset, top)), None, ink)


def _name(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    box: Box,
    colour: tuple[int, int, int],
    taken: Sequence[Box],
) -> Box:
    """Write a name at its box and return the area that it covers. Prefers a place that covers no other name."""
    text = _wrap(draw, text, _LABEL_SIZE, 1, max(size[0] - 8, 40))[0]
    width, height = math.ceil(draw.textlength(text, _font(_LABEL_SIZE))) + 8, _LABEL_SIZE + 6
    place = _place(width, height, box, size, taken)
    draw.rectangle(place, colour, _INK)
    draw.text((place[0] + 4, (place[1] + place[3]) / 2), text, _INK, _font(_LABEL_SIZE), anchor="lm")
    return place


def draw_card(panels: Sequence[Panel], answers: Answers, title: str = "", side: int | None = None) -> Image.Image:
    """A card.

    Args:
        panels: at least one.
        answers: what stands below.
        title: stands above.
        side: of the square in whose centre each picture stands. None: as large as the largest picture.
    """
    width = side or max(240, *(panel.picture.width for panel in panels))
    height = side or max(96, *(panel.picture.height for panel in panels))
    headings = any(panel.heading for panel in panels)
    top = (_SMALL_LINE + 4) * bool(title)
    below = top + (_SMALL_LINE + 4) * headings + height
    total = (len(panels) * (width + _MARGIN) - _MARGIN, below + _height_of(answers))
    card = Image.new("RGB", total, _PAPER)
    draw = ImageDraw.Draw(card)
    if title:
        draw.text((0, 2), _wrap(draw, title, _SMALL_SIZE, 1, total[0])[0], _PALE_INK, _font(_SMALL_SIZE))
    for place, panel in enumerate(panels):
        left = place * (width + _MARGIN)
        if headings:
            text = _wrap(draw, panel.heading, _SMALL_SIZE, 1, width)[0]
            draw.text((left, top + 2), text, _INK, _font(_SMALL_SIZE))
        card.paste(_framed(panel.picture, width, height), (left, below - height))
    _write(draw, answers, below, total[0])
    return card


def _framed(picture: Image.Image, width: int, height: int) -> Image.Image:
    frame = Image.new("RGB", (width, height), _FRAME)
    frame.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return frame


def _height_of(answers: Answers) -> int:
    caption = _CAPTION_LINES * _LINE + _SMALL_LINE + 8 if answers.caption is not None else 0
    return caption + (_BARS * _BAR_LINE + 8 if answers.classes is not None else 0)


def _write(draw: ImageDraw.ImageDraw, answers: Answers, top: int, width: int) -> None:
    """The caption and the bars."""
    if answers.caption is not None:
        text, log_likelihood = answers.caption
        for line in _wrap(draw, text or "(no caption)", _TEXT_SIZE, _CAPTION_LINES, width - 8):
            top += _LINE
            draw.text((4, top - _LINE + 6), line, _INK, _font(_TEXT_SIZE))
        number = f"{log_likelihood:.1f}".replace("-", "−")
        draw.text((4, top + 8), f"log-likelihood {number}", _PALE_INK, _font(_SMALL_SIZE))
        top += _SMALL_LINE + 8
    for place, (label, probability) in enumerate((answers.classes or ())[:_BARS]):
        _write_bar(draw, label, probability, top + 4 + place * _BAR_LINE, width)


def _write_bar(draw: ImageDraw.ImageDraw, label: str, probability: float, top: int, width: int) -> None:
    font, middle = _font(_LABEL_SIZE), top + _BAR_LINE / 2
    left, right = width * 0.35, width - 48
    draw.text((4, middle), _wrap(draw, label, _LABEL_SIZE, 1, int(left) - 12)[0], _INK, font, anchor="lm")
    draw.rectangle((left, top + 5, right, top + _BAR_LINE - 5), _TRACK)
    if probability > 0.005:
        draw.rectangle((left, top + 5, left + (right - left) * probability, top + _BAR_LINE - 5), _BAR)
    draw.text((width - 4, middle), f"{probability:.0%}", _INK, font, anchor="rm")


def draw_sheet(cards: Sequence[Image.Image], title: str, widest: int = 1600) -> Image.Image:
    """Cards in rows below a title of at most three lines. The sheet is no wider than ``widest``, or has one column."""
    gap = 2 * _MARGIN
    width = max((card.width for card in cards), default=480) + gap
    height = max((card.height for card in cards), default=0) + gap
    columns = max(1, min((widest - gap) // width, len(cards)))
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = _wrap(probe, title, _TITLE_SIZE, 3, columns * width - gap)
    head = gap + len(lines) * round(1.4 * _TITLE_SIZE)
    sheet = Image.new("RGB", (columns * width + gap, head + _MARGIN + -(-len(cards) // columns) * height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((gap, gap + number * round(1.4 * _TITLE_SIZE)), line, _INK, _font(_TITLE_SIZE))
    for place, card in enumerate(cards):
        sheet.paste(card, (gap + place % columns * width, head + _MARGIN + place // columns * height))
    return sheet
