"""Results of runs when each has spent as much."""

import numpy as np

from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import FinishedRun


def units_of(comparison: Comparison) -> list[str]:
    """Units of budgets; seconds only if the speed of every run was measured, under equal conditions."""
    summaries = [run.summary for arm in comparison.arms for run in arm.runs]
    conditions = {(summary.device, summary.runs_at_once) for summary in summaries}
    alike = len(conditions) == 1 and None not in next(iter(conditions))
    timed = all(summary.meta_steps_per_second for summary in summaries)  # 0.0 is no speed either
    return ["meta-steps", "tasks", *(["seconds"] if timed and alike else [])]


def at_budget(comparison: Comparison, unit: str) -> tuple[float, dict[str, np.ndarray]]:
    """Mean of every run when each has spent as much, as much as the one that spends least has in all.

    Args:
        comparison: the runs.
        unit: `meta-steps`, `tasks` (adapted to in training) or `seconds` (of training, as measured), of `units_of`.

    Returns:
        The budget, and for each arm the means, [seeds, inner steps + 1], linearly between evaluations.
    """
    steps = comparison.steps
    budget = min(steps[-1] * _price(run, unit) for arm in comparison.arms for run in arm.runs)
    found = {}
    for arm in comparison.arms:
        pairs = zip(arm.runs, comparison.values(arm, comparison.key("mean")), strict=True)
        found[arm.name] = np.array(
            [
                [np.interp(budget / _price(run, unit), steps, of_run[:, k]) for k in range(of_run.shape[1])]
                for run, of_run in pairs
            ]
        )
    return budget, found


def _price(run: FinishedRun, unit: str) -> float:
    """How much of a unit a meta-step costs."""
    if unit == "seconds":
        assert run.summary.meta_steps_per_second is not None
        return 1 / run.summary.meta_steps_per_second
    return float(run.config["meta_batch"]) if unit == "tasks" else 1.0
