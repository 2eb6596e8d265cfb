"""Panels of figures: heatmaps over the grid of tasks, with parameter axes and units, and what they are made of."""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from twmaml.space.axis import Axis as ParameterAxis
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import Directed

# What the font lacks, a unit of other letters say, is an empty box in the figure; it needs no lines in the terminal.
warnings.filterwarnings("ignore", "(?s)Glyph .* missing from font", UserWarning)

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
"""Okabe and Ito's palette, which the colour-blind can tell apart."""


UNITS = {"deg": "°"}

_LETTERS = 16
"""Letters of a tick's label; the rest of a longer name is left out."""

_MOST_CELLS = 512
"""Cells along an axis of a panel of the queue."""

_TICK_SIZE = 7.5
"""Font size of the labels of ticks that are names."""


def axis_label(grid: ParameterGrid, name: str) -> str:
    """The name of a parameter with its unit."""
    unit = UNITS.get(grid.axes[name].unit, grid.axes[name].unit)
    return f"{name} [{unit}]" if unit else name


def describe_task(grid: ParameterGrid, task: np.ndarray) -> str:
    """The parameters of a task, given in their configured units, as a title says them."""
    return ", ".join(f"{name} {_value_text(grid, name, float(task[i]))}" for i, name in enumerate(grid.names))


def _value_text(grid: ParameterGrid, name: str, value: float) -> str:
    axis = grid.axes[name]
    ticks = None if axis.continuous else axis.ticks()
    if ticks is None:
        return f"{value:.3g}{UNITS.get(axis.unit, axis.unit)}"
    places, labels = ticks
    place = float(axis.position(jnp.float32(value))) * axis.cells
    return labels[int(np.abs(np.array(places) - place).argmin())]


def cell_labels(axis: ParameterAxis) -> list[str] | None:
    """The name or the range of each cell of an axis that labels its ticks itself; None of others."""
    ticks, edges = axis.ticks(), axis.edges()
    if ticks is None:
        return None
    places, labels = ticks
    if not axis.continuous:
        middles = (edges[:-1] + edges[1:]) / 2
        return [labels[int(np.abs(np.array(places) - middle).argmin())] for middle in middles]
    inside = [jnp.asarray(edges[:-1], jnp.float32), jnp.nextafter(jnp.asarray(edges[1:], jnp.float32), -jnp.inf)]
    low, high = (np.asarray(axis.ends(ends / axis.cells).value) / axis.scale for ends in inside)
    return [f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True)]


def rooms_of(grid: ParameterGrid) -> tuple[float, float]:
    """Inches that the names of cells need at the left of panels and below them."""
    return names_room(grid, grid.names[1:]), names_room(grid, grid.names[:-1] or grid.names)


def names_room(grid: ParameterGrid, names: Sequence[str]) -> float:
    """Inches that the labels of the ticks of some axes need; 0 where all ticks are numbers."""
    ticks = [grid.axes[name].ticks() for name in names]
    return max((text_width(_short(label), _TICK_SIZE) for each in ticks if each for label in each[1]), default=0.0)


def use_ticks(axis: Axis, parameter: ParameterAxis) -> None:
    """Labels the ticks of a parameter that says itself what they are, as many as there is room for."""
    ticks = parameter.ticks()
    if ticks is None:
        return
    places, labels = ticks[0], [_short(label) for label in ticks[1]]
    across = axis is axis.axes.xaxis
    length = np.asarray(axis.axes.get_window_extent().size)[0 if across else 1] / axis.axes.figure.dpi
    widest = max(text_width(label, _TICK_SIZE) for label in labels) + 0.08
    upright = across and widest * len(labels) > length
    beside = max(1, int(length / (0.13 if upright or not across else widest)))
    every = slice(None, None, -(-len(labels) // beside))
    axis.set_ticks(places[every], labels[every], fontsize=_TICK_SIZE, rotation=90 if upright else 0)


def _short(label: str) -> str:
    return label if len(label) <= _LETTERS else f"{label[: _LETTERS - 1]}…"


def views_of(grid: ParameterGrid) -> list[tuple[str, ...]]:
    """The axes of each panel that shows values over the grid: every pair of them, or the only one."""
    return list(combinations(grid.names, 2)) or [grid.names]


def marginalise(grid: ParameterGrid, values: np.ndarray, view: tuple[str, ...]) -> np.ndarray:
    """Mean over the axes that are not in view, of the values that are known; NaN where none is."""
    hidden = tuple(i for i, name in enumerate(grid.names) if name not in view)
    values = values.reshape(grid.shape)
    known = ~np.isnan(values)
    return _mean(values.sum(axis=hidden, where=known, dtype=float), known.sum(axis=hidden))


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def in_words(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def coarsen(grid: ParameterGrid, marginal: np.ndarray, view: tuple[str, ...]) -> tuple[ParameterGrid, np.ndarray]:
    """A grid of at most 512 cells along an axis, and what it shows: the mean of the known values in each of its cells.

    More than a panel has pixels for takes long to draw, and what is known of few cells would not be seen.
    """
    known = ~np.isnan(marginal)
    total, count = np.where(known, marginal, 0), known.astype(int)
    for i, name in enumerate(view):
        cells = grid.axes[name].cells
        if cells > _MOST_CELLS and grid.axes[name].continuous:
            starts = np.arange(_MOST_CELLS) * cells // _MOST_CELLS
            total, count = (np.add.reduceat(each, starts, axis=i) for each in (total, count))
    shown = [min(axis.cells, _MOST_CELLS) if axis.continuous else axis.cells for axis in grid.axes.values()]
    return grid.with_cells(shown), _mean(total, count)


def show_grid(axes: Axes, grid: ParameterGrid, marginal: np.ndarray, view: tuple[str, ...], **style: Any) -> Any:
    """Values over one or two axes of the grid (`marginalise`), as a line or a heatmap."""
    edges = [grid.axes[name].edges() for name in view]
    axes.set_xlabel(axis_label(grid, view[0]))
    use_ticks(axes.xaxis, grid.axes[view[0]])
    if len(view) == 1:
        axes.stairs(marginal, edges[0], color="0.2", linewidth=1.5)
        return None
    axes.set_ylabel(axis_label(grid, view[1]))
    use_ticks(axes.yaxis, grid.axes[view[1]])
    axes.set_facecolor("0.85")  # cells without a value
    extent = (edges[0][0], edges[0][-1], edges[1][0], edges[1][-1])
    image = np.ma.masked_invalid(marginal).T
    return axes.imshow(image, extent=extent, origin="lower", aspect="auto", interpolation="nearest", **style)


def make_panels(
    rows: int,
    columns: int,
    width: float,
    height: float,
    *,
    left: float = 0.75,
    right: float = 0.2,
    bottom: float = 0.5,
    top: float = 0.3,
    head: float = 0.4,
    foot: float = 0.0,
    margin: float = 0.0,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of equal panels, placed by hand: constrained layout would take as long again as drawing.

    Args:
        rows: number of panels below each other.
        columns: number of panels beside each other.
        width: a panel's with its labels, in inches, as all that follows.
        height: likewise.
        left: part of that width that is kept free at the left.
        right: likewise, 0.9 for a colour bar.
        bottom: part of that height.
        top: likewise, for a title.
        head: room above all panels.
        foot: room below all panels.
        margin: room at the left of all panels.
    """
    size = (margin + columns * width, head + rows * height + foot)
    figure = Figure(figsize=size)
    panel = ((width - left - right) / size[0], (height - bottom - top) / size[1])
    x = [(margin + c * width + left) / size[0] for c in range(columns)]
    y = [(foot + (rows - 1 - r) * height + bottom) / size[1] for r in range(rows)]
    return figure, [[figure.add_axes((at_x, at_y, *panel)) for at_x in x] for at_y in y]


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of the longest line, in inches."""
    font = FontProperties(size=size, weight=weight)
    return max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n")) / 72


def set_title(axes: Axes, text: str) -> None:
    """Names a panel."""
    axes.set_title(text, fontsize=10, y=1.0)  # a fixed height, which would take half of the drawing's time to find


def use_log_scale(axis: Axis) -> None:
    """Makes an axis logarithmic, after its data are drawn; it stays as it is if none of them is positive."""
    if np.isfinite(axis.get_minpos()):
        (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
        use_plain_numbers(axis)


def use_plain_numbers(axis: Axis) -> None:
    """Marks 0.2, 0.5, 1 beside a logarithmic axis that has its range, instead of powers of ten and what lies between.

    As many as there is room for. A tick takes a millisecond, so few of them make figures quick too.
    """
    low, high = axis.get_view_interval()
    decades = np.log10(high) - np.log10(low)
    if decades < 0.8:
        locators: list[Locator] = [MaxNLocator(n) for n in (4, 3, 2)]
    elif decades < 2.5:
        locators = [LogLocator(subs=subs) for subs in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))]
    else:
        locators = [LogLocator(numticks=n) for n in (9, 6, 4, 3, 2)]
    axis.set_major_locator(next((each for each in locators if _has_room(axis, each)), locators[-1]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _has_room(axis: Axis, locator: Locator) -> bool:
    """Whether the numbers at the ticks do not touch."""
    low, high = axis.get_view_interval()
    ticks = np.array([tick for tick in locator.tick_values(low, high) if low <= tick <= high])
    along = axis is axis.axes.xaxis
    length = np.asarray(axis.axes.get_window_extent().size)[0 if along else 1] / axis.axes.figure.dpi
    places = length * np.log(ticks / low) / np.log(high / low)
    needs = [text_width(f"{tick:g}", 10) + 0.1 if along else 0.15 for tick in ticks]
    return bool((np.diff(places) >= (np.array(needs[1:]) + needs[:-1]) / 2).all())


def colours_for(metric: Directed) -> str:
    """The colour map of values: dark is good, bright is bad."""
    return "viridis_r" if metric.higher_is_better else "viridis"


def norm_of(values: np.ndarray, logarithmic: bool) -> Normalize:
    """How values become colours, on a logarithmic scale if that is wanted and possible."""
    known = values[np.isfinite(values)]
    if logarithmic or not known.size:
        return log_norm(known)
    return Normalize(known.min(), known.max())


def log_norm(values: np.ndarray) -> Normalize:
    """Colours for positive values on a logarithmic scale; on a linear one if they do not vary."""
    known = values[values > 0]
    return LogNorm(known.min(), known.max()) if known.size and known.min() < known.max() else Normalize()


def add_colour_bar(axes: Axes, mesh: Any, label: str = "", extend: str = "neither") -> None:
    """Puts what the colours mean at the right of a panel."""
    cax = axes.inset_axes((1.03, 0.0, 0.05, 1.0))
    axes.figure.colorbar(mesh, cax=cax, label=label, extend=extend)
    if isinstance(mesh.norm, LogNorm):
        use_plain_numbers(cax.yaxis)
