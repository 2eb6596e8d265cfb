"""Statistics over finished runs: what a sampler changes, and how sure that is. Seeds are sampled, tasks are paired."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from twmaml.analysis.finished_runs import Arm
from twmaml.analysis.resampling import (
    Difference,
    Estimate,
    adjust_holm,
    difference,
    estimate,
    interquartile_mean,
    mean_of_known,
    probability_of_improvement,
    rank_correlation,
    unknown_as_worst,
)
from twmaml.statistics import cell_means, cvar, diverged_tasks, reported_steps

TAILS = (50, 30, 10, 5)
"""Percentages of the worst cells over which a conditional value at risk is taken."""


class Metric(NamedTuple):
    """A figure of a set of runs: a statistic over the tasks of each, aggregated over the seeds."""

    label: str
    statistic: str
    """Over the tasks of a run; a key of what `run_statistics` returns."""
    aggregate: Callable[..., Any]
    """Over seeds; takes `axis`."""


METRICS: Mapping[str, Metric] = {
    "mean": Metric("mean", "mean", np.mean),
    "mean_iqm": Metric("mean, interquartile mean over seeds", "mean", unknown_as_worst(interquartile_mean)),
    "mean_median": Metric("mean, median over seeds", "mean", unknown_as_worst(np.median)),
    "iqm": Metric("interquartile mean over the grid", "iqm", np.mean),
    "sd": Metric("standard deviation over the grid", "sd", np.mean),
    "worst_task": Metric("worst single task", "worst_task", np.mean),
    "worst_cell": Metric("worst cell mean", "worst_cell", np.mean),
    **{f"cvar_{tail}": Metric(f"CVaR, worst {tail} %", f"cvar_{tail}", np.mean) for tail in TAILS},
    "diverged": Metric("diverged tasks [%]", "diverged", np.mean),
}
"""Every metric by its key. Diverged tasks are left out of all but the last."""

_STATISTICS = list(dict.fromkeys(metric.statistic for metric in METRICS.values()))

HEALTH = {
    "queue/entropy": "entropy of the distribution over cells [nats]",
    "weights/effective_sample_size": "effective sample size of a meta-batch",
    "weights/max": "largest importance weight",
    "queue/coverage": "share of cells visited",
    "queue/loss_rank_correlation": "rank correlation of the queue with fresh losses",
    "queue/visit_rank_correlation": "rank correlation of visits with fresh losses",
}
"""What tells how a sampler is doing: columns of metrics.csv, and two that are computed from the evaluations."""


def run_statistics(losses: np.ndarray, draws: int) -> dict[str, np.ndarray]:
    """Statistics over the tasks of one evaluation, after each inner step.

    Args:
        losses: [tasks, inner steps + 1], `draws` tasks after one another for each cell.
        draws: tasks of a cell; `worst_task` looks at single ones, the others at the means of cells.

    Returns:
        Each statistic as an array over inner steps.
    """
    diverged = diverged_tasks(losses)
    columns = []
    for k in range(losses.shape[1]):
        cells = cell_means(losses[:, k], diverged[:, k], draws)
        cells = cells[~np.isnan(cells)]
        share = {"diverged": 100 * diverged[:, k].mean()}
        if not cells.size:
            columns.append(dict.fromkeys(_STATISTICS, np.nan) | share)
            continue
        columns.append(
            {
                "mean": cells.mean(),
                "iqm": interquartile_mean(cells),
                "sd": cells.std(),
                "worst_task": losses[~diverged[:, k], k].max(),
                "worst_cell": cells.max(),
                **{f"cvar_{tail}": cvar(cells, tail) for tail in TAILS},
                **share,
            }
        )
    return {name: np.array([column[name] for column in columns], float) for name in _STATISTICS}


@dataclass(frozen=True)
class Comparison:
    """Arms that were judged on the same tasks, and what their runs came to.

    Args:
        arms: at least one.
        baseline: the name of the arm that the others are compared with, if it is among them.
    """

    arms: Sequence[Arm]
    baseline: str | None

    @cached_property
    def steps(self) -> np.ndarray:
        """The meta-steps at which every run was evaluated."""
        steps = [set(run.evaluations.steps) for arm in self.arms for run in arm.runs]
        return np.array(sorted(set.intersection(*steps)), int)

    @cached_property
    def inner_steps(self) -> list[int]:
        """The inner steps after which results are reported."""
        return reported_steps(self.arms[0].runs[0].evaluations.losses.shape[-1] - 1)

    @cached_property
    def _statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Of each arm each statistic, [seeds, evaluations, inner steps + 1]."""
        found = {}
        for arm in self.arms:
            of_runs = []
            for run in arm.runs:
                at = np.isin(run.evaluations.steps, self.steps)
                of_runs.append([run_statistics(each, run.evaluations.draws) for each in run.evaluations.losses[at]])
            found[arm.name] = {
                name: np.array([[of_evaluation[name] for of_evaluation in of_run] for of_run in of_runs])
                for name in _STATISTICS
            }
        return found

    def values(self, arm: Arm, metric: str) -> np.ndarray:
        """A metric of every run of an arm, [seeds, evaluations, inner steps + 1]."""
        return self._statistics[arm.name][METRICS[metric].statistic]

    @cached_property
    def estimates(self) -> dict[tuple[str, str], Estimate]:
        """By metric and arm, over [evaluations, inner steps + 1]."""
        return {
            (key, arm.name): estimate(self.values(arm, key), metric.aggregate)
            for key, metric in METRICS.items()
            for arm in self.arms
        }

    @cached_property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """To the baseline at the last evaluation, by metric and arm, over [inner steps + 1]; p after Holm.

        The correction is for the number of samplers that are compared, at one metric and inner step.
        """
        baseline = next((arm for arm in self.arms if arm.name == self.baseline), None)
        others = [arm for arm in self.arms if arm is not baseline]
        if baseline is None:
            return {}
        found = {}
        for key, metric in METRICS.items():
            of_metric = {}
            for arm in others:
                common = sorted(set(arm.seeds) & set(baseline.seeds))
                if common:
                    ours, theirs = (
                        self.values(each, key)[[each.seeds.index(seed) for seed in common], -1]
                        for each in (arm, baseline)
                    )
                    of_metric[arm.name] = difference(ours, theirs, metric.aggregate)
            if not of_metric:
                continue
            p = np.array([each.p for each in of_metric.values()])
            p = np.stack([adjust_holm(column) for column in p.T.tolist()], axis=1)
            for row, (name, each) in zip(p, of_metric.items(), strict=True):
                found[key, name] = each._replace(p=row)
        return found

    def improvement(self, metric: str) -> dict[tuple[str, str], Estimate]:
        """Probability that a run of the first arm is better than one of the second, over [inner steps + 1]."""
        last = {arm.name: self.values(arm, metric)[:, -1] for arm in self.arms}
        return {(a, b): probability_of_improvement(last[a], last[b]) for a in last for b in last if a != b}

    def loss_maps(self, arm: Arm, evaluation: int) -> np.ndarray:
        """Mean loss of every cell over the seeds whose task did not diverge, [cells, inner steps + 1]."""
        found = []
        for run in arm.runs:
            losses = run.evaluations.losses[np.isin(run.evaluations.steps, self.steps)][evaluation]
            diverged = diverged_tasks(losses)
            columns = range(losses.shape[1])
            found.append(
                np.stack([cell_means(losses[:, k], diverged[:, k], run.evaluations.draws) for k in columns], axis=1)
            )
        return mean_of_known(np.array(found))

    @cached_property
    def health(self) -> dict[tuple[str, str], Estimate]:
        """How a sampler is doing, by figure and arm, over [evaluations]; NaN where it is not known."""
        return {
            (key, arm.name): estimate(np.array([self._health(run, key) for run in arm.runs]), np.mean)
            for key in HEALTH
            for arm in self.arms
        }

    def _health(self, run: Any, key: str) -> np.ndarray:
        evaluations = run.evaluations
        if key in run.metrics:
            row = {int(step): i for i, step in enumerate(run.metrics["step"])}
            return run.metrics[key][[row[step] for step in self.steps]]
        last = evaluations.losses.shape[-1] - 1
        after = min(
            int(run.config.get("adaptation.steps", last)), last
        )  # adaptations of the user's own have other keys
        held = evaluations.queue_losses if key == "queue/loss_rank_correlation" else evaluations.visits
        known = np.where(evaluations.visits > 0, held, np.nan)
        pairs = zip(known, evaluations.losses[:, :, after], strict=True)
        found = np.array([rank_correlation(of_queue, fresh) for of_queue, fresh in pairs])
        return found[np.isin(evaluations.steps, self.steps)]

    @cached_property
    def units(self) -> list[str]:
        """What budgets are counted in; seconds only if the speed of every run was measured, under equal conditions."""
        summaries = [run.summary for arm in self.arms for run in arm.runs]
        conditions = {tuple(summary.get(key) for key in ("device", "runs_at_once")) for summary in summaries}
        alike = len(conditions) == 1 and None not in next(iter(conditions))
        timed = all(summary.get("meta_steps_per_second") for summary in summaries)  # 0.0 is no speed either
        return ["meta-steps", "tasks", *(["seconds"] if timed and alike else [])]

    def at_budget(self, unit: str) -> tuple[float, dict[str, np.ndarray]]:
        """Mean loss of every run when each has spent as much, as much as the one that spends least has in all.

        Args:
            unit: `meta-steps`, `tasks` (adapted to in training) or `seconds` (of training, as measured), of `units`.

        Returns:
            The budget, and for each arm the means, [seeds, inner steps + 1], linearly between evaluations.
        """

        def price(run: Any) -> float:
            if unit == "seconds":
                return 1 / float(run.summary["meta_steps_per_second"])
            return float(run.config["meta_batch"]) if unit == "tasks" else 1.0

        last = self.steps[-1]
        budget = min(last * price(run) for arm in self.arms for run in arm.runs)
        found = {}
        for arm in self.arms:
            means = self.values(arm, "mean")
            found[arm.name] = np.array(
                [
                    [np.interp(budget / price(run), self.steps, of_run[:, k]) for k in range(of_run.shape[1])]
                    for run, of_run in zip(arm.runs, means, strict=True)
                ]
            )
        return budget, found

    def worst_task(self, arm: Arm, inner_step: int) -> tuple[float, dict[str, float], int] | None:
        """The largest loss that has not diverged in the end: loss, task parameters, seed; None if all tasks have."""
        worst = (-np.inf, {}, -1)
        for run in arm.runs:
            losses = run.evaluations.losses[np.isin(run.evaluations.steps, self.steps)][-1]
            of_run = np.where(diverged_tasks(losses)[:, inner_step], -np.inf, losses[:, inner_step])
            i = int(of_run.argmax())
            if of_run[i] > worst[0]:
                names = run.evaluations.grid.names
                worst = (float(of_run[i]), dict(zip(names, run.evaluations.tasks[i], strict=True)), run.seed)
        return worst if worst[1] else None
