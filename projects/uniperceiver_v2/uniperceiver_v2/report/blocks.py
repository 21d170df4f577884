"""What a page consists of: notes, tables, plots, and galleries of pictures with texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

Cell = str | float | None


@dataclass(frozen=True)
class Note:
    """A paragraph. With ``is_gap`` it says what the page cannot show."""

    text: str
    is_gap: bool = False
    template: ClassVar[str] = "note"


@dataclass(frozen=True)
class Table:
    """Rows of cells. A cell is a text or a number; None and NaN are shown as "n/a".

    Attributes:
        columns: names, as many as a row has cells.
        rows: of cells.
        caption: a line below the table.
        texts: how many of the first columns hold text. The other columns are aligned as numbers.
        decimals: of all numbers that are floats.
        folded: the words by which the reader opens it. Empty for a table that is open.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    texts: int = 1
    decimals: int = 1
    folded: str = ""
    template: ClassVar[str] = "table"

    def shown(self, cell: Cell) -> str:
        """A cell's text."""
        if cell is None or (isinstance(cell, float) and cell != cell):
            return "n/a"
        return f"{cell:.{self.decimals}f}" if isinstance(cell, float) else str(cell)


@dataclass(frozen=True)
class Plot:
    """A drawing, as a data URI of SVG."""

    uri: str
    alt: str
    caption: str = ""
    template: ClassVar[str] = "plot"


@dataclass(frozen=True)
class Code:
    """A text in a fixed-width font that the reader opens by a click."""

    title: str
    text: str
    template: ClassVar[str] = "code"


@dataclass(frozen=True)
class Box:
    """A box on a picture, in pixels of the image.

    Attributes:
        corners: (x0, y0, x1, y1).
        style: "right", "wrong" or "missed": a class of the style sheet.
        label: written above it.
    """

    corners: tuple[float, float, float, float]
    style: str
    label: str = ""


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, and what is drawn on it. The file may have been made smaller than the image.

    Attributes:
        uri: of PNG or JPEG. Empty if the image cannot be read.
        width, height: of the image, in pixels.
        boxes: on it.
        alt: what the picture shows, for readers who cannot see it.
        is_framed: whether it has a frame, as the right one among several.
    """

    uri: str
    width: int
    height: int
    boxes: Sequence[Box] = ()
    alt: str = ""
    is_framed: bool = False

    @property
    def is_small(self) -> bool:
        """Whether single pixels should stay visible when it is enlarged."""
        return max(self.width, self.height) < 128


@dataclass(frozen=True)
class Line:
    """A line of text. Each of its pieces is (text, style), with "", "right", "wrong" or "pale" as style."""

    pieces: Sequence[tuple[str, str]]
    label: str = ""

    @classmethod
    def of(cls, text: str, style: str = "", label: str = "") -> Line:
        """A line of one piece."""
        return cls(((text, style),), label)


@dataclass(frozen=True)
class Card:
    """Pictures side by side, with lines of text below."""

    pictures: Sequence[Picture] = ()
    lines: Sequence[Line] = ()


@dataclass(frozen=True)
class Gallery:
    """Cards in a grid. The grid's columns are as wide as ``size`` says: "small", "medium" or "wide"."""

    cards: Sequence[Card]
    title: str = ""
    size: str = "medium"
    template: ClassVar[str] = "gallery"


Block = Note | Table | Plot | Code | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own.

    Attributes:
        title: the heading.
        anchor: its name in links.
        parts: pairs of a smaller heading, which may be empty, and blocks.
    """

    title: str
    anchor: str
    parts: Sequence[tuple[str, Sequence[Block]]]
