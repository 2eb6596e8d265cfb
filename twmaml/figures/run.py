"""The figures of one run, with parameter axes and units. Draws files; shows nothing."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from twmaml.figures.panels import (
    COLOURS,
    UNITS,
    add_colour_bar,
    log_norm,
    make_panels,
    marginalise,
    set_title,
    show_grid,
    use_log_scale,
    views_of,
)
from twmaml.meta_learning.evaluation import Example
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import PriorityQueue
from twmaml.statistics import TAILS, cell_means, cvar, diverged_tasks, reported_steps
from twmaml.storage.files import whole_file


@dataclass(frozen=True)
class FigureData:
    """All that the figures of a run are drawn from: plain data, so that another process can draw them."""

    title: str
    grid: ParameterGrid
    """Of the queue."""
    evaluation_grid: ParameterGrid
    draws: int
    """Evaluation tasks of a cell."""
    queue: PriorityQueue
    probabilities: np.ndarray
    """The sampler's distribution over cells."""
    examples: Example | None
    losses: np.ndarray
    """Of the latest evaluation, [tasks, inner steps + 1]."""
    metrics: Mapping[str, np.ndarray]
    """metrics.csv by column."""


class Drawn(NamedTuple):
    """What came of drawing."""

    paths: list[Path]
    failures: list[str]
    """Of each figure that could not be drawn: a line, and the traceback below it."""


def draw_all(data: FigureData, folder: Path) -> Drawn:
    """Draws every figure into the folder. One that fails does not keep the others from being drawn."""
    drawn = Drawn([], [])
    for name, draw in {
        "queue": _queue,
        "evaluation": _evaluation,
        "adaptation": _adaptation,
        "learning_curves": _learning_curves,
        "regression": _regression,
    }.items():
        try:
            figure = draw(data)
            if figure is None:
                continue
            figure.suptitle(f"{data.title}: {name.replace('_', ' ')}", x=0.01, ha="left", fontweight="bold")
            with whole_file(folder / f"{name}.png") as partial:
                figure.savefig(partial, format="png", dpi=120)
            drawn.paths.append(folder / f"{name}.png")
        except Exception as error:
            drawn.failures.append(f"the figure {name} could not be drawn: {error!r}\n{traceback.format_exc()}")
    return drawn


def _queue(data: FigureData) -> Figure:
    grid = data.grid
    rows = {
        "latest loss": np.asarray(data.queue.losses),
        "latest change of the loss": np.asarray(data.queue.deltas),
        "visits": np.asarray(data.queue.visits, float),
        "probability × cells": data.probabilities * grid.size,
    }
    views = views_of(grid)
    figure, panels = make_panels(len(views), len(rows), 4.4, 3.3, right=0.9)
    for row, view in zip(panels, views, strict=True):
        for axes, (name, values) in zip(row, rows.items(), strict=True):
            known = marginalise(grid, values, view)
            known = known[~np.isnan(known)]
            # A few cells that stick out would leave everything else in one colour.
            most = np.quantile(known, 0.98) if known.size else 1.0
            capped = known.size > 0 and most < known.max() and len(view) > 1
            mesh = show_grid(axes, grid, values, view, **({"vmax": most} if capped else {}))
            others = [other for other in grid.names if other not in view]
            set_title(axes, name + (f", mean over {' and '.join(others)}" if others else ""))
            if mesh is not None:
                add_colour_bar(axes, mesh, extend="max" if capped else "neither")
    return figure


def _evaluation(data: FigureData) -> Figure:
    grid, draws = data.evaluation_grid, data.draws
    diverged = diverged_tasks(data.losses)
    k = data.losses.shape[1] - 1
    cells = cell_means(data.losses[:, k], diverged[:, k], draws)
    views = views_of(grid)
    figure, ((*maps, distribution),) = make_panels(1, len(views) + 1, 5.0, 4.0, right=1.0)
    norm = log_norm(np.concatenate([marginalise(grid, cells, view).ravel() for view in views]))
    centres = np.stack(np.unravel_index(np.arange(grid.size), grid.shape), axis=1)
    marked = centres[diverged[:, k].reshape(-1, draws).any(axis=1)]
    label = f"{diverged[:, k].sum()} diverged"
    for axes, view in zip(maps, views, strict=True):
        mesh = show_grid(axes, grid, cells, view, **({"norm": norm} if len(view) == 2 else {}))
        others = [name for name in grid.names if name not in view]
        over = f", mean over {' and '.join(others)}" if others else ""
        set_title(axes, f"loss after {k} inner steps{over}")
        if mesh is not None:
            add_colour_bar(axes, mesh, label="mean squared error" if _is_regression(data) else "loss")
        if marked.size:
            middles = [(edges[:-1] + edges[1:]) / 2 for edges in (grid.axes[name].edges() for name in view)]
            place = [m[marked[:, grid.names.index(name)]] for m, name in zip(middles, view, strict=True)]
            if len(view) == 1:
                place.append(np.zeros(len(marked)))
            axes.plot(*place, "x", color="red", markersize=5, label=label)
            axes.legend(fontsize=8)
    positive = data.losses[np.isfinite(data.losses) & ~diverged & (data.losses > 0)]
    if positive.size:
        bins = np.geomspace(positive.min(), positive.max() * 1.0001, 40)
        for colour, step in zip(COLOURS, reported_steps(k), strict=False):
            losses = data.losses[~diverged[:, step], step]
            style: dict[str, Any] = {"histtype": "step", "linewidth": 1.5, "color": colour}
            distribution.hist(losses, bins=bins, label=f"{step}", **style)
        use_log_scale(distribution.xaxis)
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
        distribution.legend(title="inner steps", fontsize=8, title_fontsize=8, **beside)
    distribution.set(xlabel="loss", ylabel="evaluation tasks")
    set_title(distribution, f"distribution over {len(data.losses)} tasks")
    return figure


def _adaptation(data: FigureData) -> Figure:
    diverged = diverged_tasks(data.losses).any(axis=1)
    kept = data.losses[~diverged].T  # the same tasks at every step, or the curve would fall by dropping some
    steps = range(len(kept)) if kept.size else []
    figure, ((axes,),) = make_panels(1, 1, 9.0, 4.0, right=2.8)
    quartiles = np.array([np.quantile(kept[k], [0.25, 0.5, 0.75]) for k in steps]).reshape(-1, 3).T
    axes.fill_between(steps, quartiles[0], quartiles[2], color=COLOURS[0], alpha=0.2, label="middle half of the tasks")
    axes.plot(steps, quartiles[1], color=COLOURS[0], linestyle="--", label="median")
    axes.plot(steps, [kept[k].mean() for k in steps], color=COLOURS[0], marker="o", markersize=4, label="mean")
    for colour, tail in zip(COLOURS[1:], TAILS, strict=False):
        worst = [cvar(kept[k], tail) for k in steps]
        axes.plot(steps, worst, color=colour, marker="s", markersize=3, label=f"CVaR, worst {tail} %")
    if diverged.any():
        axes.plot([], [], " ", label=f"left out: {diverged.sum()} that diverged at some step")
    axes.set(xlabel="inner steps", ylabel="loss on query data")
    use_log_scale(axes.yaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))  # beside the curves, never on them
    return figure


def _learning_curves(data: FigureData) -> Figure:
    steps = data.metrics["step"]
    inner_steps = reported_steps(data.losses.shape[1] - 1)
    panels = {
        "loss": "mean evaluation loss",
        "std": "standard deviation over tasks",
        "worst": "worst task",
        **{f"cvar_{tail}": f"CVaR, worst {tail} %" for tail in TAILS},
        "diverged": "diverged tasks, left out of the others",
    }
    figure, rows = make_panels(2, 4, 3.9, 3.3)
    first, *others = (axes for row in rows for axes in row)
    first.plot(steps, data.metrics["train/loss"], color=COLOURS[0], linewidth=0.8)
    set_title(first, "loss after adapting, as drawn in training")
    for axes, (name, title) in zip(others, panels.items(), strict=False):
        for k, colour in zip(inner_steps, COLOURS, strict=False):
            values = data.metrics[f"eval/{name}_step_{k}"]
            known = ~np.isnan(values)
            axes.plot(steps[known], values[known], color=colour, linewidth=1.5, label=f"{k}")
        set_title(axes, title)
    others[-1].set_axis_off()
    others[-1].legend(*others[0].get_legend_handles_labels(), title="inner steps", fontsize=8, loc="upper left")
    for axes in (first, *others[:-1]):
        axes.set_xlabel("meta-steps")
        axes.set_ylim(bottom=0)
        shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
        shown = shown[np.isfinite(shown)]
        if shown.size and (shown > 0).all():  # not the counts, nor what is unknown before the first meta-step
            axes.autoscale(axis="y")
            use_log_scale(axes.yaxis)
        axes.grid(alpha=0.3)
    return figure


def _regression(data: FigureData) -> Figure | None:
    """Target and network at a low, a middle and a high value of the first parameter, the others in the middle."""
    examples = data.examples
    if examples is None:
        return None
    name, axis = next(iter(data.evaluation_grid.axes.items()))
    steps = sorted({0, 1, data.losses.shape[1] - 1})
    figure, (row,) = make_panels(1, 3, 4.4, 3.9)
    for i, axes in enumerate(row):
        axes.sharey(row[0]) if i else None
        axes.plot(examples.x[i], examples.target[i], color="black", linewidth=2, label="target")
        support = examples.support
        axes.plot(support.inputs[i], support.targets[i], "^", color="black", markersize=6, label="support points")
        for k, colour, line in zip(steps, COLOURS, (":", "--", "-"), strict=False):
            label = f"after {k} inner step{'' if k == 1 else 's'}"
            axes.plot(examples.x[i], examples.predictions[i, k], line, color=colour, linewidth=1.8, label=label)
        set_title(axes, f"{name} {examples.task[i, 0] / axis.scale:.2f}{UNITS.get(axis.unit, axis.unit)}")
        axes.set_xlabel("x")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("y")
    figure.axes[0].legend(fontsize=8)
    return figure


def _is_regression(data: FigureData) -> bool:
    return data.examples is not None
