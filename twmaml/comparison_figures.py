"""The figures of a comparison, for print: PDF and PNG, the same colour for a sampler in all of them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from twmaml.comparison import HEALTH, METRICS, Comparison, Estimate, estimate, mean_of_known
from twmaml.finished import Arm
from twmaml.panels import (
    UNITS,
    add_colour_bar,
    axis_label,
    make_panels,
    marginalise,
    set_title,
    show_grid,
    use_plain_numbers,
    views_of,
)
from twmaml.statistics import cell_means, diverged_tasks

log = logging.getLogger(__name__)

_KNOWN = {
    "uniform": "#7F7F7F",
    "epsilon_greedy": "#E69F00",
    "weighted": "#56B4E9",
    "importance": "#0072B2",
    "delta": "#CC79A7",
    "importance_delta": "#D55E00",
}
_OTHERS = ("#009E73", "#B8A900", "#332288", "#882255", "#117733", "#AA4499")


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each arm: the samplers of this package always have the same one. After Okabe and Ito."""
    others = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


def draw_comparison(comparison: Comparison, folder: Path, show: Callable[[str], None]) -> list[Path]:
    """Draws every figure into a folder, twice: `<name>.pdf` and `<name>.png`.

    Args:
        comparison: what is shown.
        folder: must exist.
        show: told the name of each figure before it is drawn.
    """
    paths = []
    for name, draw in _FIGURES.items():
        show(name)
        figure = draw(comparison)
        if figure is None:
            continue
        for path in (folder / f"{name}.pdf", folder / f"{name}.png"):
            figure.savefig(path, dpi=150)
            paths.append(path)
    return paths


def _lines(axes: Axes, x: np.ndarray, curves: Mapping[str, Estimate]) -> None:
    colours = colours_of(list(curves))
    for name, (value, low, high) in curves.items():
        known = ~np.isnan(value)
        axes.plot(x[known], value[known], color=colours[name], linewidth=1.8, label=name)
        axes.fill_between(x[known], low[known], high[known], color=colours[name], alpha=0.18, linewidth=0)
    axes.grid(alpha=0.3)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(labels), frameon=False, fontsize=9, borderaxespad=0.3)


def _curve_panels(comparison: Comparison, by_panel: Mapping[str, Any], x: np.ndarray, label: str) -> Figure:
    figure, ((*panels,),) = make_panels(1, len(by_panel), 5.6, 3.9)
    for axes, (title, curves) in zip(panels, by_panel.items(), strict=True):
        _lines(axes, x, curves)
        set_title(axes, title)
        axes.set(xlabel=label, yscale="log")
        use_plain_numbers(axes.yaxis)
    _legend(figure, panels[0])
    return figure


def _learning_curves(comparison: Comparison) -> Figure:
    k = comparison.inner_steps[-1]
    panels = {
        f"{METRICS[key].label}, after {k} inner steps": {
            arm.name: Estimate(*(part[:, k] for part in comparison.estimates[key, arm.name])) for arm in comparison.arms
        }
        for key in ("mean", "cvar_10")
    }
    return _curve_panels(comparison, panels, comparison.steps, "meta-steps")


def _inner_steps(comparison: Comparison) -> Figure:
    panels = {
        f"{METRICS[key].label}, after {comparison.steps[-1]:,} meta-steps": {
            arm.name: Estimate(*(part[-1] for part in comparison.estimates[key, arm.name])) for arm in comparison.arms
        }
        for key in ("mean", "cvar_10")
    }
    return _curve_panels(comparison, panels, np.arange(comparison.inner_steps[-1] + 1), "inner steps")


def _heatmaps(comparison: Comparison) -> Figure:
    """One row of losses and one of differences to the baseline for each pair of parameters."""
    k, grid = comparison.inner_steps[-1], comparison.arms[0].runs[0].evaluations.grid
    maps = {arm.name: comparison.loss_maps(arm, -1)[:, k] for arm in comparison.arms}
    views = views_of(grid)
    rows = 2 if comparison.baseline in maps else 1
    figure, panels = make_panels(rows * len(views), len(maps), 3.4, 3.0, right=0.6)
    for (above, *below), view in zip(_batches(panels, rows), views, strict=True):
        over = [name for name in grid.names if name not in view]
        suffix = f", mean over {' and '.join(over)}" if over else ""
        losses = {name: marginalise(grid, values, view) for name, values in maps.items()}
        known = np.concatenate([values[~np.isnan(values)] for values in losses.values()])
        norm = LogNorm(known[known > 0].min(), known.max()) if (known > 0).any() else Normalize()
        for axes, name in zip(above, maps, strict=True):
            style = {"norm": norm} if len(view) == 2 else {}
            mesh = show_grid(axes, grid, maps[name], view, **style)
            set_title(axes, f"{name}{suffix}")
            if mesh is not None and axes is above[-1]:
                add_colour_bar(axes, mesh)
        for row in below:
            assert comparison.baseline is not None
            differences = {name: values - maps[comparison.baseline] for name, values in maps.items()}
            shown = [np.abs(marginalise(grid, values, view)) for values in differences.values()]
            most = np.nanquantile(np.concatenate([values.ravel() for values in shown]), 0.98) or 1.0
            style = {"cmap": "RdBu_r", "norm": Normalize(-most, most)} if len(view) == 2 else {}
            for axes, name in zip(row, maps, strict=True):
                if name == comparison.baseline:
                    axes.set_axis_off()
                    continue
                mesh = show_grid(axes, grid, differences[name], view, **style)
                set_title(axes, f"{name} − {comparison.baseline}")
                if (
                    mesh is not None
                    and axes is [a for a, n in zip(row, maps, strict=True) if n != comparison.baseline][-1]
                ):
                    add_colour_bar(axes, mesh, extend="both")
    below = f"; below it the difference to {comparison.baseline}, blue where it is better" if rows == 2 else ""
    figure.suptitle(f"loss after {k} inner steps, mean over seeds{below}", x=0.01, ha="left", fontweight="bold")
    return figure


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def _cells_of_runs(arm: Arm, k: int) -> np.ndarray:
    """The cell means of every run at the last evaluation, [seeds, cells]; NaN where all draws diverged."""
    found = []
    for run in arm.runs:
        losses = run.evaluations.losses[-1]
        found.append(cell_means(losses[:, k], diverged_tasks(losses)[:, k], run.evaluations.draws))
    return np.array(found)


def _distribution(comparison: Comparison) -> Figure:
    """Which share of the cells has at least a given loss: the tail is at the lower right."""
    k = comparison.inner_steps[-1]
    cells = {arm.name: _cells_of_runs(arm, k) for arm in comparison.arms}
    positive = np.concatenate([values[values > 0] for values in cells.values()])
    figure, ((axes,),) = make_panels(1, 1, 8.4, 4.4)
    if positive.size:
        x = np.geomspace(positive.min(), positive.max(), 200)
        curves = {
            name: estimate(np.array([[(of_run >= at).mean() for at in x] for of_run in values]), np.mean)
            for name, values in cells.items()
        }
        _lines(
            axes, x, {name: Estimate(*(np.where(part > 0, part, np.nan) for part in c)) for name, c in curves.items()}
        )
    axes.set(xlabel=f"loss after {k} inner steps", ylabel="share of the cells with at least this loss")
    axes.set(xscale="log", yscale="log")
    use_plain_numbers(axes.yaxis)
    use_plain_numbers(axes.xaxis)
    _legend(figure, axes)
    return figure


def _parameters(comparison: Comparison) -> Figure:
    k, grid = comparison.inner_steps[-1], comparison.arms[0].runs[0].evaluations.grid
    figure, ((*panels,),) = make_panels(1, len(grid.names), 5.6, 3.9)
    for axes, name in zip(panels, grid.names, strict=True):
        edges = grid.axes[name].edges()
        curves = {
            arm.name: estimate(
                np.array([marginalise(grid, of_run, (name,)) for of_run in _cells_of_runs(arm, k)]), np.mean
            )
            for arm in comparison.arms
        }
        _lines(axes, (edges[:-1] + edges[1:]) / 2, curves)
        axes.set(xlabel=axis_label(grid, name), yscale="log")
        set_title(axes, f"loss after {k} inner steps, mean over the others")
        use_plain_numbers(axes.yaxis)
    _legend(figure, panels[0])
    return figure


def _improvement(comparison: Comparison) -> Figure | None:
    names = [arm.name for arm in comparison.arms]
    if len(names) < 2:
        return None
    k = comparison.inner_steps[-1]
    figure, ((*panels,),) = make_panels(1, 2, 6.6, 5.0, right=1.0)
    for axes, key in zip(panels, ("mean", "cvar_10"), strict=True):
        found = comparison.improvement(key)
        matrix = np.array([[found[a, b].value[k] if a != b else np.nan for b in names] for a in names])
        _shrink(axes, left=0.06, bottom=0.14)
        mesh = axes.imshow(matrix, cmap="RdBu", vmin=0, vmax=1)
        for i, j in np.ndindex(matrix.shape):
            if i != j:
                interval = found[names[i], names[j]]
                text = f"{matrix[i, j]:.2f}\n[{interval.low[k]:.2f}, {interval.high[k]:.2f}]"
                dark = abs(matrix[i, j] - 0.5) > 0.35
                axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        set_title(axes, f"P(row better than column), {METRICS[key].label}")
        add_colour_bar(axes, mesh)
    return figure


def _shrink(axes: Axes, left: float = 0.0, bottom: float = 0.0) -> None:
    """Leaves room for long labels; shares of the figure."""
    place = axes.get_position()
    axes.set_position((place.x0 + left, place.y0 + bottom, place.width - left, place.height - bottom))


def _differences(comparison: Comparison) -> Figure | None:
    """The difference to the baseline of each sampler, with its interval, for several metrics."""
    if not comparison.differences:
        return None
    k, keys = comparison.inner_steps[-1], ("mean", "sd", "cvar_10", "worst_cell")
    names = [arm.name for arm in comparison.arms if (keys[0], arm.name) in comparison.differences]
    colours = colours_of(names)
    figure, ((*panels,),) = make_panels(1, len(keys), 4.2, 3.4)
    for axes, key in zip(panels, keys, strict=True):
        for row, name in enumerate(names):
            (value, low, high), p, _ = comparison.differences[key, name]
            axes.plot([low[k], high[k]], [row, row], color=colours[name], linewidth=2)
            axes.plot(value[k], row, "o", color=colours[name])
            axes.annotate(
                f"p = {p[k]:.2g}", (value[k], row), (0, 7), textcoords="offset points", fontsize=7, ha="center"
            )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names), fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.7)
        axes.set_xlabel(f"minus {comparison.baseline} (left is better)")
        axes.grid(alpha=0.3, axis="x")
        set_title(axes, METRICS[key].label)
    _shrink(panels[0], left=0.03)
    return figure


def _health(comparison: Comparison) -> Figure:
    figure, rows = make_panels(2, 3, 5.2, 3.2)
    for axes, (key, title) in zip([axes for row in rows for axes in row], HEALTH.items(), strict=True):
        _lines(axes, comparison.steps, {arm.name: comparison.health[key, arm.name] for arm in comparison.arms})
        axes.set_xlabel("meta-steps")
        set_title(axes, title)
    _legend(figure, rows[0][0])
    return figure


def _visits(comparison: Comparison) -> Figure | None:
    """How often cells were drawn against how hard their tasks are in the end."""
    k = comparison.inner_steps[-1]
    figure, ((*panels,),) = make_panels(1, len(comparison.arms), 3.4, 3.2)
    colours = colours_of([arm.name for arm in comparison.arms])
    for axes, arm in zip(panels, comparison.arms, strict=True):
        visits = mean_of_known(np.array([run.evaluations.visits[-1] for run in arm.runs], float))
        losses = mean_of_known(
            np.array(
                [np.where(diverged_tasks(e.losses[-1])[:, k], np.nan, e.losses[-1][:, k]) for e in _evaluations(arm)]
            )
        )
        axes.plot(losses, visits, ".", color=colours[arm.name], markersize=3, alpha=0.6)
        axes.set(xscale="log", yscale="log", xlabel=f"loss after {k} inner steps")
        axes.sharey(panels[0]) if axes is not panels[0] else None
        axes.grid(alpha=0.3)
        use_plain_numbers(axes.yaxis)
        use_plain_numbers(axes.xaxis)
        set_title(axes, arm.name)
    panels[0].set_ylabel("visits of the cell")
    return figure


def _evaluations(arm: Arm) -> list[Any]:
    return [run.evaluations for run in arm.runs]


def _regression(comparison: Comparison) -> Figure | None:
    """Samplers × the first parameter, of each sampler's first seed: target, support points, network."""
    shown = [(arm, arm.runs[0].examples) for arm in comparison.arms]
    shown = [(arm, examples) for arm, examples in shown if examples is not None]
    if not shown:
        return None
    name, axis = next(iter(comparison.arms[0].runs[0].evaluations.grid.axes.items()))
    colours = colours_of([arm.name for arm, _ in shown])
    figure, rows = make_panels(len(shown), 3, 3.8, 2.5)
    for row, (arm, examples) in zip(rows, shown, strict=True):
        last = examples["predictions"].shape[1] - 1
        for i, axes in enumerate(row):
            axes.plot(examples["x"][i], examples["targets"][i], color="black", linewidth=1.5, label="target")
            axes.plot(
                examples["support_inputs"][i], examples["support_targets"][i], "k^", markersize=5, label="support"
            )
            for k, line in ((0, ":"), (last, "-")):
                axes.plot(
                    examples["x"][i], examples["predictions"][i, k], line, color=colours[arm.name], label=f"{k} steps"
                )
            value = f"{examples['tasks'][i, 0]:.2f}{UNITS.get(axis.unit, axis.unit)}"
            set_title(axes, f"{arm.name}, seed {arm.runs[0].seed}: {name} {value}")
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
