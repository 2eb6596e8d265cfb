"""Heatmaps of a comparison: the leading metric over the grid for each sampler, and what differs to the baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from twmaml.analysis.comparison import Comparison
from twmaml.analysis.sheet import in_rows, lines_in, sheet, when, wrapped
from twmaml.figures.panels import (
    add_colour_bar,
    colours_for,
    in_words,
    marginalise,
    norm_of,
    rooms_of,
    set_title,
    show_grid,
    views_of,
)
from twmaml.statistics import Directed, as_cost, label_of

_BETTER, _WORSE = "#2166AC", "#B2182B"
"""The ends of the colours of differences."""


def draw_heatmaps(comparison: Comparison) -> Figure:
    """One row of values and one of differences to the baseline for each pair of parameters."""
    k, grid, lead = comparison.inner_steps[-1], comparison.grid, comparison.lead
    maps = {arm.name: comparison.maps(arm, -1)[:, k] for arm in comparison.arms}
    paired = {arm.name: comparison.difference_maps(arm, -1) for arm in comparison.arms}
    differences = {name: each[:, k] for name, each in paired.items() if each is not None}
    kinds = {lead.label: maps} | ({"difference": differences} if differences else {})
    heading = f"{label_of(lead)} {when(comparison)}, mean over seeds"
    if differences:
        heading += f"; below it the difference to {comparison.baseline}: blue where it is better, red where it is worse"
    views, batches, (beside, below) = views_of(grid), in_rows(list(maps)), rooms_of(grid)
    title = 0.13 + 0.17 * (lines_in(map(wrapped, maps)) + 1)
    count = len(kinds) * len(views) * len(batches)
    room: dict[str, Any] = {"top": title, "right": 0.85, "left": 0.75 + beside, "bottom": 0.5 + below}
    note = "where a seed diverged, mean over the others"
    size = 3.5 + beside, 2.7 + title + below
    figure, rows = sheet(comparison, count, len(batches[0]), *size, heading=heading, note=note, **room)
    places = iter(rows)
    for view in views:
        over = [name for name in grid.names if name not in view]
        suffix = f", mean over {in_words(over)}" if over else ""
        for batch in batches:
            for kind, values in kinds.items():
                row = _Row(comparison, batch, view, f"{kind}{suffix}", signed=values is differences)
                row.draw(next(places), values)
    return figure


class _Row:
    """A row of panels, one for each name, with the scale that suits all maps; over a single axis they are lines."""

    def __init__(
        self, comparison: Comparison, names: Sequence[str], view: tuple[str, ...], label: str, *, signed: bool
    ) -> None:
        self._grid, self._lead = comparison.grid, comparison.lead
        self._names, self._view, self._label, self._signed = names, view, label, signed

    def draw(self, row: Sequence[Axes], maps: Mapping[str, np.ndarray]) -> None:
        """Draws the maps that there are."""
        shown = {name: marginalise(self._grid, values, self._view) for name, values in maps.items()}
        every = np.concatenate([values.ravel() for values in shown.values()])
        every = every[np.isfinite(every)]
        style = differences_style(every, self._lead) if self._signed else self._values_style(every)
        last = [name for name in self._names if name in maps][-1:]
        for i, axes in enumerate(row):
            name = self._names[i] if i < len(self._names) else ""
            if name not in maps:
                axes.set_axis_off()
                continue
            mesh = show_grid(axes, self._grid, shown[name], self._view, **style)
            set_title(axes, f"{wrapped(name)}\n{self._label}")
            if mesh is None:
                self._finish_line(axes, shown[name], every)
            elif [name] == last:
                add_colour_bar(axes, mesh, extend="both" if self._signed else "neither")

    def _values_style(self, every: np.ndarray) -> dict[str, Any]:
        return {"norm": norm_of(every, self._lead.logarithmic), "cmap": colours_for(self._lead)}

    def _finish_line(self, axes: Axes, values: np.ndarray, every: np.ndarray) -> None:
        edges = self._grid.axes[self._view[0]].edges()
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(self._label)
        axes.set_ylim(1.05 * min(0.0, *every), 1.05 * max(0.0, *every) or 1.0)
        if self._signed:
            better = as_cost(values, self._lead) < 0
            axes.stairs(np.where(better, values, 0), edges, fill=True, color=_BETTER)
            axes.stairs(np.where(better, 0, values), edges, fill=True, color=_WORSE)


def differences_style(every: np.ndarray, metric: Directed) -> dict[str, Any]:
    """Colours of differences: blue is better, red is worse."""
    most = (np.quantile(np.abs(every), 0.98) if every.size else 0.0) or 1.0
    return {"cmap": "RdBu" if metric.higher_is_better else "RdBu_r", "norm": Normalize(-most, most)}
