"""The figures of one run, with parameter axes and units. Draws files; shows nothing."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twmaml.figures.data import FigureData, Judged
from twmaml.figures.panels import (
    COLOURS,
    add_colour_bar,
    coarsen,
    colours_for,
    describe_task,
    in_words,
    make_panels,
    marginalise,
    norm_of,
    rooms_of,
    set_title,
    show_grid,
    text_width,
    use_log_scale,
    views_of,
)
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import (
    DIVERGED,
    LOGGED,
    SCORE,
    as_cost,
    cell_means,
    column_of,
    counted,
    cvar,
    diverged_tasks,
    key_of,
    label_of,
    leading,
    reported_steps,
)
from twmaml.storage.files import whole_file
from twmaml.types import Metric

_MOST_PANELS = 7
"""Panels beside each other that show an evaluation."""

Draw = Callable[[FigureData], Figure | None]
"""Makes a figure; None if there is nothing to show."""


class Drawn(NamedTuple):
    """The result of drawing."""

    paths: list[Path]
    failures: list[str]
    """For each figure that could not be drawn a line, and the traceback below it."""


def draw_all(data: FigureData, folder: Path, figures: Mapping[str, Draw] | None = None) -> Drawn:
    """Draws every figure into the folder. One that fails does not keep the others from being drawn.

    Args:
        data: what they show.
        folder: must exist.
        figures: those of the user's own, by name; besides the package's, which one of the same name replaces.
    """
    drawn = Drawn([], [])
    for name in figures_of(data, figures):
        try:
            figure = draw_figure(name, data, figures)
            if figure is None:
                continue
            with whole_file(folder / f"{name}.png") as partial:
                figure.savefig(partial, format="png", dpi=120)
            drawn.paths.append(folder / f"{name}.png")
        except Exception as error:
            drawn.failures.append(f"the figure {name} could not be drawn: {error!r}\n{traceback.format_exc()}")
    return drawn


def figures_of(data: FigureData, figures: Mapping[str, Draw] | None = None) -> dict[str, Draw]:
    """The figures of a run by name: the package's, and those of the user's own."""
    return {**FIGURES, **_of_splits(data), **(figures or {})}


def draw_figure(name: str, data: FigureData, figures: Mapping[str, Draw] | None = None) -> Figure | None:
    """One of `figures_of`, with its title; None if there is nothing to show."""
    figure = figures_of(data, figures)[name](data)
    if figure is not None:
        title, top = f"{data.title}: {name.replace('_', ' ')}", 1 - 0.1 / figure.get_figheight()
        figure.suptitle(title, x=0.01, y=top, ha="left", va="top", fontweight="bold")
    return figure


def _of_splits(data: FigureData) -> dict[str, Draw]:
    """The figures of the evaluations on splits besides `eval`."""
    others = [split for split in data.splits if split != "eval"]
    return {f"{name}_{split}": partial(draw, split=split) for split in others for name, draw in _OF_SPLITS.items()}


def draw_queue(data: FigureData) -> Figure:
    """The queue's knowledge of each cell, and how likely the cell is to be drawn."""
    grid = data.grid
    rows = {
        f"latest {label_of(data.splits['eval'].metrics[0])}": np.asarray(data.queue.losses),
        "its latest change": np.asarray(data.queue.deltas),
        "visits": np.asarray(data.queue.visits),
        f"probability × cells{' of the proposal' if data.selects else ''}": data.probabilities * grid.size,
    }
    views, (beside, below) = views_of(grid), rooms_of(grid)
    size = {"left": 0.75 + beside, "bottom": 0.5 + below, "right": 0.9, "top": _title_room(grid)}
    figure, panels = make_panels(len(views), len(rows), 4.4 + beside, 3.3 + below, **size)
    for row, view in zip(panels, views, strict=True):
        for axes, (name, values) in zip(row, rows.items(), strict=True):
            coarse, marginal = coarsen(grid, marginalise(grid, values, view), view)
            known = marginal[~np.isnan(marginal)]
            # A few cells that stick out would leave everything else in one colour.
            most = np.quantile(known, 0.98) if known.size else 1.0
            capped = known.size > 0 and most < known.max() and len(view) > 1
            mesh = show_grid(axes, coarse, marginal, view, **({"vmax": most} if capped else {}))
            set_title(axes, name + _mean_over(grid, view))
            if mesh is not None:
                add_colour_bar(axes, mesh, extend="max" if capped else "neither")
    return figure


def _mean_over(grid: ParameterGrid, view: Sequence[str]) -> str:
    """The part of a title that names the axes which a panel does not show, several of them on a line of its own."""
    others = [name for name in grid.names if name not in view]
    return f"{', ' if len(others) == 1 else chr(10)}mean over {in_words(others)}" if others else ""


def _title_room(grid: ParameterGrid) -> float:
    """Inches above a panel."""
    return 0.3 if len(grid.names) < 4 else 0.48


def draw_evaluation(data: FigureData, split: str = "eval") -> Figure:
    """Each metric over the grid after the last inner step, and its distribution over the tasks."""
    judged = data.splits[split]
    views, (beside, below) = views_of(judged.grid), rooms_of(judged.grid)
    size = {"left": 0.75 + beside, "bottom": 0.5 + below, "right": 1.0, "top": _title_room(judged.grid)}
    panels = len(views) + 1
    rows_each = -(-panels // _MOST_PANELS)
    columns = -(-panels // rows_each)
    rows = rows_each * len(judged.metrics)
    figure, grid = make_panels(rows, columns, 5.0 + beside, 4.0 + below, **size, foot=0.25)
    diverged = diverged_tasks(judged.values[SCORE])
    for i, metric in enumerate(judged.metrics):
        own = [axes for row in grid[i * rows_each : (i + 1) * rows_each] for axes in row]
        *maps, distribution = own[:panels]
        for axes in own[panels:]:
            axes.set_axis_off()
        _draw_maps(judged, metric, maps, diverged[:, -1])
        _draw_distribution(distribution, metric, judged.of(metric), diverged)
    _note(figure, judged.protocol)
    return figure


def _note(figure: Figure, text: str) -> None:
    """A line below all panels."""
    figure.text(0.01, 0.06 / figure.get_figheight(), text, fontsize=7, color="0.3", va="bottom")


def _draw_maps(judged: Judged, metric: Metric, maps: Sequence[Axes], diverged: np.ndarray) -> None:
    grid, views, values = judged.grid, views_of(judged.grid), judged.of(metric)
    cells = cell_means(values[:, -1], diverged, judged.draws)
    marginals = [marginalise(grid, cells, view) for view in views]
    shown = np.concatenate([each.ravel() for each in marginals])
    style = {"norm": norm_of(shown, metric.logarithmic), "cmap": colours_for(metric)}
    centres = np.stack(np.unravel_index(np.arange(grid.size), grid.shape), axis=1)
    marked = centres[diverged.reshape(-1, judged.draws).any(axis=1)]
    for axes, view, marginal in zip(maps, views, marginals, strict=True):
        mesh = show_grid(axes, grid, marginal, view, **(style if len(view) == 2 else {}))
        set_title(axes, f"after {counted(values.shape[1] - 1, 'inner step')}{_mean_over(grid, view)}")
        if mesh is None:
            axes.set_ylabel(label_of(metric))
        else:
            add_colour_bar(axes, mesh, label=label_of(metric))
        if marked.size:
            middles = [(edges[:-1] + edges[1:]) / 2 for edges in (grid.axes[name].edges() for name in view)]
            place = [m[marked[:, grid.names.index(name)]] for m, name in zip(middles, view, strict=True)]
            if len(view) == 1:
                place.append(np.zeros(len(marked)))
            axes.plot(*place, "x", color="red", markersize=5, label=f"{diverged.sum()} diverged")
            axes.legend(fontsize=8)


def _draw_distribution(axes: Axes, metric: Metric, values: np.ndarray, diverged: np.ndarray) -> None:
    """How the tasks are distributed after the reported inner steps."""
    shown = values[np.isfinite(values) & ~diverged & ((values > 0) | (not metric.logarithmic))]
    if shown.size:
        space = np.geomspace if metric.logarithmic else np.linspace
        bins = space(shown.min(), shown.max() * 1.0001 if metric.logarithmic else shown.max(), 40)
        for colour, step in zip(COLOURS, reported_steps(values.shape[1] - 1), strict=False):
            style: dict[str, Any] = {"histtype": "step", "linewidth": 1.5, "color": colour}
            axes.hist(values[~diverged[:, step], step], bins=bins, label=f"{step}", **style)
        if metric.logarithmic:
            use_log_scale(axes.xaxis)
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
        axes.legend(title="inner steps", fontsize=8, title_fontsize=8, **beside)
    axes.set(xlabel=label_of(metric), ylabel="evaluation tasks")
    set_title(axes, f"distribution over {len(values)} tasks")


def draw_adaptation(data: FigureData, split: str = "eval") -> Figure:
    """Each metric over the inner steps: mean, quartiles and tails of the tasks."""
    judged = data.splits[split]
    diverged = diverged_tasks(judged.values[SCORE]).any(axis=1)
    figure, rows = make_panels(len(judged.metrics), 1, 9.0, 4.0, right=2.8, foot=0.25)
    _note(figure, judged.protocol)
    for (axes,), metric in zip(rows, judged.metrics, strict=True):
        # The same tasks at every step, or the curve would change by dropping some.
        _draw_over_inner_steps(axes, metric, judged.of(metric)[~diverged])
        if diverged.any():
            axes.plot([], [], " ", label=f"left out: {diverged.sum()} that diverged at some step")
        axes.set(xlabel="inner steps", ylabel=f"{label_of(metric)} on query data")
        if metric.logarithmic:
            use_log_scale(axes.yaxis)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))  # beside the curves, never on them
    return figure


def _draw_over_inner_steps(axes: Axes, metric: Metric, values: np.ndarray) -> None:
    columns = list(values.T) if values.size else []
    steps = range(len(columns))
    quartiles = np.array([np.quantile(column, [0.25, 0.5, 0.75]) for column in columns]).reshape(-1, 3).T
    axes.fill_between(steps, quartiles[0], quartiles[2], color=COLOURS[0], alpha=0.2, label="middle half of the tasks")
    axes.plot(steps, quartiles[1], color=COLOURS[0], linestyle="--", label="median")
    means = [column.mean() for column in columns]
    axes.plot(steps, means, color=COLOURS[0], marker="o", markersize=4, label="mean")
    tails = [statistic for statistic in LOGGED if statistic.tail]
    for colour, tail in zip(COLOURS[1:], tails, strict=False):
        worst = [as_cost(cvar(as_cost(column, metric), tail.tail or 0), metric) for column in columns]
        axes.plot(steps, worst, color=colour, marker="s", markersize=3, label=tail.label)


def draw_learning_curves(data: FigureData, split: str = "eval") -> Figure:
    """Every statistic of the evaluations over the meta-steps, after the reported inner steps."""
    judged = data.splits[split]
    steps, history, several = data.history["step"], data.history, len(judged.metrics) > 1
    panels: list[tuple[str, str, bool]] = []  # title, column, logarithmic
    for metric in judged.metrics:
        own = None if metric == judged.metrics[0] else metric
        for statistic in LOGGED:
            title = f"{metric.label}: {statistic.label}" if several else statistic.label
            panels.append((title, column_of(statistic, own), metric.logarithmic))
        if own is None:
            panels.append((DIVERGED, "diverged", True))
    places = len(panels) + 2  # with that of training, and the legend
    columns = min((4, 5, 6), key=lambda n: -places % n)  # that leave the fewest empty
    figure, rows = make_panels(-(-places // columns), columns, 3.9, 3.3, foot=0.25)
    _note(figure, judged.protocol)
    first, *others = (axes for row in rows for axes in row)
    shown = leading(judged.metrics)
    first.plot(steps, history[f"train/{key_of(shown, judged.metrics)}"], color=COLOURS[0], linewidth=0.8)
    set_title(first, f"{shown.label} after adapting, as drawn in training")
    for axes, (title, column, _) in zip(others, panels, strict=False):
        for k, colour in zip(reported_steps(judged.steps), COLOURS, strict=False):
            values = history[f"{split}/{column}_step_{k}"]
            known = ~np.isnan(values)
            axes.plot(steps[known], values[known], color=colour, linewidth=1.5, label=f"{k}")
        set_title(axes, title)
    beside, *empty = others[len(panels) :]
    for axes in (beside, *empty):
        axes.set_axis_off()
    beside.legend(*others[0].get_legend_handles_labels(), title="inner steps", fontsize=8, loc="upper left")
    for axes, logarithmic in zip(
        (first, *others), (shown.logarithmic, *(logarithmic for *_, logarithmic in panels)), strict=False
    ):
        _scale_curves(axes, logarithmic)
    return figure


def _scale_curves(axes: Axes, logarithmic: bool) -> None:
    axes.set_xlabel("meta-steps")
    axes.locator_params(axis="x", nbins=4)  # or the numbers run into each other
    shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    shown = shown[np.isfinite(shown)]
    if not (shown < 0).any():
        axes.set_ylim(bottom=0)
    if logarithmic and shown.size and (shown > 0).all():  # not the counts, nor what is unknown before the first step
        axes.autoscale(axis="y")
        use_log_scale(axes.yaxis)
    axes.grid(alpha=0.3)


def draw_pictures(data: FigureData) -> Figure | None:
    """Some tasks before and after adapting, as their family shows them."""
    pictures = data.pictures
    if pictures is None:
        return None
    figure, (row,) = make_panels(1, len(pictures.tasks), 4.4, 3.9, foot=0.25)
    _note(figure, data.splits["eval"].protocol)
    for i, axes in enumerate(row):
        axes.set_prop_cycle(color=COLOURS)
        axes.grid(alpha=0.3)
        data.draw_picture(axes, pictures.of(i))
        set_title(axes, describe_task(data.splits["eval"].grid, pictures.tasks[i]))
    if row[0].get_legend_handles_labels()[0]:
        row[0].legend(fontsize=8)
    return figure


def draw_learned(data: FigureData) -> Figure | None:
    """The arrays that are learned besides the weights: a row for each, with its range and its quartiles."""
    if not data.learned:
        return None
    room = max(text_width(name, 10) for name in data.learned)
    figure, ((axes,),) = make_panels(1, 1, 6.5 + room, 0.9 + 0.32 * len(data.learned), left=room + 0.2)
    names, values = [*data.learned], [array.ravel() for array in data.learned.values()]
    finite = [array[np.isfinite(array)] for array in values]
    style: dict[str, Any] = {"medianprops": {"color": COLOURS[1], "linewidth": 2.0}}
    axes.boxplot(finite, orientation="horizontal", whis=(0, 100), widths=0.6, **style)
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.invert_yaxis()
    axes.axvline(0.0, color="0.6", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")
    set_title(axes, "range, quartiles and median of each array that is learned besides the weights")
    return figure


def draw_contexts(data: FigureData) -> Figure | None:
    """Every adapted number over the grid, and how well all of them together tell the parameters of a task."""
    if data.contexts is None:
        return None
    judged = data.splits["eval"]
    grid, views, (beside, below) = judged.grid, views_of(judged.grid), rooms_of(judged.grid)
    contexts = data.contexts.reshape(grid.size, judged.draws, -1).mean(axis=1)
    size = {"left": 0.75 + beside, "bottom": 0.5 + below, "right": 1.0, "top": _title_room(grid)}
    columns = max(2, contexts.shape[1])  # one would be too narrow for the title
    figure, rows = make_panels(len(views), columns, 5.0 + beside, 4.0 + below, **size, foot=0.25)
    for row, view in zip(rows, views, strict=True):
        for axes, number in zip(row, contexts.T, strict=False):
            mesh = show_grid(axes, grid, marginalise(grid, number, view), view)
            set_title(axes, f"number {row.index(axes) + 1} of the context{_mean_over(grid, view)}")
            if mesh is not None:
                add_colour_bar(axes, mesh)
        for axes in row[contexts.shape[1] :]:
            axes.set_axis_off()
    told = [f"{name} {r2:.2f}" for name, r2 in zip(grid.names, explained(contexts, grid), strict=True)]
    text = f"R² of a parameter as told by the tasks of the five nearest contexts: {', '.join(told)}; {judged.protocol}"
    _note(figure, text)
    return figure


def explained(contexts: np.ndarray, grid: ParameterGrid) -> np.ndarray:
    """The share of each parameter's variance that the mean over the five cells of the nearest contexts explains.

    Args:
        contexts: of the cells, [cells, size].
        grid: of the cells.
    """
    from scipy.spatial import KDTree  # noqa: PLC0415  of few runs only

    spread = contexts.std(axis=0)
    scaled = contexts / np.where(spread > 0, spread, 1)
    if not np.isfinite(scaled).all() or grid.size < 7:
        return np.full(len(grid.names), np.nan)
    _, near = KDTree(scaled).query(scaled, k=6)
    places = np.stack(np.unravel_index(np.arange(grid.size), grid.shape), axis=1)
    others = np.array([[each for each in row if each != cell][:5] for cell, row in enumerate(np.asarray(near))])
    errors = ((places[others].mean(axis=1) - places) ** 2).mean(axis=0)
    return 1 - errors / np.where(places.var(axis=0) > 0, places.var(axis=0), np.nan)


_OF_SPLITS = {"evaluation": draw_evaluation, "adaptation": draw_adaptation, "learning_curves": draw_learning_curves}

FIGURES: Mapping[str, Draw] = {
    "queue": draw_queue,
    **_OF_SPLITS,
    "pictures": draw_pictures,
    "learned": draw_learned,
    "contexts": draw_contexts,
}
"""The package's figures of a run, by name; those of an evaluation show `eval`."""
