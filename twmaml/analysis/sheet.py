"""Common parts of the figures of a comparison: the look of each arm, headings, legends and notes, curves with bands."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from twmaml.analysis.comparison import Comparison
from twmaml.analysis.resampling import Estimate
from twmaml.figures.panels import make_panels, text_width, use_log_scale
from twmaml.statistics import counted

_KNOWN = {
    "uniform": "#7F7F7F",
    "epsilon_greedy": "#E69F00",
    "weighted": "#56B4E9",
    "importance": "#0072B2",
    "delta": "#CC79A7",
    "importance_delta": "#D55E00",
}
_OTHERS = (
    *("#009E73", "#B8A900", "#332288", "#882255", "#117733", "#AA4499"),
    *("#661100", "#4477AA", "#CC6677", "#44AA99", "#DDCC77", "#000000"),
)
_LINES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))

BANDS = "bands: 95 % bootstrap interval over seeds"
"""The note below figures with curves."""

_AT_ONCE = 6
"""Samplers beside each other."""

_NAME = 30
"""Letters of a name in a line."""


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each arm: the samplers of this package always have the same one. After Okabe and Ito, and Tol."""
    others = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


def styles_of(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """How the line of each arm is drawn, in every figure.

    Lines are dashed differently, and thinner the later they are drawn, so that none hides another below it.
    """
    names = [arm.name for arm in comparison.arms]
    widths = np.linspace(3.4, 1.6, len(names)) if len(names) > 1 else [1.8]
    return {
        name: {"color": colour, "linestyle": _LINES[i % len(_LINES)], "linewidth": widths[i]}
        for i, (name, colour) in enumerate(colours_of(names).items())
    }


def wrapped(name: str) -> str:
    """The name of an arm, on several lines if it is long."""
    return textwrap.fill(name, _NAME)


def lines_in(texts: Iterable[str]) -> int:
    """Lines of the longest text."""
    return max(text.count("\n") + 1 for text in texts)


def names_width(comparison: Comparison, size: float) -> float:
    """Width of the widest arm name, in inches."""
    return max(text_width(wrapped(arm.name), size) for arm in comparison.arms)


def in_rows(names: Sequence[str]) -> list[Sequence[str]]:
    """As few and as equal rows as fit the page."""
    size = math.ceil(len(names) / math.ceil(len(names) / _AT_ONCE))
    return [names[i : i + size] for i in range(0, len(names), size)]


def when(comparison: Comparison) -> str:
    """The part of a heading that says how far the runs have come."""
    return f"after {counted(comparison.inner_steps[-1], 'inner step')} and {comparison.reached}"


def sheet(
    comparison: Comparison,
    rows: int,
    columns: int,
    width: float,
    height: float,
    *,
    heading: str,
    note: str = "",
    legend: bool = False,
    margin: float = 0.0,
    **room: float,
) -> tuple[Figure, list[list[Axes]]]:
    """Panels with a heading and a legend above them, and a note below, each on as many lines as the width asks for.

    Args:
        comparison: whose arms the legend names.
        rows: as for `make_panels`.
        columns: as for `make_panels`.
        width: as for `make_panels`.
        height: as for `make_panels`.
        heading: the title of the whole.
        note: below the panels, above the protocol.
        legend: whether there is one.
        margin: as for `make_panels`.
        room: as for `make_panels`.
    """
    whole, edge = margin + columns * width, 0.1

    def fill(text: str, size: float, weight: str = "normal") -> str:
        letters = len(text) * (whole - 2 * edge) / max(text_width(text, size, weight), 1e-6)
        return textwrap.fill(text, max(10, int(0.93 * letters)))

    split = "" if comparison.split == "eval" else f"split {comparison.split}: "
    heading = fill(split + heading, 11, "bold")
    note = "\n".join(fill(text, 8) for text in (note, *comparison.protocols) if text)
    handles = [Line2D([], [], label=wrapped(name), **style) for name, style in styles_of(comparison).items()]
    beside = max(1, int((whole - 2 * edge) / (names_width(comparison, 9) + 0.8)))
    below = math.ceil(len(handles) / beside) * lines_in(str(each.get_label()) for each in handles)
    heading_height = 0.19 * lines_in([heading]) + 0.15
    figure, panels = make_panels(
        rows,
        columns,
        width,
        height,
        head=heading_height + (0.18 * below + 0.1 if legend else 0),
        foot=0.14 * lines_in([note]) + 0.1 if note else 0,
        margin=margin,
        **room,
    )
    _, tall = figure.get_size_inches()
    figure.text(edge / whole, 1 - edge / tall, heading, va="top", fontsize=11, fontweight="bold")
    figure.text(edge / whole, edge / tall, note, va="bottom", fontsize=8)
    if legend:
        _add_legend(figure, handles, (edge / whole, 1 - heading_height / tall), min(beside, len(handles)))
    return figure, panels


def _add_legend(figure: Figure, handles: Sequence[Line2D], corner: tuple[float, float], columns: int) -> None:
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=corner,
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=3,
        borderpad=0,
        borderaxespad=0,
        labelspacing=0.3,
    )


def draw_lines(
    comparison: Comparison, axes: Axes, x: np.ndarray, curves: Mapping[str, Estimate], log_scale: bool = False
) -> None:
    """The curve of each arm with its band. What is not positive lies on the edge of a logarithmic scale."""
    styles = styles_of(comparison)
    shown = np.concatenate([part for curve in curves.values() for part in curve])
    positive = shown[shown > 0]
    if log_scale and positive.size:
        curves = {name: Estimate(*np.maximum(curve, positive.min())) for name, curve in curves.items()}
    for name, (value, low, high) in curves.items():
        known = ~np.isnan(value)
        axes.plot(x[known], value[known], **styles[name])
        axes.fill_between(x[known], low[known], high[known], color=styles[name]["color"], alpha=0.18, linewidth=0)
    unknown = [name for name, curve in curves.items() if np.isnan(curve.value).all()]
    if unknown:
        text = textwrap.fill(f"no values: {', '.join(unknown)}", 60)
        axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=7, va="bottom")
    axes.grid(alpha=0.3)
    if log_scale:
        use_log_scale(axes.yaxis)
        if (shown <= 0).any() and positive.size:
            axes.set_ylim(bottom=positive.min())
