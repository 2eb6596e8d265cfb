"""Results of runs when each has spent as much, of whatever can be counted."""

import numpy as np

from twmaml.analysis.alignment import budgets_of
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import FinishedRun


def units_of(comparison: Comparison) -> list[str]:
    """Units of budgets; seconds only if the speed of every run was measured, under equal conditions."""
    summaries = [run.summary for run in comparison.runs]
    conditions = {(summary.device, summary.runs_at_once) for summary in summaries}
    alike = len(conditions) == 1 and None not in next(iter(conditions))
    timed = all(summary.meta_steps_per_second for summary in summaries)  # 0.0 is no speed either
    return [*(budget.unit for budget in budgets_of(comparison.runs)), *(["seconds"] if timed and alike else [])]


def at_budget(comparison: Comparison, unit: str) -> tuple[float, dict[str, np.ndarray]]:
    """Mean of every run when each has spent as much, as much as the one that spends least has in all.

    Args:
        comparison: the runs.
        unit: one of `units_of`; seconds are those of training, as measured.

    Returns:
        The budget, and for each arm the means, [seeds, inner steps + 1], linearly between the evaluations that are
        compared.
    """
    spent = {run.folder: _spent(run, unit)[comparison.places(run)] for run in comparison.runs}
    budget = min(float(of_run[-1]) for of_run in spent.values())
    found = {}
    for arm in comparison.arms:
        pairs = zip(arm.runs, comparison.values(arm, comparison.key("mean")), strict=True)
        found[arm.name] = np.array(
            [
                [np.interp(budget, spent[run.folder], of_run[:, k]) for k in range(of_run.shape[1])]
                for run, of_run in pairs
            ]
        )
    return budget, found


def _spent(run: FinishedRun, unit: str) -> np.ndarray:
    """How much of a unit had been spent at each evaluation of a run."""
    for budget in budgets_of([run]):
        if budget.unit == unit:
            return run.at_evaluations(budget.column)
    assert run.summary.meta_steps_per_second is not None
    return run.evaluations.steps / run.summary.meta_steps_per_second
