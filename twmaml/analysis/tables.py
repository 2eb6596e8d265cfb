"""The tables of a comparison in the terminal and as CSV."""

import csv
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from twmaml.analysis.alignment import META_STEPS
from twmaml.analysis.answer import answer, legend, overview
from twmaml.analysis.budgets import at_budget, units_of
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import Arm
from twmaml.analysis.resampling import Estimate, estimate
from twmaml.figures.panels import cell_labels, describe_task
from twmaml.space.axis import Axis
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import counted, key_of, label_of
from twmaml.storage.metrics_file import format_number

_VALUES = (
    *("mean", "task_interval", "mean_median", "mean_iqm", "iqm", "sd"),
    *("worst_task", "cvar_50", "cvar_30", "cvar_10", "cvar_5"),
)
_DIFFERENCES = ("mean", "sd", "worst_cell", "cvar_10", "cvar_5")

_COLUMNS = 6
"""Columns of a table; the rest goes into another one."""


def print_tables(console: Any, comparison: Comparison, notes: Sequence[str], full: bool) -> None:
    """Prints the answer and its table, the notes, and if `full` every table and the worst tasks."""
    console.print(answer(comparison), markup=False)
    console.print(overview(comparison))
    console.print(f"{legend(comparison)}\n", markup=False, soft_wrap=True)
    example = comparison.arms[0].runs[0]
    console.print(
        f"{comparison.task}: {counted(len(comparison.arms), 'sampler')}, {comparison.seeds} each, "
        f"{counted(len(example.evaluations.tasks), 'task')} after {comparison.reached}."
        + (" Mean over seeds \\[95 % bootstrap interval over seeds]." if full else ""),
        soft_wrap=True,
    )
    for protocol in comparison.protocols:
        console.print(f"Protocol: {protocol}", markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)
    if full:
        _print_everything(console, comparison)


def _print_everything(console: Any, comparison: Comparison) -> None:
    for table in [
        *_tables_of_values(comparison),
        _table_by_inner_steps(comparison),
        *_table_of_differences(comparison),
        _table_of_budgets(comparison),
    ]:
        console.print(table)
    for arm in comparison.arms:
        worst = comparison.worst_task(arm, comparison.inner_steps[-1])
        if worst is not None:
            where = describe_task(comparison.grid, np.array(list(worst.task.values())))
            line = f"{where} (seed {worst.seed}): {comparison.lead.label} {worst.value:.3g}"
            console.print(f"  worst task of {arm.name}: {line}", markup=False)


def _table(comparison: Comparison, title: str, columns: Sequence[str], cell: Callable[[Arm, int], str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    table.add_column("sampler", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for arm in comparison.arms:
        table.add_row(arm.name, *(cell(arm, i) for i in range(len(columns))))
    return table


def _tables_of_values(comparison: Comparison) -> list[Table]:
    """The leading metric's statistics after the last inner step; the means of the others."""
    k, measures = comparison.inner_steps[-1], comparison.measures
    own = [comparison.key(statistic) for statistic in _VALUES]
    means = [key for key, measure in measures.items() if key.endswith("mean") and measure.metric != comparison.lead]
    tables = []
    for keys in (own[:_COLUMNS], own[_COLUMNS:], means):
        if keys:
            metric = "other metrics" if keys is means else label_of(comparison.lead)
            tables.append(
                _table(
                    comparison,
                    f"{metric} after {counted(k, 'inner step')}",
                    [measures[key].title if keys is means else measures[key].label for key in keys],
                    lambda arm, i, keys=keys: _interval(comparison.estimates[keys[i], arm.name], -1, k),
                )
            )
    return tables


def _table_by_inner_steps(comparison: Comparison) -> Table:
    steps, estimates = comparison.inner_steps, comparison.estimates

    def cell(arm: Arm, i: int) -> str:
        key, k = (comparison.key("mean"), steps[i]) if i < len(steps) else ("diverged", steps[-1])
        return _interval(estimates[key, arm.name], -1, k)

    title = f"{label_of(comparison.lead)} by inner steps, mean over the grid; share of diverged tasks after the last"
    return _table(comparison, title, [*(counted(step, "step") for step in steps), "diverged [%]"], cell)


def _table_of_differences(comparison: Comparison) -> list[Table]:
    """The differences to the baseline, if there is one."""
    k, keys = comparison.inner_steps[-1], [comparison.key(statistic) for statistic in _DIFFERENCES]
    if not comparison.differences:
        return []

    def cell(arm: Arm, i: int) -> str:
        found = comparison.differences.get((keys[i], arm.name))
        if found is None:
            return "–"
        p = "" if math.isnan(found.p[k]) else f" p={found.p[k]:.2g}"
        return f"{_interval(found.estimate, k)}{p}"

    measures = [comparison.measures[key] for key in keys]
    mixed = len({measure.higher_is_better for measure in measures}) > 1
    columns = [
        measure.label + (f" ({'+' if measure.higher_is_better else '-'} is better)" if mixed else "")
        for measure in measures
    ]
    better = "" if mixed else " (negative is better)"
    title = f"{label_of(comparison.lead)}: difference to {comparison.baseline} on the same seeds, p after Holm{better}"
    return [_table(comparison, title, columns, cell)]


def _table_of_budgets(comparison: Comparison) -> Table:
    k, budgets = comparison.inner_steps[-1], {unit: at_budget(comparison, unit) for unit in units_of(comparison)}
    found = [of_arms for _, of_arms in budgets.values()]
    return _table(
        comparison,
        f"{label_of(comparison.lead)} after {counted(k, 'inner step')} at equal budgets, mean over the grid",
        [f"{budget:,.3g} {unit}" if budget < 100 else f"{budget:,.0f} {unit}" for unit, (budget, _) in budgets.items()],
        lambda arm, i: _interval(estimate(found[i][arm.name], np.mean), k),
    )


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _interval(estimate: Estimate, *index: int) -> str:
    value, low, high = (float(part[index]) for part in estimate)
    return _number(value) if math.isnan(low) else f"{_number(value)} [dim]\\[{_number(low)}, {_number(high)}][/dim]"


def _column(comparison: Comparison) -> str:
    """The name of the column that says how far the runs have come."""
    key = comparison.alignment.key
    return "meta_step" if key == META_STEPS.key else key


def write_statistics(comparison: Comparison, path: Path) -> None:
    """Writes every figure as one long CSV: sampler, measure, inner step, value, interval, difference, p."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["sampler", "metric", "inner_step", _column(comparison), "seeds", "value", "low", "high"]
        writer.writerow([*columns, "difference", "difference_low", "difference_high", "p_holm"])
        for key in comparison.measures:
            for arm in comparison.arms:
                found = comparison.differences.get((key, arm.name))
                for k in comparison.inner_steps:
                    row = [part[-1, k] for part in comparison.estimates[key, arm.name]]
                    row += [*(part[k] for part in found.estimate), found.p[k]] if found else [math.nan] * 4
                    writer.writerow([arm.name, key, k, comparison.points[-1], len(arm.runs), *map(format_number, row)])


def write_cells(comparison: Comparison, path: Path) -> None:
    """Writes the mean of every cell in the end as one long CSV: sampler, metric, inner step, cell, value, interval."""
    cells = list(product(*(_places(name, axis) for name, axis in comparison.grid.axes.items())))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["sampler", "metric", "inner_step", _column(comparison)]
        writer.writerow([*columns, *comparison.grid.names, "seeds", "value", "low", "high"])
        for metric in comparison.metrics:
            for arm in comparison.arms:
                found, seeds = comparison.cells(arm, metric)
                for (i, k), cell in product(enumerate(comparison.inner_steps), range(len(cells))):
                    own = [arm.name, key_of(metric, comparison.metrics), k, comparison.points[-1], *cells[cell]]
                    numbers = [format_number(part[cell, i]) for part in found]
                    writer.writerow([*own, seeds[cell, i], *numbers])


def _places(name: str, axis: Axis) -> list[str]:
    """The name of each cell of an axis, or its centre in the configured unit."""
    labels = None if axis.continuous else cell_labels(axis)
    centres = np.asarray(ParameterGrid({name: axis}).centres())[:, 0] / axis.scale
    return labels or [f"{centre:.6g}" for centre in centres]
