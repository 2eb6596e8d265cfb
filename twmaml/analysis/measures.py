"""The numbers by which runs are compared: statistics over the tasks of each, aggregated over their seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twmaml.analysis.resampling import unknown_as_worst
from twmaml.statistics import (
    SCORE,
    STATISTICS,
    Statistic,
    diverged_tasks,
    interquartile_mean,
    key_of,
    label_of,
    leading,
    statistics_of,
)
from twmaml.types import Metric


class Measure(NamedTuple):
    """A number of a set of runs."""

    label: str
    metric: Metric
    statistic: str
    """Over the tasks of a run; a key of what `run_statistics` returns."""
    aggregate: Callable[..., Any]
    """Over the seeds, of costs; takes `axis`."""
    higher_is_better: bool = False
    tail: int | None = None
    """The percentage of the worst cells, or tasks, that it looks at."""
    group: str = ""
    """The label of the metric, where a comparison has several."""

    @property
    def title(self) -> str:
        """The label with the group."""
        return f"{self.group}: {self.label}" if self.group else self.label


TAILS = tuple(sorted({statistic.tail for statistic in STATISTICS if statistic.tail}, reverse=True))

_BY_KEY = {statistic.key: statistic for statistic in STATISTICS}

_KEYS = (
    *("mean", "task_interval", "mean_iqm", "mean_median", "iqm", "sd", "worst_task", "worst_cell"),
    *(f"{of}_{tail}" for of in ("cvar", "task_cvar") for tail in TAILS),
)

_OVER_SEEDS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "mean_iqm": (", interquartile mean over seeds", unknown_as_worst(interquartile_mean)),
    "mean_median": (", median over seeds", unknown_as_worst(np.median)),
}
"""Aggregates besides the mean, of the statistic `mean`."""


def prefix_of(metric: Metric, metrics: Sequence[Metric]) -> str:
    """The beginning of the keys of a metric's measures: nothing for the score."""
    return "" if metric == metrics[0] else f"{metric.key}_"


def measures_of(metrics: Sequence[Metric]) -> dict[str, Measure]:
    """Every measure by its key, those of the leading metric first."""
    first = leading(metrics)
    measures = {}
    for metric in [first, *(each for each in metrics if each != first)]:
        prefix = prefix_of(metric, metrics)
        measures |= {f"{prefix}{key}": _measure(key, metric, prefix, len(metrics) > 1) for key in _KEYS}
        if metric == metrics[0]:
            measures["diverged"] = Measure("diverged tasks [%]", metric, "diverged", np.mean)
    return measures


def _measure(key: str, metric: Metric, prefix: str, several: bool) -> Measure:
    over_seeds, aggregate = _OVER_SEEDS.get(key, ("", np.mean))
    statistic: Statistic = _BY_KEY["mean" if over_seeds else key]
    higher = metric.higher_is_better and not statistic.spread
    return Measure(
        label=statistic.label + over_seeds,
        metric=metric,
        statistic=prefix + statistic.key,
        aggregate=aggregate,
        higher_is_better=higher,
        tail=statistic.tail,
        group=label_of(metric) if several else "",
    )


def run_statistics(
    values: Mapping[str, np.ndarray], metrics: Sequence[Metric], draws: int, left_out: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Statistics over the tasks of one evaluation, after each inner step.

    Args:
        values: the score's under `loss` and the further metrics' under their keys, each [tasks, inner steps + 1] with
            `draws` tasks after one another for each cell.
        metrics: the score, and the further ones.
        draws: tasks of a cell.
        left_out: marks tasks; those that have diverged if not given.

    Returns:
        Each statistic as an array over inner steps; `diverged`, in per cent, counts the run's own, whatever is left
        out.
    """
    diverged = diverged_tasks(values[SCORE])
    left_out = diverged if left_out is None else left_out
    found = {"diverged": 100 * diverged.mean(axis=0)}
    for metric in metrics:
        of_metric = values[key_of(metric, metrics)]
        columns = [
            statistics_of(STATISTICS, of_metric[:, k], metric, left_out[:, k], draws) for k in range(diverged.shape[1])
        ]
        for statistic in STATISTICS:
            name = prefix_of(metric, metrics) + statistic.key
            found[name] = np.array([column[statistic.key] for column in columns], float)
    return found
