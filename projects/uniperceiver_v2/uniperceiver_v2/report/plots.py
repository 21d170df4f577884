"""Plots by matplotlib, each as a data URI of SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour blindness tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK, PALE, GRID = "#1f2933", "#6b7280", "#e3e6ea"
_STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text: smaller files, and readers can search them
    "svg.hashsalt": "uniperceiver_v2",  # equal plots have equal bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": PALE,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
}

Numbers = Sequence[float] | np.ndarray
Series = tuple[Numbers, Numbers]  # x and y
Draw = Callable[["Figure", Sequence["Axes"]], None]


def curves_plot(panels: Mapping[str, Sequence[Series]], names: Sequence[str] = ()) -> str:
    """A panel for each scalar of training, with a line for each run.

    Args:
        panels: {title: a series for each run, empty where it has none}. A panel has a logarithmic axis if its values
            are positive and span more than a factor of 20.
        names: of the runs. Several of them are named in a legend.
    """

    def draw(figure: Figure, axes: Sequence[Axes]) -> None:
        for ax, (title, series) in zip(axes, panels.items()):
            for colour, (x, y) in zip(_repeated(COLOURS, len(series)), series):
                # A line through one point would not be seen.
                ax.plot(x, y, color=colour, linewidth=1.2, marker="o" if len(x) == 1 else None, markersize=4)
            values = [v for _, y in series for v in y if math.isfinite(v)]
            is_share = title.endswith("accuracy")
            if values and not is_share and min(values) > 0 and max(values) > 20 * min(values):
                _scale_logarithmically(ax)
            else:
                ax.locator_params(axis="y", nbins=4)
            ax.locator_params(axis="x", nbins=4)
            ax.set_title(title)
            ax.margins(x=0.02)
        if len(names) > 1:
            lines = [axes[0].plot([], [], color=c)[0] for c in _repeated(COLOURS, len(names))]
            figure.legend(lines, names, loc="outside upper left", ncols=min(len(names), 3))

    return _grid(len(panels), 4, (2.5, 1.7), draw)


def precision_recall_plot(panels: Mapping[str, Series]) -> str:
    """A panel for each category: precision by recall."""
    columns = 5

    def draw(figure: Figure, axes: Sequence[Axes]) -> None:
        for ax, (title, (recall, precision)) in zip(axes, panels.items()):
            ax.plot(recall, precision, color=COLOURS[0])
            ax.fill_between(recall, precision, color=COLOURS[0], alpha=0.12, linewidth=0)
            ax.set(title=title, xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        for ax in axes[::columns]:
            ax.set_ylabel("precision")
        for ax in axes[-columns:]:
            ax.set_xlabel("recall")

    return _grid(len(panels), columns, (2.0, 1.75), draw)


def reliability_plot(confidence: np.ndarray, outcome: np.ndarray, count: np.ndarray, x_label: str, y_label: str) -> str:
    """Outcome by confidence beside the diagonal, and how many predictions each bin has.

    Args:
        confidence, outcome: [B], means of the bins of equal width. NaN where a bin is empty.
        count: [B], the predictions of each bin.
        x_label, y_label: names of confidence and outcome.
    """

    def draw(figure: Figure, axes: Sequence[Axes]) -> None:
        ax, counts = axes
        bins = len(count)
        centres = (np.arange(bins) + 0.5) / bins
        filled = count > 0
        ax.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle="--")
        ax.bar(centres[filled], outcome[filled], 0.9 / bins, color=COLOURS[0], alpha=0.35)
        ax.plot(confidence[filled], outcome[filled], "o-", color=COLOURS[0], markersize=4)
        ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label, title="outcome (dashed: as it should be)")
        counts.bar(centres, count, 0.9 / bins, color=PALE)
        counts.set(xlim=(0, 1), xlabel=x_label, title="predictions of each bin")
        if count.max() > 20 * count[filled].min():
            _scale_logarithmically(counts)

    return _grid(2, 2, (3.6, 2.7), draw)


def matrix_plot(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], x_label: str, y_label: str) -> str:
    """Counts [R, C] as shades with numbers. A shade is the share of its row."""
    from matplotlib.colors import LinearSegmentedColormap

    def draw(figure: Figure, axes: Sequence[Axes]) -> None:
        ax = axes[0]
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", COLOURS[0]])
        ax.imshow(shares, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for r, c in np.argwhere(matrix > 0):
            ink = "#ffffff" if shares[r, c] > 0.55 else INK
            ax.text(c, r, f"{matrix[r, c]}", ha="center", va="center", color=ink, fontsize=8)
        ax.set_xticks(range(len(columns)), columns, rotation=45 if max(map(len, columns)) > 3 else 0, ha="right")
        ax.set_yticks(range(len(rows)), rows)
        ax.set(xlabel=x_label, ylabel=y_label)
        ax.grid(False)
        ax.tick_params(length=0)

    size = (1.6 + 0.5 * len(columns), 1.2 + 0.3 * len(rows))
    return _grid(1, 1, size, draw)


def histogram_plot(values: Sequence[float], x_label: str, y_label: str) -> str:
    """How often values occur."""

    def draw(figure: Figure, axes: Sequence[Axes]) -> None:
        axes[0].hist(values, bins=30, color=COLOURS[0])
        axes[0].set(xlabel=x_label, ylabel=y_label)

    return _grid(1, 1, (5.5, 2.4), draw)


def lines_plot(lines: Mapping[str, Series], x_label: str, y_label: str, dashed: Sequence[str] = ()) -> str:
    """Named lines in one plot. Those in ``dashed`` are references and not measurements of the model."""

    def draw(figure: Figure, axes: Sequence[Axes]) -> None:
        for colour, (name, (x, y)) in zip(_repeated(COLOURS, len(lines)), lines.items()):
            axes[0].plot(x, y, color=colour, label=name, linestyle="--" if name in dashed else "-")
        axes[0].set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
        figure.legend(loc="outside right upper")

    return _grid(1, 1, (6.5, 2.6), draw)


def bars_plot(groups: Mapping[str, Sequence[float]], names: Sequence[str], x_label: str) -> str:
    """Horizontal bars: a group for each label, a bar for each run."""

    def draw(figure: Figure, axes: Sequence[Axes]) -> None:
        ax, height = axes[0], 0.8 / len(names)
        for place, (colour, name) in enumerate(zip(_repeated(COLOURS, len(names)), names)):
            y = np.arange(len(groups)) + (place - (len(names) - 1) / 2) * height
            ax.barh(y, [values[place] for values in groups.values()], 0.9 * height, color=colour, label=name)
        ax.set_yticks(range(len(groups)), groups)
        ax.invert_yaxis()
        ax.set_xlabel(x_label)
        ax.grid(axis="y", visible=False)
        if len(names) > 1:
            figure.legend(loc="outside upper left", ncols=min(len(names), 3))

    return _grid(1, 1, (6.5, 1.0 + len(groups) * (0.14 + 0.13 * len(names))), draw)


def _grid(count: int, columns: int, size: tuple[float, float], draw: Draw) -> str:
    """``draw(figure, axes)`` on ``count`` axes of ``size`` inches, as a data URI."""
    # Imported here: matplotlib takes half a second. Figures without pyplot leave the program's own plots alone.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for unused in axes[count:]:
            unused.set_visible(False)
        draw(figure, axes[:count])
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def _scale_logarithmically(ax: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _repeated(colours: Sequence[str], count: int) -> list[str]:
    return [colours[i % len(colours)] for i in range(count)]
