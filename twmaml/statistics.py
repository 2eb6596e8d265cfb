"""Statistics of evaluation losses: means and tails over the grid of tasks, diverged tasks set apart. NumPy only."""

import math

import numpy as np

REPORTED_STEPS = (0, 1, 5, 10)
"""Inner steps after which losses are reported, as far as evaluation goes; its last step is reported too."""

TAILS = (10, 30)
"""Percentages of the worst tasks over which a conditional value at risk is reported."""

DIVERGED_FACTOR = 10.0
"""A task has diverged when its loss exceeds so many times what it is without adapting: an order of magnitude, so that
a task that is merely adapted badly stays in the tail where it belongs."""


def reported_steps(steps: int) -> list[int]:
    """The inner steps, of so many, after which losses are reported."""
    return sorted({k for k in REPORTED_STEPS if k < steps} | {steps})


def summarize(losses: np.ndarray, draws: int) -> dict[str, float]:
    """The figures of an evaluation by metric name.

    Every statistic is over the grid's cells, a cell standing for the mean of its draws, at one inner
    step: `eval/<statistic>_step_<k>`, and without suffix after the last. Diverged tasks are left out of
    all of them and counted in `eval/diverged`; a statistic is NaN only where every task diverged.

    Args:
        losses: [tasks, inner steps + 1], `draws` tasks after one another for each cell.
        draws: tasks of a cell.
    """
    diverged = diverged_tasks(losses)
    last = losses.shape[1] - 1
    figures = {f"eval/{name}": value for name, value in _statistics(losses, diverged, draws, last).items()}
    for k in reported_steps(last):
        of_step = _statistics(losses, diverged, draws, k)
        figures |= {f"eval/{name}_step_{k}": value for name, value in of_step.items()}
    return figures


def _statistics(losses: np.ndarray, diverged: np.ndarray, draws: int, k: int) -> dict[str, float]:
    cells = cell_means(losses[:, k], diverged[:, k], draws)
    cells = np.sort(cells[~np.isnan(cells)])[::-1]
    if cells.size == 0:
        statistics = dict.fromkeys(["loss", "std", "worst", *(f"cvar_{tail}" for tail in TAILS)], math.nan)
    else:
        statistics = {"loss": cells.mean(), "std": cells.std(), "worst": cells[0]}
        statistics |= {f"cvar_{tail}": cvar(cells, tail) for tail in TAILS}
    return {name: float(v) for name, v in statistics.items()} | {"diverged": float(diverged[:, k].sum())}


def diverged_tasks(losses: np.ndarray) -> np.ndarray:
    """Marks [tasks, steps] where adapting has made a task far worse than no adaptation would.

    That is a loss that is not finite, or above `DIVERGED_FACTOR` times both the task's own loss before
    adapting and the median one (the own alone would mark tasks that happen to start near zero).
    """
    unadapted = losses[:, :1]
    finite = unadapted[np.isfinite(unadapted)]
    bound = DIVERGED_FACTOR * np.maximum(unadapted, np.median(finite) if finite.size else 0)
    return ~(np.isfinite(losses) & (losses <= bound))


def cell_means(losses: np.ndarray, diverged: np.ndarray, draws: int) -> np.ndarray:
    """Mean over each cell's draws that have not diverged; NaN where all of them have."""
    kept = np.where(diverged, 0, losses).reshape(-1, draws).sum(axis=1)
    count = (~diverged).reshape(-1, draws).sum(axis=1)
    return np.where(count > 0, kept / np.maximum(count, 1), np.nan)


def cvar(losses: np.ndarray, percent: float) -> float:
    """Conditional value at risk: the mean of the worst `percent` % of the losses (at least one of them).

    A loss that lies on the border of the tail counts with the share of it that lies inside.

    References:
        Rockafellar, Uryasev 2002, Conditional value-at-risk for general loss distributions, proposition 8.
    """
    worst_first = np.sort(losses)[::-1]
    tail = max(percent / 100 * worst_first.size, 1.0)
    share = np.clip(tail - np.arange(worst_first.size), 0, 1)
    return float(worst_first @ share / tail)
