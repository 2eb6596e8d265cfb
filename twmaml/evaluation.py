"""Evaluation: fixed tasks spanning the parameter space, their losses after 0 ... n inner steps, and the tails."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from twmaml.adaptation import adaptation_path
from twmaml.grid import ParameterGrid
from twmaml.runner import MetaLearner
from twmaml.tasks.base import Examples, Regression
from twmaml.types import MetaParams

REPORTED_STEPS = (0, 1, 5, 10)
"""Inner steps after which losses are reported, as far as evaluation goes; its last step is reported too."""

TAILS = (10, 30)
"""Percentages of the worst tasks over which a conditional value at risk is reported."""

DIVERGED_FACTOR = 10.0
"""A task has diverged when its loss exceeds so many times what it is without adapting: an order of magnitude, so that
a task that is merely adapted badly stays in the tail where it belongs."""

_TASKS_AT_ONCE = 225  # so that what is adapted stays in the cache, whatever the number of tasks


# Training splits the key of its seed in two; folding in another number first leaves that family of keys.
_EVALUATION, _EXAMPLES = 0x6576616C, 0x65786D70


class EvaluationTasks(NamedTuple):
    """The tasks to evaluate on and the keys of their data: the same for every sampler and every run."""

    tasks: Float[Array, "tasks axes"]
    keys: Key[Array, " tasks"]


class Example(NamedTuple):
    """A task of a regression before and after adapting, to look at."""

    task: Float[Array, " axes"]
    support: Examples
    x: Float[Array, " points"]
    target: Float[Array, " points"]
    predictions: Float[Array, "steps points"]
    """The network's outputs after 0, 1, ... inner steps."""


@dataclass(frozen=True)
class Evaluation:
    """What evaluation does.

    Args:
        learner: says what a task is and how to adapt to it.
        grid: one evaluation task sits at the centre of each of its cells.
        steps: inner steps.
        draws: independent draws of support and query data for each cell.
        queries: query points of a draw.
        seed: of the data; evaluation shares no key with training, whatever the two seeds are.
    """

    learner: MetaLearner
    grid: ParameterGrid
    steps: int
    draws: int
    queries: int
    seed: int = 0

    def tasks(self) -> EvaluationTasks:
        """`draws` times every centre of the grid."""
        key = jax.random.fold_in(jax.random.key(self.seed), _EVALUATION)
        tasks = jnp.repeat(self.grid.centres(), self.draws, axis=0)
        return EvaluationTasks(tasks, jax.random.split(key, tasks.shape[0]))

    def losses(self, meta_params: MetaParams, fixed: EvaluationTasks) -> Float[Array, "tasks steps"]:
        """Query loss of every task after 0, 1, ... `steps` inner steps."""

        def losses_of_one(task_and_key: tuple[Array, Array]) -> Array:
            task, key = task_and_key
            support_key, adapt_key, query_key = jax.random.split(key, 3)
            learner = self.learner
            return adaptation_path(
                learner.adaptation,
                meta_params,
                learner.model,
                learner.support_loss(support_key, task),
                adapt_key,
                self.steps,
                observe=lambda params: learner.query_outcome(params, query_key, task, self.queries).score,
            )

        return jax.lax.map(losses_of_one, tuple(fixed), batch_size=_TASKS_AT_ONCE)

    def examples(self, meta_params: MetaParams) -> Example | None:
        """Three tasks to look at, along the first axis of every array; None if the family is no regression.

        The first parameter is low, in the middle and high (10, 50 and 90 % of its range), the others are in
        the middle. Their data is neither training's nor evaluation's.
        """
        learner, family = self.learner, self.learner.family
        if not isinstance(family, Regression):
            return None
        low, high = (jnp.array([getattr(a, end) * a.scale for a in self.grid.axes.values()]) for end in ("low", "high"))
        fractions = jnp.full((3, low.size), 0.5).at[:, 0].set(jnp.array([0.1, 0.5, 0.9]))
        key = jax.random.fold_in(jax.random.key(self.seed), _EXAMPLES)
        x = jnp.linspace(family.x_low, family.x_high, 200)

        def example(task: Array) -> Example:
            support = family.collect(key, task, lambda inputs: inputs, learner.shots)
            predictions = adaptation_path(
                learner.adaptation,
                meta_params,
                learner.model,
                lambda predict, _: family.outcome(predict, support).loss,
                key,
                self.steps,
                observe=lambda params: learner.model.apply(params, x[:, None])[:, 0],
            )
            return Example(task, support, x, family.target(family.parameters(task), x), predictions)

        return jax.vmap(example)(low + fractions * (high - low))

    def reported_steps(self) -> list[int]:
        """The inner steps of which the summary tells."""
        return sorted({k for k in REPORTED_STEPS if k < self.steps} | {self.steps})

    def summarize(self, losses: np.ndarray) -> dict[str, float]:
        """The evaluation's figures by metric name.

        Every statistic is over the grid's cells, a cell standing for the mean of its draws, at one inner
        step: `eval/<statistic>_step_<k>`, and without suffix after the last. Diverged tasks are left out of
        all of them and counted in `eval/diverged`; a statistic is NaN only where every task diverged.
        """
        diverged = diverged_tasks(losses)
        figures: dict[str, float] = {}
        for k in self.reported_steps():
            figures |= {f"eval/{name}_step_{k}": v for name, v in self._statistics(losses, diverged, k).items()}
        last = self._statistics(losses, diverged, self.steps)
        return {**{f"eval/{name}": value for name, value in last.items()}, **figures}

    def _statistics(self, losses: np.ndarray, diverged: np.ndarray, k: int) -> dict[str, float]:
        cells = cell_means(losses[:, k], diverged[:, k], self.draws)
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
