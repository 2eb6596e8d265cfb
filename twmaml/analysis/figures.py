"""The figures of a comparison, for print: PDF and PNG, the same colour for a sampler in all of them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

from twmaml.analysis.comparison import HEALTH, METRICS, Comparison
from twmaml.analysis.finished_runs import Arm, FinishedRun
from twmaml.analysis.resampling import Estimate, estimate, mean_of_known
from twmaml.analysis.sheet import BANDS, draw_lines, lines_in, names_width, sheet, styles_of, wrapped
from twmaml.figures.panels import (
    UNITS,
    add_colour_bar,
    axis_label,
    log_norm,
    marginalise,
    set_title,
    show_grid,
    use_log_scale,
    views_of,
)
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import cell_means, diverged_tasks

log = logging.getLogger(__name__)


_BETTER, _WORSE = "#2166AC", "#B2182B"
"""The ends of the colours of differences."""

_AT_ONCE = 6
"""Samplers beside each other."""


def draw_comparison(comparison: Comparison, folder: Path, show: Callable[[str], None]) -> list[Path]:
    """Draws every figure into a folder, twice: `<name>.pdf` and `<name>.png`.

    One that cannot be drawn is told in a line of the log, and does not keep the others from being drawn. Of a figure
    that is not drawn none stays from before.

    Args:
        comparison: what is shown.
        folder: must exist.
        show: told the name of each figure before it is drawn.
    """
    paths = []
    for name, draw in _FIGURES.items():
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


def _when(comparison: Comparison) -> str:
    return f"after {comparison.inner_steps[-1]} inner steps and {comparison.steps[-1]:,} meta-steps"


def _curve_panels(
    comparison: Comparison, heading: str, x: np.ndarray, label: str, at: Callable[[np.ndarray], np.ndarray]
) -> Figure:
    keys = ("mean", "cvar_10")
    figure, ((*panels,),) = sheet(comparison, 1, len(keys), 5.6, 3.9, heading=heading, note=BANDS, legend=True)
    for axes, key in zip(panels, keys, strict=True):
        curves = {
            arm.name: Estimate(*(at(part) for part in comparison.estimates[key, arm.name])) for arm in comparison.arms
        }
        draw_lines(comparison, axes, x, curves, log_scale=True)
        set_title(axes, METRICS[key].label)
        axes.set_xlabel(label)
    return figure


def _learning_curves(comparison: Comparison) -> Figure:
    k = comparison.inner_steps[-1]
    heading = f"loss after {k} inner steps, mean over seeds"
    return _curve_panels(comparison, heading, comparison.steps, "meta-steps", lambda part: part[:, k])


def _inner_steps(comparison: Comparison) -> Figure:
    heading = f"loss after {comparison.steps[-1]:,} meta-steps, mean over seeds"
    x = np.arange(comparison.inner_steps[-1] + 1)
    return _curve_panels(comparison, heading, x, "inner steps", lambda part: part[-1])


def _heatmaps(comparison: Comparison) -> Figure:
    """One row of losses and one of differences to the baseline for each pair of parameters."""
    k, grid = comparison.inner_steps[-1], comparison.arms[0].runs[0].evaluations.grid
    maps = {arm.name: comparison.loss_maps(arm, -1)[:, k] for arm in comparison.arms}
    baseline = comparison.baseline
    kinds = {"loss": maps}
    heading = f"loss {_when(comparison)}, mean over seeds"
    if baseline and len(maps) > 1:
        kinds["difference"] = {name: maps[name] - maps[baseline] for name in maps if name != baseline}
        heading += f"; below it the difference to {baseline}: blue where it is better, red where it is worse"
    views, batches = views_of(grid), _batches(list(maps))
    title = 0.13 + 0.17 * (lines_in(map(wrapped, maps)) + 1)
    figure, rows = sheet(
        comparison,
        len(kinds) * len(views) * len(batches),
        len(batches[0]),
        3.5,
        2.7 + title,
        heading=heading,
        note="where a seed diverged, mean over the others",
        top=title,
        right=0.85,
    )
    places = iter(rows)
    for view in views:
        over = [name for name in grid.names if name not in view]
        suffix = f", mean over {' and '.join(over)}" if over else ""
        for batch in batches:
            for kind, values in kinds.items():
                _show_maps(next(places), batch, grid, view, values, f"{kind}{suffix}", signed=kind == "difference")
    return figure


def _show_maps(
    row: Sequence[Axes],
    names: Sequence[str],
    grid: ParameterGrid,
    view: tuple[str, ...],
    maps: Mapping[str, np.ndarray],
    label: str,
    signed: bool,
) -> None:
    """A row of panels, one for each name, with the scale that suits all maps; over a single axis they are lines."""
    shown = {name: marginalise(grid, values, view) for name, values in maps.items()}
    every = np.concatenate([values.ravel() for values in shown.values()])
    every = every[np.isfinite(every)]
    style: dict[str, Any] = {"norm": log_norm(every)}
    if signed:
        most = (np.quantile(np.abs(every), 0.98) if every.size else 0.0) or 1.0
        style = {"cmap": "RdBu_r", "norm": Normalize(-most, most)}
    last = [name for name in names if name in maps][-1:]
    for i, axes in enumerate(row):
        name = names[i] if i < len(names) else ""
        if name not in maps:
            axes.set_axis_off()
            continue
        mesh = show_grid(axes, grid, maps[name], view, **style)
        set_title(axes, f"{wrapped(name)}\n{label}")
        if mesh is None:
            edges = grid.axes[view[0]].edges()
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_ylabel(label)
            axes.set_ylim(1.05 * min(0.0, *every), 1.05 * max(0.0, *every) or 1.0)
            if signed:
                axes.stairs(np.minimum(shown[name], 0), edges, fill=True, color=_BETTER)
                axes.stairs(np.maximum(shown[name], 0), edges, fill=True, color=_WORSE)
        elif [name] == last:
            add_colour_bar(axes, mesh, extend="both" if signed else "neither")


def _batches(names: Sequence[str]) -> list[Sequence[str]]:
    """As few and as equal rows as fit the page."""
    size = math.ceil(len(names) / math.ceil(len(names) / _AT_ONCE))
    return [names[i : i + size] for i in range(0, len(names), size)]


def _evaluation_of(comparison: Comparison, run: FinishedRun) -> int:
    """Which of a run's evaluations is the last that all runs have."""
    return list(run.evaluations.steps).index(comparison.steps[-1])


def _losses(comparison: Comparison, run: FinishedRun) -> np.ndarray:
    """Of every task, NaN where it diverged."""
    losses, k = run.evaluations.losses[_evaluation_of(comparison, run)], comparison.inner_steps[-1]
    return np.where(diverged_tasks(losses)[:, k], np.nan, losses[:, k])


def _cells_of_runs(comparison: Comparison, arm: Arm) -> np.ndarray:
    """The cell means of every run, [seeds, cells]; NaN where all draws diverged."""
    losses = [_losses(comparison, run) for run in arm.runs]
    return np.array([cell_means(of_run, np.isnan(of_run), arm.runs[0].evaluations.draws) for of_run in losses])


def _distribution(comparison: Comparison) -> Figure:
    """Which share of the cells has at least a given loss: the tail is at the lower right."""
    cells = {arm.name: _cells_of_runs(comparison, arm) for arm in comparison.arms}
    known = np.concatenate([values.ravel() for values in cells.values()])
    positive = known[known > 0]
    diverged = "; a cell that diverged counts as having at least any loss" if np.isnan(known).any() else ""
    figure, ((axes,),) = sheet(
        comparison,
        1,
        1,
        8.4,
        4.4,
        heading=f"distribution of the loss {_when(comparison)}",
        note=BANDS + diverged,
        legend=True,
    )
    x = np.geomspace(positive.min(), positive.max(), 200) if positive.size else np.array([np.nan])
    curves = {}
    for name, values in cells.items():
        beyond = np.where(np.isnan(values), np.inf, values)
        share = estimate(np.array([[(of_run >= at).mean() for at in x] for of_run in beyond]), np.mean)
        curves[name] = share._replace(value=np.where(share.value > 0, share.value, np.nan))
    draw_lines(comparison, axes, x, curves, log_scale=True)
    axes.set(xlabel="loss", ylabel="share of the cells with at least this loss")
    use_log_scale(axes.xaxis)
    return figure


def _parameters(comparison: Comparison) -> Figure:
    grid = comparison.arms[0].runs[0].evaluations.grid
    heading = f"loss {_when(comparison)} over each task parameter, mean over seeds"
    figure, ((*panels,),) = sheet(comparison, 1, len(grid.names), 5.6, 3.9, heading=heading, note=BANDS, legend=True)
    for axes, name in zip(panels, grid.names, strict=True):
        edges = grid.axes[name].edges()
        curves = {}
        for arm in comparison.arms:
            over = [marginalise(grid, of_run, (name,)) for of_run in _cells_of_runs(comparison, arm)]
            curves[arm.name] = estimate(np.array(over), np.mean)
        draw_lines(comparison, axes, (edges[:-1] + edges[1:]) / 2, curves, log_scale=True)
        axes.set_xlabel(axis_label(grid, name))
        others = [other for other in grid.names if other != name]
        set_title(axes, f"mean over {' and '.join(others)}" if others else "")
    return figure


def _improvement(comparison: Comparison) -> Figure | None:
    names = [arm.name for arm in comparison.arms]
    if len(names) < 2:
        return None
    k, keys = comparison.inner_steps[-1], ("mean", "cvar_10")
    side, label = max(2.6, 0.78 * len(names)), names_width(comparison, 8)
    left, right, bottom, top = 0.3, 0.9, 0.2 + 0.8 * label, 0.3
    figure, ((*panels,),) = sheet(
        comparison,
        1,
        len(keys),
        left + side + right,
        bottom + side + top,
        heading=f"probability that a run of the row is better than one of the column, {_when(comparison)}",
        note="in brackets: 95 % bootstrap interval over seeds",
        left=left,
        right=right,
        bottom=bottom,
        top=top,
        margin=label,
    )
    for axes, key in zip(panels, keys, strict=True):
        found = comparison.improvement(key)
        matrix = np.array([[found[a, b].value[k] if a != b else np.nan for b in names] for a in names])
        mesh = axes.imshow(matrix, cmap="RdBu", vmin=0, vmax=1)
        for i, j in np.ndindex(matrix.shape):
            if i != j:
                interval = found[names[i], names[j]]
                text = f"{matrix[i, j]:.2f}\n[{interval.low[k]:.2f}, {interval.high[k]:.2f}]"
                dark = abs(matrix[i, j] - 0.5) > 0.35
                axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), map(wrapped, names), fontsize=8, **slanted)
        axes.set_yticks(range(len(names)), map(wrapped, names) if axes is panels[0] else [""] * len(names), fontsize=8)
        set_title(axes, METRICS[key].label)
        add_colour_bar(axes, mesh)
    return figure


def _differences(comparison: Comparison) -> Figure | None:
    """The difference to the baseline of each sampler, with its interval, for several metrics."""
    if not comparison.differences:
        return None
    k, keys = comparison.inner_steps[-1], ("mean", "sd", "cvar_10", "worst_cell")
    names = [arm.name for arm in comparison.arms if (keys[0], arm.name) in comparison.differences]
    styles = styles_of(comparison)
    figure, ((*panels,),) = sheet(
        comparison,
        1,
        len(keys),
        3.9,
        1.2 + 0.4 * len(names),
        heading=f"difference to {comparison.baseline} on the same seeds, {_when(comparison)}: left is better",
        note="bars: 95 % bootstrap interval over pairs of seeds; p: sign-flip test, after Holm's correction for "
        f"{len(names)} comparison{'' if len(names) == 1 else 's'}",
        left=0.3,
        right=0.8,
        margin=names_width(comparison, 8),
    )
    for axes, key in zip(panels, keys, strict=True):
        for row, name in enumerate(names):
            (value, low, high), p, _ = comparison.differences[key, name]
            axes.plot([low[k], high[k]], [row, row], color=styles[name]["color"], linewidth=2)
            axes.plot(value[k], row, "o", color=styles[name]["color"])
            beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
            axes.text(
                1.02, row, "no value" if np.isnan(value[k]) else "" if np.isnan(p[k]) else f"p = {p[k]:.2g}", **beside
            )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), map(wrapped, names) if axes is panels[0] else [""] * len(names), fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3, axis="x")
        set_title(axes, METRICS[key].label)
    return figure


def _health(comparison: Comparison) -> Figure:
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
        draw_lines(comparison, axes, comparison.steps, curves)
        axes.set_xlabel("meta-steps")
        set_title(axes, title)
    return figure


def _visits(comparison: Comparison) -> Figure:
    """How often cells were drawn against how hard their tasks are in the end."""
    found = {}
    for arm in comparison.arms:
        visits = [run.evaluations.visits[_evaluation_of(comparison, run)] for run in arm.runs]
        losses = mean_of_known(np.array([_losses(comparison, run) for run in arm.runs]))
        found[arm.name] = losses, np.mean(visits, axis=0)
    positive = np.concatenate([losses[losses > 0] for losses, _ in found.values()])
    least, most = (pick(pick(visits) for _, visits in found.values()) for pick in (min, max))
    batches = _batches(list(found))
    title = 0.13 + 0.17 * lines_in(map(wrapped, found))
    figure, rows = sheet(
        comparison,
        len(batches),
        len(batches[0]),
        3.4,
        2.9 + title,
        heading=f"how often cells were drawn, and the loss of their tasks {_when(comparison)}",
        note="a point: a task, mean over seeds; both scales are logarithmic, that of the visits down to 1",
        top=title,
    )
    styles = styles_of(comparison)
    panels = [axes for row in rows for axes in row]
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    for axes, (name, (losses, visits)) in zip(panels, found.items(), strict=False):
        axes.plot(losses, visits, ".", color=styles[name]["color"], markersize=3, alpha=0.6, clip_on=False)
        axes.set_yscale("symlog", linthresh=1, linscale=0.5)
        axes.set_ylim(least / 1.2, 1.2 * most + 1)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=[1, 2, 5]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if positive.size:
            axes.set_xlim(positive.min() / 1.2, positive.max() * 1.2)
        use_log_scale(axes.xaxis)
        axes.set_xlabel("loss")
        axes.grid(alpha=0.3)
        set_title(axes, wrapped(name))
    for row in rows:
        row[0].set_ylabel("visits of the cell, mean over seeds")
    return figure


def _regression(comparison: Comparison) -> Figure | None:
    """Samplers × the first parameter, of each sampler's first seed: target, support points, network."""
    shown = {}
    for arm in comparison.arms:
        # Examples are those of a run's end.
        for run in arm.runs:
            if run.examples and run.evaluations.steps[-1] == comparison.steps[-1]:
                shown.setdefault(arm.name, run)
    if not shown:
        return None
    name, axis = next(iter(comparison.arms[0].runs[0].evaluations.grid.axes.items()))
    left_out = [arm.name for arm in comparison.arms if arm.name not in shown]
    styles = styles_of(comparison)
    title = 0.13 + 0.17 * (lines_in(map(wrapped, shown)) + 1)
    figure, rows = sheet(
        comparison,
        len(shown),
        3,
        3.8,
        2.1 + title,
        heading=f"tasks before and after adapting, after {comparison.steps[-1]:,} meta-steps",
        note=f"no examples at this meta-step: {', '.join(left_out)}" if left_out else "",
        top=title,
    )
    for row, (sampler, run) in zip(rows, shown.items(), strict=True):
        assert run.examples is not None
        examples = run.examples
        last = examples["predictions"].shape[1] - 1
        for i, axes in enumerate(row):
            axes.plot(examples["x"][i], examples["targets"][i], color="black", linewidth=1.5, label="target")
            support = examples["support_inputs"][i], examples["support_targets"][i]
            axes.plot(*support, "k^", markersize=5, label="support")
            for k, line in ((0, ":"), (last, "-")):
                style = {"color": styles[sampler]["color"], "linestyle": line}
                axes.plot(examples["x"][i], examples["predictions"][i, k], **style, label=f"{k} steps")
            value = f"{examples['tasks'][i, 0]:.2f}{UNITS.get(axis.unit, axis.unit)}"
            set_title(axes, f"{wrapped(sampler)}\nseed {run.seed}: {name} {value}")
            axes.grid(alpha=0.3)
            axes.set_ylim(*_range(examples["targets"]))
    for axes in rows[-1]:
        axes.set_xlabel("x")
    rows[0][0].legend(fontsize=7)
    return figure


def _range(values: np.ndarray) -> tuple[float, float]:
    """A little more than all values: a network that has not adapted may go beyond."""
    margin = 0.25 * (values.max() - values.min()) + 1e-6
    return float(values.min() - margin), float(values.max() + margin)


_FIGURES: Mapping[str, Callable[[Comparison], Figure | None]] = {
    "learning_curves": _learning_curves,
    "inner_steps": _inner_steps,
    "differences": _differences,
    "heatmaps": _heatmaps,
    "distribution": _distribution,
    "parameters": _parameters,
    "improvement": _improvement,
    "health": _health,
    "visits": _visits,
    "regression": _regression,
}
