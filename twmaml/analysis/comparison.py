"""Statistics over finished runs: what a sampler changes, and how sure that is. Seeds are sampled, tasks are paired.

Evaluations are addressed by their point: the first, second, ... or last (-1) of those that belong together in all runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from twmaml.analysis.alignment import Alignment, by_budget
from twmaml.analysis.finished_runs import Arm, FinishedRun
from twmaml.analysis.health import HEALTH, health_of
from twmaml.analysis.measures import Measure, leading, measures_of, prefix_of, run_statistics
from twmaml.analysis.resampling import (
    Difference,
    Estimate,
    adjust_holm,
    difference,
    estimate,
    estimate_known,
    mean_of_known,
    probability_of_improvement,
)
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import SCORE, as_cost, cell_means, diverged_tasks, key_of, reported_steps, span
from twmaml.types import Metric

DrawPicture = Callable[[Any, Mapping[str, np.ndarray]], None]
"""Draws one task's picture into Matplotlib's axes."""


class WorstTask(NamedTuple):
    """The task on which any run of an arm does worst."""

    value: float
    task: dict[str, float]
    """Parameters by name."""
    seed: int


@dataclass(frozen=True)
class Comparison:
    """Arms that were judged on the same tasks, and what their runs came to.

    Args:
        arms: at least one.
        baseline: the name of the arm that the others are compared with, if it is among them.
        draw_picture: draws the pictures of the runs' family, if that may be built.
        align: says which evaluations of the runs belong together; by default those of the same meta-step.
    """

    arms: Sequence[Arm]
    baseline: str | None
    draw_picture: DrawPicture | None = None
    align: Callable[[Sequence[FinishedRun]], Alignment] = by_budget

    @property
    def split(self) -> str:
        """The split that the runs were judged on."""
        return self.arms[0].runs[0].evaluations.split

    @property
    def task(self) -> str:
        """The choice of the task, and the split where that is not `eval`."""
        choice = self.arms[0].runs[0].choices["task"]
        return choice if self.split == "eval" else f"{choice}, split {self.split}"

    @cached_property
    def protocols(self) -> list[str]:
        """A sentence on what figures must agree in with these to be compared; one with its samplers, if not of all."""
        samplers: dict[str, dict[str, None]] = {}
        for arm in self.arms:
            for run in arm.runs:
                samplers.setdefault(run.summary.protocols.get(self.split, ""), {})[arm.name] = None
        suffixes = {text: f" ({', '.join(names)})" if len(samplers) > 1 else "" for text, names in samplers.items()}
        return [text + suffix for text, suffix in suffixes.items() if text]

    @cached_property
    def metrics(self) -> Sequence[Metric]:
        """The score, and the family's further metrics."""
        return self.arms[0].runs[0].evaluations.metrics

    @cached_property
    def lead(self) -> Metric:
        """The metric that figures and the first tables show."""
        return leading(self.metrics)

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """Every measure by its key."""
        return measures_of(self.metrics)

    def key(self, statistic: str, metric: Metric | None = None) -> str:
        """The key of a measure of a metric, the leading one if not given."""
        return prefix_of(metric or self.lead, self.metrics) + statistic

    @property
    def grid(self) -> ParameterGrid:
        """The evaluation's."""
        return self.arms[0].runs[0].evaluations.grid

    @property
    def seeds(self) -> str:
        """How many the samplers have, in words."""
        return span([len(arm.runs) for arm in self.arms], "seed")

    @property
    def runs(self) -> list[FinishedRun]:
        """Those of all arms."""
        return [run for arm in self.arms for run in arm.runs]

    @cached_property
    def alignment(self) -> Alignment:
        """The evaluations of the runs that belong together."""
        return self.align(self.runs)

    @property
    def points(self) -> np.ndarray:
        """How far the runs have come wherever they are compared, in the unit of the alignment."""
        return self.alignment.points

    @property
    def reached(self) -> str:
        """How far they have come in the end, in words."""
        return self.alignment.reached

    def places(self, run: FinishedRun) -> list[int]:
        """The place of each point's evaluation among all those of a run."""
        return self.alignment.places[run.folder].tolist()

    def at(self, run: FinishedRun, point: int) -> dict[str, np.ndarray]:
        """The values of a run at a point, each [tasks, inner steps + 1]."""
        return run.evaluations.at(self.places(run)[point])

    @cached_property
    def inner_steps(self) -> list[int]:
        """The inner steps after which results are reported."""
        return reported_steps(self.arms[0].runs[0].evaluations.losses.shape[-1] - 1)

    @cached_property
    def _statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Each statistic by arm and key, [seeds, evaluations, inner steps + 1]."""
        found = {}
        for arm in self.arms:
            of_runs = [[self._statistics_at(run, i) for i in range(len(self.points))] for run in arm.runs]
            found[arm.name] = {
                name: np.array([[of_evaluation[name] for of_evaluation in of_run] for of_run in of_runs])
                for name in of_runs[0][0]
            }
        return found

    def _statistics_at(self, run: FinishedRun, point: int, left_out: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return run_statistics(self.at(run, point), self.metrics, run.evaluations.draws, left_out)

    def values(self, arm: Arm, key: str) -> np.ndarray:
        """A measure of every run of an arm, [seeds, evaluations, inner steps + 1]."""
        return self._statistics[arm.name][self.measures[key].statistic]

    @cached_property
    def estimates(self) -> dict[tuple[str, str], Estimate]:
        """By measure and arm, over [evaluations, inner steps + 1]."""
        found = {}
        for key, measure in self.measures.items():
            for arm in self.arms:
                of_costs = estimate(as_cost(self.values(arm, key), measure), measure.aggregate)
                found[key, arm.name] = _values_of(of_costs, measure)
        return found

    def pairs(self, arm: Arm) -> list[tuple[FinishedRun, FinishedRun]]:
        """The runs of an arm with the baseline's of the same seeds; none of the baseline itself."""
        baseline = next((each for each in self.arms if each.name == self.baseline), None)
        if baseline is None or baseline is arm:
            return []
        theirs = dict(zip(baseline.seeds, baseline.runs, strict=True))
        return [(run, theirs[run.seed]) for run in arm.runs if run.seed in theirs]

    @cached_property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """To the baseline at the last evaluation, by measure and arm, over [inner steps + 1]; p after Holm.

        A task that has diverged in one of two runs is left out of both. The correction is for the number of samplers
        that are compared, at one measure and inner step.
        """
        paired = {arm.name: [self._paired_statistics(*pair) for pair in self.pairs(arm)] for arm in self.arms}
        paired = {name: pairs for name, pairs in paired.items() if pairs}
        found = {}
        for key, measure in self.measures.items() if paired else ():
            of_measure = {}
            for name, pairs in paired.items():
                ours, theirs = (np.array([pair[side][measure.statistic] for pair in pairs]) for side in (0, 1))
                of_costs = difference(as_cost(ours, measure), as_cost(theirs, measure), measure.aggregate)
                of_measure[name] = of_costs._replace(estimate=_values_of(of_costs.estimate, measure))
            p = np.array([each.p for each in of_measure.values()])
            p = np.stack([adjust_holm(column) for column in p.T.tolist()], axis=1)
            for row, (name, each) in zip(p, of_measure.items(), strict=True):
                found[key, name] = each._replace(p=row)
        return found

    def _paired_statistics(self, ours: FinishedRun, theirs: FinishedRun) -> tuple[dict[str, np.ndarray], ...]:
        """The statistics of two runs in the end, over the tasks that have diverged in neither."""
        left_out = self._diverged(ours, -1) | self._diverged(theirs, -1)
        return tuple(self._statistics_at(run, -1, left_out) for run in (ours, theirs))

    def improvement(self, key: str) -> dict[tuple[str, str], Estimate]:
        """Probability that a run of the first arm is better than one of the second, over [inner steps + 1]."""
        last = {arm.name: as_cost(self.values(arm, key)[:, -1], self.measures[key]) for arm in self.arms}
        return {(a, b): probability_of_improvement(last[a], last[b]) for a in last for b in last if a != b}

    def maps(self, arm: Arm, point: int) -> np.ndarray:
        """Mean of every cell over the seeds whose task did not diverge, [cells, inner steps + 1]; leading metric."""
        return mean_of_known(self.seed_maps(arm, self.lead, point))

    def cells(self, arm: Arm, metric: Metric) -> tuple[Estimate, np.ndarray]:
        """The same of any metric in the end, and the number of those seeds; [cells, reported inner steps]."""
        maps = self.seed_maps(arm, metric, -1)[..., self.inner_steps]
        return estimate_known(maps), (~np.isnan(maps)).sum(axis=0)

    def seed_maps(self, arm: Arm, metric: Metric, point: int) -> np.ndarray:
        """Mean of every cell of each run, [seeds, cells, inner steps + 1]; NaN where all draws diverged."""
        return np.array([self._map(run, metric, point, self._diverged(run, point)) for run in arm.runs])

    def difference_maps(self, arm: Arm, point: int) -> np.ndarray | None:
        """The same of the difference to the baseline, over the pairs of seeds of which neither diverged."""
        found = []
        for ours, theirs in self.pairs(arm):
            left_out = self._diverged(ours, point) | self._diverged(theirs, point)
            found.append(self._map(ours, self.lead, point, left_out) - self._map(theirs, self.lead, point, left_out))
        return mean_of_known(np.array(found)) if found else None

    def _diverged(self, run: FinishedRun, point: int) -> np.ndarray:
        return diverged_tasks(self.at(run, point)[SCORE])

    def _map(self, run: FinishedRun, metric: Metric, point: int, left_out: np.ndarray) -> np.ndarray:
        values = self.at(run, point)[key_of(metric, self.metrics)]
        columns = range(values.shape[1])
        return np.stack([cell_means(values[:, k], left_out[:, k], run.evaluations.draws) for k in columns], axis=1)

    @cached_property
    def health(self) -> dict[tuple[str, str], Estimate]:
        """How a sampler is doing, by figure and arm, over [evaluations]; NaN where it is not known."""
        return {
            (key, arm.name): estimate(np.array([health_of(run, key)[self.places(run)] for run in arm.runs]), np.mean)
            for key in HEALTH
            for arm in self.arms
        }

    def worst_task(self, arm: Arm, inner_step: int) -> WorstTask | None:
        """The worst value of the leading metric that has not diverged in the end; None if all tasks have."""
        worst, worst_cost = None, -np.inf
        for run in arm.runs:
            values = self.at(run, -1)[key_of(self.lead, self.metrics)][:, inner_step]
            diverged = self._diverged(run, -1)[:, inner_step] | np.isnan(values)
            costs = np.where(diverged, -np.inf, as_cost(values, self.lead))
            i = int(costs.argmax())
            if costs[i] > worst_cost:
                task = dict(zip(self.grid.names, run.evaluations.tasks[i].tolist(), strict=True))
                worst, worst_cost = WorstTask(float(values[i]), task, run.seed), costs[i]
        return worst


def _values_of(costs: Estimate, measure: Measure) -> Estimate:
    """The estimate of a measure from that of its costs."""
    value, *ends = (as_cost(part, measure) for part in costs)
    return Estimate(value, np.minimum(*ends), np.maximum(*ends))
