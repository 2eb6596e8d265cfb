"""Intervals and tests over seeds."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

CONFIDENCE = 0.95

RESAMPLES = 2000

_AT_ONCE = 4_000_000  # numbers that a resampling holds in memory


def unknown_as_worst(aggregate: Callable[..., Any]) -> Callable[..., Any]:
    """An aggregate of ranks of costs: a run whose tasks have all diverged is the worst. NaN where such runs count."""

    def of_ranks(values: np.ndarray, axis: int = 0) -> Any:
        with np.errstate(invalid="ignore"):
            found = aggregate(np.where(np.isnan(values), np.inf, values), axis=axis)
        return np.where(np.isinf(found), np.nan, found)

    return of_ranks


class Estimate(NamedTuple):
    """A figure with its 95 % bootstrap interval over seeds, NaN where there is only one seed."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Difference(NamedTuple):
    """A figure minus the baseline's on the same seeds."""

    estimate: Estimate
    p: np.ndarray
    """From a two-sided sign-flip permutation test, before any correction; NaN where a run has no value."""
    pairs: int


def estimate(values: np.ndarray, aggregate: Callable[..., Any], axis: int = 0) -> Estimate:
    """Aggregates over seeds, with a percentile bootstrap interval: seeds are resampled, not tasks.

    All tasks of a run share its network, so that they are no independent sample; all entries of `values` are
    resampled alike.

    Args:
        values: with the seeds along `axis`.
        aggregate: takes values and axis.
        axis: of the seeds.
    """
    value = aggregate(values, axis=axis)
    if values.shape[axis] < 2:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)  # NaN among the values stays NaN
        interval = scipy.stats.bootstrap(
            (values,),
            aggregate,
            axis=axis,
            n_resamples=RESAMPLES,
            batch=max(1, _AT_ONCE // values.size),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Estimate(value, interval.low, interval.high)


def estimate_known(values: np.ndarray) -> Estimate:
    """The mean of each entry of [seeds, ...] over the seeds that have a value there; NaN where none has."""
    found = Estimate(*np.full((3, *values.shape[1:]), np.nan))
    known = np.moveaxis(~np.isnan(values), 0, -1)
    for seeds in np.unique(known[known.any(axis=-1)], axis=0):
        alike = (known == seeds).all(axis=-1)
        for part, of_alike in zip(found, estimate(values[seeds][:, alike], np.mean), strict=True):
            part[alike] = of_alike
    return found


def difference(values: np.ndarray, baseline: np.ndarray, aggregate: Callable[..., Any]) -> Difference:
    """Compares runs with the baseline's runs of the same seeds.

    Args:
        values: [seeds, ...]
        baseline: of the same seeds, in the same order.
        aggregate: of the differences; takes values and axis.
    """
    pairs = len(values)
    unknown = np.isnan(values - baseline).any(axis=0)
    found = Estimate(*(np.where(unknown, np.nan, part) for part in estimate(values - baseline, aggregate)))
    if pairs < 2:
        return Difference(found, np.full_like(found.value, np.nan), pairs)
    test = scipy.stats.permutation_test(
        (values, baseline),
        lambda x, y, axis: aggregate(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        axis=0,
        n_resamples=9999,
        batch=max(1, _AT_ONCE // values.size),
        rng=np.random.default_rng(0),
    )
    return Difference(found, np.where(unknown, np.nan, test.pvalue), pairs)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for there being several comparisons (NaN counts as none).

    References:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = [i for i in np.argsort(p_values) if not np.isnan(p_values[i])]
    adjusted = [np.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Probability that a run of the first has a lower cost than a run of the second; ties count half.

    A run without a value, as all of its tasks diverged, has the highest.

    Args:
        first: [seeds, ...]
        second: [other seeds, ...]

    References:
        Agarwal et al. 2021, section 4.3; it is the Mann-Whitney U statistic, as a share of all pairs.
    """
    first, second = (np.where(np.isnan(values), np.inf, values) for values in (first, second))
    lower = (first[:, None] < second[None]) + 0.5 * (first[:, None] == second[None])
    value = lower.mean(axis=(0, 1))
    rng = np.random.default_rng(0)
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in lower.shape[:2]]
    resampled = np.einsum("bi,ij...,bj->b...", *(counts[0], lower, counts[1]), optimize=True)
    if min(lower.shape[:2]) < 2:
        resampled = np.full_like(resampled, np.nan)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return Estimate(value, low, high)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where all are."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
