"""Evaluation: fixed tasks spanning the parameter space, and their losses after 0 ... n inner steps."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from twmaml.adaptation.base import adaptation_path
from twmaml.meta_learning.learner import MetaLearner
from twmaml.space.grid import ParameterGrid
from twmaml.tasks.regression import Examples, Regression
from twmaml.types import MetaParams

_TASKS_AT_ONCE = 225  # so that what is adapted stays in the cache, whatever the number of tasks


# Training splits the key of its seed in two; folding in another number first leaves that family of keys.
_EVALUATION, _EXAMPLES = 0x6576616C, 0x65786D70


class EvaluationTasks(NamedTuple):
    """The tasks to evaluate on and the keys of their data: the same for every sampler and every run."""

    tasks: Float[Array, "tasks axes"]
    keys: Key[Array, " tasks"]
    cells: Int[Array, " tasks"]
    """The cell of the queue that holds each task."""


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
        return EvaluationTasks(tasks, jax.random.split(key, tasks.shape[0]), self.learner.family.grid.locate(tasks))

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

        return jax.lax.map(losses_of_one, (fixed.tasks, fixed.keys), batch_size=_TASKS_AT_ONCE)

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
