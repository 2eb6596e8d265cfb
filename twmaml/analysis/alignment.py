"""Evaluations of several runs that belong together: those of the same meta-step, or when each has spent as much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twmaml.analysis.finished_runs import FinishedRun
from twmaml.storage.metrics_file import TASKS_ADAPTED, TASKS_TRAINED


class Budget(NamedTuple):
    """A way to count how far a run has come."""

    key: str
    """Its name on the command line and in files."""
    unit: str
    column: str
    """Its name in metrics.csv."""


META_STEPS = Budget("meta_steps", "meta-steps", "step")

BUDGETS = {
    budget.key: budget
    for budget in (
        META_STEPS,
        Budget("tasks_adapted", "tasks adapted", TASKS_ADAPTED),
        Budget("tasks_trained", "tasks trained", TASKS_TRAINED),
    )
}
"""Every budget by its key."""


@dataclass(frozen=True)
class Alignment:
    """The evaluations of runs that are compared with each other, in the order of training."""

    key: str
    """The key of the budget; `best` where each run stands at its best checkpoint."""
    points: np.ndarray
    """How far the runs have come at each, in `unit`."""
    reached: str
    """How far they have come in the end, in words."""
    unit: str
    places: Mapping[Path, np.ndarray]
    """By the folder of a run: the place of its evaluation among all of its own, [points]."""

    def below(self, run: FinishedRun) -> float:
        """The share of the last point by which a run has spent less."""
        spent = spent_by(run, BUDGETS[self.key])[self.places[run.folder][-1]]
        return float(1 - spent / self.points[-1]) if self.points[-1] else 0.0


def spent_by(run: FinishedRun, budget: Budget) -> np.ndarray:
    """How far a run had come at each of its evaluations."""
    return run.at_evaluations(budget.column)


def budgets_of(runs: Sequence[FinishedRun]) -> list[Budget]:
    """The budgets that every run has counted."""
    return [budget for budget in BUDGETS.values() if all(budget.column in run.metrics for run in runs)]


def by_budget(runs: Sequence[FinishedRun], budget: Budget = META_STEPS) -> Alignment:
    """The last evaluation of each run that has spent no more than a point.

    The points of meta-steps are those at which all runs were evaluated, which spend as much there. Those of another
    budget go on to the least that a run has spent in the end, and at each of them every run has been evaluated anew.
    """
    spent = [spent_by(run, budget) for run in runs]
    if budget is META_STEPS:
        points = np.array(sorted(set.intersection(*(set(of_run.tolist()) for of_run in spent))), int)
    else:
        points = _common_points(spent)
    places = {run.folder: np.searchsorted(own, points, side="right") - 1 for run, own in zip(runs, spent, strict=True)}
    return Alignment(budget.key, points, f"{points[-1]:,} {budget.unit}", budget.unit, places)


def _common_points(spent: Sequence[np.ndarray]) -> np.ndarray:
    limit = min(of_run[-1] for of_run in spent)
    points = [0]
    while points[-1] < limit:
        later = [of_run[of_run > points[-1]] for of_run in spent]
        points.append(int(min(limit, max(of_run[0] for of_run in later))))
    return np.array(points)


def at_best(runs: Sequence[FinishedRun]) -> Alignment:
    """The evaluation of each run at its best checkpoint, which was chosen on the split `validation`.

    Raises:
        ValueError: if a run has none.
    """
    places = {}
    for run in runs:
        if run.summary.best_step is None:
            raise ValueError(f"{run.folder} has no best checkpoint: it is not judged on evaluation.splits.validation")
        places[run.folder] = np.flatnonzero(run.evaluations.steps == run.summary.best_step)
    return Alignment("best", np.zeros(1, int), "the best checkpoint", "", places)
