"""The figures of a comparison, for print: PDF and PNG, the same colour for a sampler in all of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import Arm, FinishedRun
from twmaml.analysis.health import HEALTH
from twmaml.analysis.heatmaps import draw_heatmaps
from twmaml.analysis.resampling import Estimate, estimate, mean_of_known
from twmaml.analysis.sheet import (
    BANDS,
    draw_lines,
    in_rows,
    lines_in,
    names_width,
    sheet,
    styles_of,
    when,
    wrapped,
)
from twmaml.figures.panels import (
    add_colour_bar,
    axis_label,
    describe_task,
    in_words,
    marginalise,
    names_room,
    set_title,
    use_log_scale,
    use_ticks,
)
from twmaml.statistics import SCORE, as_cost, cell_means, counted, diverged_tasks, key_of, label_of

log = logging.getLogger(__name__)

Draw = Callable[[Comparison], Figure | None]
"""Makes a figure; None if there is nothing to show."""


def draw_comparison(
    comparison: Comparison, folder: Path, show: Callable[[str], None], figures: Mapping[str, Draw] | None = None
) -> list[Path]:
    """Draws every figure into a folder, twice: `<name>.pdf` and `<name>.png`.

    One that cannot be drawn is told in a line of the log, and does not keep the others from being drawn. Of a figure
    that is not drawn none stays from before.

    Args:
        comparison: what is shown.
        folder: must exist.
        show: told the name of each figure before it is drawn.
        figures: by name; `FIGURES` if not given.
    """
    paths = []
    for name, draw in (FIGURES if figures is None else figures).items():
        show(name)
        files = [folder / f"{name}.pdf", folder / f"{name}.png"]
        try:
            with rc_context({"text.parse_math": False}):  # a name may hold a dollar
                figure = draw(comparison)
                if figure is not None:
                    for path in files:
                        figure.savefig(path, dpi=150)
                    paths += files
        except OSError:
            raise
        except Exception as error:
            log.warning("the figure %s could not be drawn: %r", name, error)
            log.debug("", exc_info=True)
        for path in set(files) - set(paths):
            path.unlink(missing_ok=True)
    return paths


def _curve_panels(
    comparison: Comparison, heading: str, x: np.ndarray, label: str, at: Callable[[np.ndarray], np.ndarray]
) -> Figure:
    keys = [comparison.key(statistic) for statistic in ("mean", "cvar_10")]
    figure, ((*panels,),) = sheet(comparison, 1, len(keys), 5.6, 3.9, heading=heading, note=BANDS, legend=True)
    for axes, key in zip(panels, keys, strict=True):
        curves = {
            arm.name: Estimate(*(at(part) for part in comparison.estimates[key, arm.name])) for arm in comparison.arms
        }
        draw_lines(comparison, axes, x, curves, log_scale=comparison.lead.logarithmic)
        set_title(axes, comparison.measures[key].title)
        axes.set_xlabel(label)
    return figure


def draw_learning_curves(comparison: Comparison) -> Figure:
    """Mean and tail of the leading metric over the training."""
    k = comparison.inner_steps[-1]
    heading = f"{label_of(comparison.lead)} after {counted(k, 'inner step')}, mean over seeds"
    return _curve_panels(comparison, heading, comparison.points, comparison.alignment.unit, lambda part: part[:, k])


def draw_inner_steps(comparison: Comparison) -> Figure:
    """Mean and tail of the leading metric over the inner steps."""
    heading = f"{label_of(comparison.lead)} after {comparison.reached}, mean over seeds"
    x = np.arange(comparison.inner_steps[-1] + 1)
    return _curve_panels(comparison, heading, x, "inner steps", lambda part: part[-1])


def _values(comparison: Comparison, run: FinishedRun) -> np.ndarray:
    """The leading metric for every task in the end, NaN where it diverged."""
    k, of_run = comparison.inner_steps[-1], comparison.at(run, -1)
    values = of_run[key_of(comparison.lead, comparison.metrics)][:, k]
    return np.where(diverged_tasks(of_run[SCORE])[:, k], np.nan, values)


def _cells_of_runs(comparison: Comparison, arm: Arm) -> np.ndarray:
    """The cell means of every run, [seeds, cells]; NaN where all draws diverged."""
    values = [_values(comparison, run) for run in arm.runs]
    return np.array([cell_means(of_run, np.isnan(of_run), arm.runs[0].evaluations.draws) for of_run in values])


def draw_distribution(comparison: Comparison) -> Figure:
    """The share of the cells that have a given value or a worse one."""
    lead, cells = comparison.lead, {arm.name: _cells_of_runs(comparison, arm) for arm in comparison.arms}
    known = np.concatenate([values.ravel() for values in cells.values()])
    shown = known[known > 0] if lead.logarithmic else known[~np.isnan(known)]
    least = "most" if lead.higher_is_better else "least"
    heading = f"distribution of the {lead.label} {when(comparison)}"
    note = f"{BANDS}; a cell that diverged counts as having at {least} any value" if np.isnan(known).any() else BANDS
    figure, ((axes,),) = sheet(comparison, 1, 1, 8.4, 4.4, heading=heading, note=note, legend=True)
    space = np.geomspace if lead.logarithmic else np.linspace
    x = space(shown.min(), shown.max(), 200) if shown.size else np.array([np.nan])
    curves = {}
    for name, values in cells.items():
        costs = np.where(np.isnan(values), np.inf, as_cost(values, lead))
        share = estimate(np.array([[(of_run >= as_cost(at, lead)).mean() for at in x] for of_run in costs]), np.mean)
        curves[name] = share._replace(value=np.where(share.value > 0, share.value, np.nan))
    draw_lines(comparison, axes, x, curves, log_scale=True)
    axes.set(xlabel=label_of(lead), ylabel=f"share of the cells with at {least} this value")
    if lead.logarithmic:
        use_log_scale(axes.xaxis)
    return figure


def draw_parameters(comparison: Comparison) -> Figure:
    """The leading metric over each task parameter."""
    grid, lead, room = comparison.grid, comparison.lead, names_room(comparison.grid, comparison.grid.names)
    heading = f"{label_of(lead)} {when(comparison)} over each task parameter, mean over seeds"
    size: dict[str, Any] = {"bottom": 0.5 + room, "legend": True}
    figure, ((*panels,),) = sheet(comparison, 1, len(grid.names), 5.6, 3.9 + room, heading=heading, note=BANDS, **size)
    for axes, name in zip(panels, grid.names, strict=True):
        edges = grid.axes[name].edges()
        curves = {}
        for arm in comparison.arms:
            over = [marginalise(grid, of_run, (name,)) for of_run in _cells_of_runs(comparison, arm)]
            curves[arm.name] = estimate(np.array(over), np.mean)
        draw_lines(comparison, axes, (edges[:-1] + edges[1:]) / 2, curves, log_scale=lead.logarithmic)
        use_ticks(axes.xaxis, grid.axes[name])
        axes.set_xlabel(axis_label(grid, name))
        others = [other for other in grid.names if other != name]
        set_title(axes, f"mean over {in_words(others)}" if others else "")
    return figure


def draw_improvement(comparison: Comparison) -> Figure | None:
    """The probability that a run of one sampler is better than one of another."""
    names, keys = [arm.name for arm in comparison.arms], [comparison.key(each) for each in ("mean", "cvar_10")]
    if len(names) < 2:
        return None
    side, label = max(2.6, 0.78 * len(names)), names_width(comparison, 8)
    # At the right the colours of a panel, as wide as a part of it, and their numbers.
    room: dict[str, Any] = {"left": 0.3, "right": 0.5 + 0.09 * side, "bottom": 0.2 + 0.8 * label, "top": 0.3}
    figure, ((*panels,),) = sheet(
        comparison,
        1,
        len(keys),
        room["left"] + side + room["right"],
        room["bottom"] + side + room["top"],
        heading=f"probability that a run of the row is better than one of the column, {when(comparison)}",
        note="in brackets: 95 % bootstrap interval over seeds",
        margin=label,
        **room,
    )
    for axes, key in zip(panels, keys, strict=True):
        mesh = _show_matrix(axes, names, comparison.improvement(key), comparison.inner_steps[-1])
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), map(wrapped, names), fontsize=8, **slanted)
        _name_rows(axes, names if axes is panels[0] else [""] * len(names))
        set_title(axes, comparison.measures[key].title)
        add_colour_bar(axes, mesh)
    return figure


def _show_matrix(axes: Axes, names: Sequence[str], found: Mapping[tuple[str, str], Estimate], k: int) -> Any:
    matrix = np.array([[found[a, b].value[k] if a != b else np.nan for b in names] for a in names])
    for i, j in np.ndindex(matrix.shape):
        if i != j:
            interval = found[names[int(i)], names[int(j)]]
            text = f"{matrix[i, j]:.2f}\n[{interval.low[k]:.2f}, {interval.high[k]:.2f}]"
            dark = abs(matrix[i, j] - 0.5) > 0.35
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    return axes.imshow(matrix, cmap="RdBu", vmin=0, vmax=1)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), map(wrapped, names), fontsize=8)


def draw_differences(comparison: Comparison) -> Figure | None:
    """The difference to the baseline of each sampler, with its interval, for several statistics."""
    keys = [comparison.key(statistic) for statistic in ("mean", "sd", "cvar_10", "worst_cell")]
    names = [arm.name for arm in comparison.arms if (keys[0], arm.name) in comparison.differences]
    if not names:
        return None
    figure, ((*panels,),) = sheet(
        comparison,
        1,
        len(keys),
        3.9,
        1.4 + 0.4 * len(names),
        heading=f"difference to {comparison.baseline} on the same seeds, {when(comparison)}",
        note="bars: 95 % bootstrap interval over pairs of seeds; p: sign-flip test, after Holm's correction for "
        f"{len(names)} comparison{'' if len(names) == 1 else 's'}",
        left=0.3,
        right=0.8,
        bottom=0.7,
        margin=names_width(comparison, 8),
    )
    for axes, key in zip(panels, keys, strict=True):
        _show_differences(comparison, axes, key, names)
        _name_rows(axes, names if axes is panels[0] else [""] * len(names))
        set_title(axes, comparison.measures[key].title)
        axes.set_xlabel("better →" if comparison.measures[key].higher_is_better else "← better")
    return figure


def _show_differences(comparison: Comparison, axes: Axes, key: str, names: Sequence[str]) -> None:
    styles, k = styles_of(comparison), comparison.inner_steps[-1]
    for row, name in enumerate(names):
        (value, low, high), p, _ = comparison.differences[key, name]
        axes.plot([low[k], high[k]], [row, row], color=styles[name]["color"], linewidth=2)
        axes.plot(value[k], row, "o", color=styles[name]["color"])
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
        text = "no value" if np.isnan(value[k]) else "" if np.isnan(p[k]) else f"p = {p[k]:.2g}"
        axes.text(1.02, row, text, **beside)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.3, axis="x")


def draw_health(comparison: Comparison) -> Figure:
    """How the samplers do over the training."""
    figure, rows = sheet(
        comparison,
        2,
        3,
        5.2,
        3.2,
        heading="how the samplers do, mean over seeds",
        note=BANDS,
        legend=True,
    )
    for axes, (key, title) in zip([axes for row in rows for axes in row], HEALTH.items(), strict=True):
        curves = {arm.name: comparison.health[key, arm.name] for arm in comparison.arms}
        draw_lines(comparison, axes, comparison.points, curves)
        axes.set_xlabel(comparison.alignment.unit)
        set_title(axes, title)
    return figure


def draw_visits(comparison: Comparison) -> Figure | None:
    """How often cells were drawn against how hard their tasks are in the end."""
    found = {}
    for arm in comparison.arms:
        visits = [of_run for run in arm.runs if (of_run := _visits_in_the_end(comparison, run)) is not None]
        if len(visits) < len(arm.runs):  # of tasks for which the queue has no cells
            return None
        values = mean_of_known(np.array([_values(comparison, run) for run in arm.runs]))
        found[arm.name] = values, np.mean(visits, axis=0)
    batches, lead = in_rows(list(found)), comparison.lead
    title = 0.13 + 0.17 * lines_in(map(wrapped, found))
    figure, rows = sheet(
        comparison,
        len(batches),
        len(batches[0]),
        3.4,
        2.9 + title,
        heading=f"how often cells were drawn, and the {lead.label} of their tasks {when(comparison)}",
        note="a point: a task, mean over seeds; the scale of the visits is logarithmic down to 1",
        top=title,
    )
    panels = [axes for row in rows for axes in row]
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    known = np.concatenate([values[(values > 0) | (not lead.logarithmic)] for values, _ in found.values()])
    limits = tuple(pick(pick(visits) for _, visits in found.values()) for pick in (min, max))
    for axes, (name, (values, visits)) in zip(panels, found.items(), strict=False):
        style = styles_of(comparison)[name]
        axes.plot(values, visits, ".", color=style["color"], markersize=3, alpha=0.6, clip_on=False)
        _scale_visits(axes, *limits)
        if lead.logarithmic and known.size:
            axes.set_xlim(known.min() / 1.2, known.max() * 1.2)
        if lead.logarithmic:
            use_log_scale(axes.xaxis)
        axes.set_xlabel(label_of(lead))
        axes.grid(alpha=0.3)
        set_title(axes, wrapped(name))
    for row in rows:
        row[0].set_ylabel("visits of the cell, mean over seeds")
    return figure


def _visits_in_the_end(comparison: Comparison, run: FinishedRun) -> np.ndarray | None:
    visits = run.evaluations.visits
    return None if visits is None else visits[comparison.places(run)[-1]]


def _scale_visits(axes: Axes, least: float, most: float) -> None:
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    axes.set_ylim(least / 1.2, 1.2 * most + 1)
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=[1, 2, 5]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_pictures(comparison: Comparison) -> Figure | None:
    """Some tasks before and after adapting, for each sampler's first seed, as the family shows them."""
    draw, shown = comparison.draw_picture, {}
    for arm in comparison.arms:
        # Pictures are those of a run's end.
        for run in arm.runs:
            if run.pictures and comparison.places(run)[-1] == len(run.evaluations.steps) - 1:
                shown.setdefault(arm.name, (run.seed, run.pictures))
    if not shown or draw is None:
        return None
    left_out = [arm.name for arm in comparison.arms if arm.name not in shown]
    title = 0.13 + 0.17 * (lines_in(map(wrapped, shown)) + 1)
    figure, rows = sheet(
        comparison,
        len(shown),
        max(len(pictures.tasks) for _, pictures in shown.values()),
        3.8,
        2.4 + title,
        heading=f"tasks before and after adapting, after {comparison.reached}",
        note=f"no pictures of this moment: {', '.join(left_out)}" if left_out else "",
        top=title,
    )
    for row, (sampler, (seed, pictures)) in zip(rows, shown.items(), strict=True):
        for i, axes in enumerate(row):
            axes.set_prop_cycle(color=[styles_of(comparison)[sampler]["color"]])
            axes.grid(alpha=0.3)
            draw(axes, pictures.of(i))
            set_title(axes, f"{wrapped(sampler)}, seed {seed}\n{describe_task(comparison.grid, pictures.tasks[i])}")
    if rows[0][0].get_legend_handles_labels()[0]:
        rows[0][0].legend(fontsize=6)
    return figure


FIGURES: Mapping[str, Draw] = {
    "learning_curves": draw_learning_curves,
    "inner_steps": draw_inner_steps,
    "differences": draw_differences,
    "heatmaps": draw_heatmaps,
    "distribution": draw_distribution,
    "parameters": draw_parameters,
    "improvement": draw_improvement,
    "health": draw_health,
    "visits": draw_visits,
    "pictures": draw_pictures,
}
"""The figures of a comparison, by name."""
