"""Statistics of evaluations: means and tails over the grid of tasks, diverged tasks set apart. NumPy only."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from twmaml.types import Metric

SCORE = "loss"
"""The name of the score among the values of an evaluation, and of its mean in metrics.csv."""

VALIDATION = "validation"
"""The name of the split by which the best checkpoint is chosen and training may end early."""

REPORTED_STEPS = (0, 1, 5, 10)
"""Inner steps after which values are reported, as far as evaluation goes; its last step is reported too, and every one
where there are three."""

DIVERGED_FACTOR = 10.0
"""A task has diverged when its loss exceeds so many times what it is without adapting: an order of magnitude, so that
a task that is merely adapted badly stays in the tail where it belongs."""


@runtime_checkable
class Directed(Protocol):
    """A number of which more may be better."""

    @property
    def higher_is_better(self) -> bool:
        """Whether it is."""
        ...


def as_cost(values: Any, metric: Directed) -> Any:
    """Values as costs, of which less is better; and costs as values again, since it only changes the sign."""
    return -values if metric.higher_is_better else values


def interquartile_mean(values: np.ndarray, axis: int = 0) -> Any:
    """Mean without the lowest and the highest quarter of the values (rounded down to whole values).

    References:
        Agarwal et al. 2021, Deep reinforcement learning at the edge of the statistical precipice, section 4.3.
    """
    count = values.shape[axis]
    cut = count // 4
    middle = np.partition(values, (cut, count - cut - 1), axis).take(range(cut, count - cut), axis)
    return middle.mean(axis=axis)


def cvar(costs: np.ndarray, percent: float) -> float:
    """Conditional value at risk: the mean of the worst `percent` % of the costs (at least one of them).

    A cost that lies on the border of the tail counts with the share of it that lies inside.

    References:
        Rockafellar, Uryasev 2002, Conditional value-at-risk for general loss distributions, proposition 8.
    """
    worst_first = np.sort(costs)[::-1]
    tail = max(percent / 100 * worst_first.size, 1.0)
    share = np.clip(tail - np.arange(worst_first.size), 0, 1)
    return float(worst_first @ share / tail)


def half_width(values: np.ndarray) -> float:
    """Half the width of the normal 95 % interval of the mean; NaN of a single value.

    References:
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, Table 1.
    """
    return 1.96 * float(np.std(values, ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan


class Statistic(NamedTuple):
    """A figure of the tasks of one evaluation after one inner step."""

    key: str
    """Its name in comparisons."""
    column: str | None
    """Its name in metrics.csv, for the score; None where only comparisons have it."""
    label: str
    function: Callable[[np.ndarray], Any]
    """Takes costs."""
    of_tasks: bool = False
    """Whether of single tasks; otherwise of the means of cells."""
    tail: int | None = None
    """The percentage of the worst cells, or tasks, that it looks at."""
    spread: bool = False
    """Whether it says how far values lie apart, of which less is better whatever the values are."""


def _cvar(tail: int, column: str | None) -> Statistic:
    return Statistic(f"cvar_{tail}", column, f"CVaR, worst {tail} %", lambda costs: cvar(costs, tail), tail=tail)


def _cvar_of_tasks(tail: int) -> Statistic:
    own = {"key": f"task_cvar_{tail}", "label": f"CVaR of single tasks, worst {tail} %"}
    return _cvar(tail, None)._replace(**own, of_tasks=True)


MEAN = Statistic("mean", SCORE, "mean", np.mean)

STATISTICS = (
    MEAN,
    Statistic("sd", "std", "standard deviation over the grid", np.std, spread=True),
    Statistic("worst_cell", "worst", "worst cell mean", np.max),
    _cvar(10, "cvar_10"),
    _cvar(30, "cvar_30"),
    Statistic("iqm", None, "interquartile mean over the grid", interquartile_mean),
    Statistic("worst_task", None, "worst single task", np.max, of_tasks=True),
    _cvar(50, None),
    _cvar(5, None),
    Statistic("task_interval", None, "± 95 % over tasks of one network", half_width, of_tasks=True, spread=True),
    *(_cvar_of_tasks(tail) for tail in (50, 30, 10, 5)),
)
"""Every statistic; those of metrics.csv in the order of its columns."""

LOGGED = tuple(statistic for statistic in STATISTICS if statistic.column is not None)

DIVERGED = "diverged tasks, left out of the others"
"""The label of `diverged`, the number of tasks that have."""


def column_of(statistic: Statistic, metric: Metric | None = None) -> str:
    """The name of a logged statistic in metrics.csv, after its split: `std`, or `accuracy_std` of a further metric."""
    if metric is None:
        return f"{statistic.column}"
    return metric.key if statistic is MEAN else f"{metric.key}_{statistic.column}"


def leading(metrics: Sequence[Metric]) -> Metric:
    """The metric that runs are compared by: the family's first further one if it has any, else the score."""
    return metrics[1] if len(metrics) > 1 else metrics[0]


def label_of(metric: Metric) -> str:
    """The label of a metric with its unit."""
    return f"{metric.label} [{metric.unit}]" if metric.unit else metric.label


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number of things, in words: `1 seed`, `1,000 seeds`."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def span(numbers: Sequence[int], one: str) -> str:
    """Numbers of things, in words: `5 seeds`, or `2 to 7 seeds`."""
    least, most = min(numbers), max(numbers)
    return (f"{least:,} to " if least < most else "") + counted(most, one)


def key_of(metric: Metric, metrics: Sequence[Metric]) -> str:
    """The name of a metric's values: the score is the first of the metrics, whatever its own key is."""
    return SCORE if metric == metrics[0] else metric.key


def reported_steps(steps: int) -> list[int]:
    """The inner steps, of so many, after which values are reported."""
    return [*range(steps + 1)] if steps <= 3 else sorted({k for k in REPORTED_STEPS if k < steps} | {steps})


def summarize(
    values: Mapping[str, np.ndarray], metrics: Sequence[Metric], draws: int, split: str = "eval"
) -> dict[str, float]:
    """The figures of an evaluation by metric name.

    Every statistic is over the grid's cells, a cell standing for the mean of its draws, at one inner step:
    `<split>/<statistic>_step_<k>`, and without suffix after the last. The tasks whose score has diverged are left
    out of all of them and counted in `<split>/diverged`; a statistic is NaN only where every task has.

    Args:
        values: the score's under `loss` and the further metrics' under their keys, each [tasks, inner steps + 1] with
            `draws` tasks after one another for each cell.
        metrics: the score, and the further ones.
        draws: tasks of a cell.
        split: what the names begin with.
    """
    diverged = diverged_tasks(values[SCORE])
    last = diverged.shape[1] - 1
    figures = {}
    for suffix, k in [("", last), *((f"_step_{k}", k) for k in reported_steps(last))]:
        for metric in metrics:
            own = None if metric == metrics[0] else metric
            of_step = values[key_of(metric, metrics)][:, k]
            found = statistics_of(LOGGED, of_step, metric, diverged[:, k], draws, ordered=True)
            figures |= {f"{split}/{column_of(each, own)}{suffix}": found[each.key] for each in LOGGED}
            if own is None:
                figures[f"{split}/diverged{suffix}"] = float(diverged[:, k].sum())
    return figures


def statistics_of(
    statistics: Sequence[Statistic],
    values: np.ndarray,
    metric: Metric,
    diverged: np.ndarray,
    draws: int,
    ordered: bool = False,
) -> dict[str, float]:
    """Statistics by key, of the tasks that have not diverged; NaN where there are none.

    Args:
        statistics: which.
        values: of every task after one inner step.
        metric: what the values are.
        diverged: marks tasks.
        draws: tasks of a cell, which come after one another.
        ordered: adds up from the worst to the best, so that the order of the cells changes no digit.
    """
    costs = as_cost(values, metric)
    cells, tasks = (part[~np.isnan(part)] for part in (cell_means(costs, diverged, draws), costs[~diverged]))
    if ordered:
        cells = np.sort(cells)[::-1]

    def value(statistic: Statistic) -> float:
        of = tasks if statistic.of_tasks else cells
        found = float(statistic.function(of)) if of.size else math.nan
        return found if statistic.spread else as_cost(found, metric) + 0.0  # of -0 it makes 0

    return {statistic.key: value(statistic) for statistic in statistics}


def diverged_tasks(losses: np.ndarray) -> np.ndarray:
    """Marks [tasks, steps] where adapting has made a task far worse than no adaptation would.

    That is a loss that is not finite, or above `DIVERGED_FACTOR` times both the task's own loss before
    adapting and the median one (the own alone would mark tasks that happen to start near zero).
    """
    unadapted = losses[:, :1]
    finite = unadapted[np.isfinite(unadapted)]
    bound = DIVERGED_FACTOR * np.maximum(unadapted, np.median(finite) if finite.size else 0)
    return ~(np.isfinite(losses) & (losses <= bound))


def cell_means(values: np.ndarray, diverged: np.ndarray, draws: int) -> np.ndarray:
    """Mean over each cell's draws that have not diverged; NaN where all of them have."""
    kept = np.where(diverged, 0, values).reshape(-1, draws).sum(axis=1)
    count = (~diverged).reshape(-1, draws).sum(axis=1)
    return np.where(count > 0, kept / np.maximum(count, 1), np.nan)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, over the entries that are finite in both; NaN if one of the two does not vary."""
    known = np.isfinite(first) & np.isfinite(second)
    ranks = [_mean_ranks(values[known]) for values in (first, second)]
    a, b = (rank - rank.mean() if rank.size else rank for rank in ranks)
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else math.nan


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value; equal values share the mean of theirs."""
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(starts, append=values.size)
    ranks = np.empty(values.size)
    ranks[order] = np.repeat(starts + (counts - 1) / 2, counts)
    return ranks
