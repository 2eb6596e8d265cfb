"""Panels of figures: heatmaps over the grid of tasks, with parameter axes and units, and what they are made of."""

from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from twmaml.grid import ParameterGrid

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
"""Okabe and Ito's palette, which the colour-blind can tell apart."""


UNITS = {"deg": "°"}


def axis_label(grid: ParameterGrid, name: str) -> str:
    """The name of a parameter with its unit."""
    unit = UNITS.get(grid.axes[name].unit, grid.axes[name].unit)
    return f"{name} [{unit}]" if unit else name


def views_of(grid: ParameterGrid) -> list[tuple[str, ...]]:
    """The axes of each panel that shows values over the grid: every pair of them, or the only one."""
    return list(combinations(grid.names, 2)) or [grid.names]


def marginalise(grid: ParameterGrid, values: np.ndarray, view: tuple[str, ...]) -> np.ndarray:
    """Mean over the axes that are not in view, of the values that are known; NaN where none is."""
    hidden = tuple(i for i, name in enumerate(grid.names) if name not in view)
    known = ~np.isnan(values.reshape(grid.shape))
    total = np.where(known, values.reshape(grid.shape), 0).sum(axis=hidden)
    count = known.sum(axis=hidden)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def show_grid(axes: Axes, grid: ParameterGrid, values: np.ndarray, view: tuple[str, ...], **style: Any) -> Any:
    """Values over the grid as a heatmap over two of its axes (a line over one), averaged over the others."""
    marginal = marginalise(grid, values, view)
    edges = [grid.axes[name].edges() for name in view]
    axes.set_xlabel(axis_label(grid, view[0]))
    if len(view) == 1:
        axes.stairs(marginal, edges[0], color=COLOURS[0], linewidth=1.5)
        return None
    axes.set_ylabel(axis_label(grid, view[1]))
    axes.set_facecolor("0.85")  # cells without a value
    extent = (edges[0][0], edges[0][-1], edges[1][0], edges[1][-1])
    image = np.ma.masked_invalid(marginal).T
    return axes.imshow(image, extent=extent, origin="lower", aspect="auto", interpolation="nearest", **style)


def make_panels(
    rows: int, columns: int, width: float, height: float, right: float = 0.2
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of equal panels, placed by hand: constrained layout would take as long again as drawing.

    Args:
        rows: of panels.
        columns: of panels.
        width: of a panel with its labels, in inches.
        height: likewise.
        right: of that width, what is kept free at the right, 0.9 for a colour bar.
    """
    left, bottom, top, title = 0.75, 0.5, 0.3, 0.4
    size = (columns * width, rows * height + title)
    figure = Figure(figsize=size)
    panel = ((width - left - right) / size[0], (height - bottom - top) / size[1])
    return figure, [
        [
            figure.add_axes(((c * width + left) / size[0], ((rows - 1 - r) * height + bottom) / size[1], *panel))
            for c in range(columns)
        ]
        for r in range(rows)
    ]


def set_title(axes: Axes, text: str) -> None:
    """Names a panel."""
    axes.set_title(text, fontsize=10, y=1.0)  # a fixed height, which would take half of the drawing's time to find


def use_plain_numbers(axis: Axis) -> None:
    """Marks 0.2, 0.5, 1 beside a logarithmic axis that has its range, instead of powers of ten and what lies between.

    A tick takes a millisecond, so few of them make figures quick too.
    """
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    steps = LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,))
    axis.set_major_locator(MaxNLocator(4) if decades < 0.8 else steps)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def add_colour_bar(axes: Axes, mesh: Any, label: str = "", extend: str = "neither") -> None:
    """Puts what the colours mean at the right of a panel."""
    cax = axes.inset_axes((1.03, 0.0, 0.05, 1.0))
    axes.figure.colorbar(mesh, cax=cax, label=label, extend=extend)
    if isinstance(mesh.norm, LogNorm):
        use_plain_numbers(cax.yaxis)
