"""Evaluation: fixed tasks spanning the parameter space, and every metric after 0 ... n inner steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from twmaml.adaptation.base import adaptation_path, bind
from twmaml.meta_learning.learner import MetaLearner
from twmaml.models.base import HasProtocol
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import PriorityQueue
from twmaml.statistics import counted, key_of, leading
from twmaml.types import Fast, MetaParams, Metric

# Training splits the key of its seed in two; folding in another number first leaves that family of keys.
_EVALUATION, _PICTURES, _PLACES = 0x6576616C, 0x65786D70, 0x706C6163

_ON_ACCELERATORS = 16
"""Times as many tasks side by side as on a CPU: there one run of a regression is evaluated eight times as fast then."""


class EvaluationTasks(NamedTuple):
    """The tasks to evaluate on and the keys of their data: the same for every sampler and every run."""

    tasks: Float[Array, "tasks axes"]
    keys: Key[Array, " tasks"]
    cells: Int[Array, " tasks"] | None
    """The cell of the queue that holds each task; None where the queue has another grid."""

    def look_up(self, queue: PriorityQueue) -> tuple[Float[Array, " tasks"], Int[Array, " tasks"]] | tuple[None, None]:
        """The losses and visits that a queue holds for the cells of the tasks; None where it has no cells for them."""
        return (None, None) if self.cells is None else (queue.losses[self.cells], queue.visits[self.cells])


class Judgement(NamedTuple):
    """The figures of one evaluation; those of all runs have a leading axis of runs."""

    results: dict[str, Float[Array, "tasks steps"]]
    """Every task's score (`loss`) and metrics by key, after 0, 1, ... inner steps."""
    queue_losses: Float[Array, " tasks"] | None
    """The queue's loss for the cell of each task; None where it has no cells for them."""
    visits: Int[Array, " tasks"] | None
    """How often that cell had been drawn; None likewise."""


@dataclass(frozen=True)
class Evaluation:
    """A split: the tasks that runs are judged on.

    Args:
        learner: says what a task is and how to adapt to it; its family is the split's.
        grid: the evaluation tasks sit at the centres of its cells, or anywhere inside them.
        steps: inner steps.
        draws: tasks of each cell, with independent draws of support and query data.
        queries: query points of a draw.
        seed: of the data; evaluation shares no key with training, whatever the two seeds are.
        queue_grid: the training family's; None if it is another one than the split's.
        data_note: how far the split's data is that of training, in words.
        inside_cells: whether each task is drawn uniformly from its cell, instead of lying at the centre.
    """

    learner: MetaLearner
    grid: ParameterGrid
    steps: int
    draws: int
    queries: int
    seed: int = 0
    queue_grid: ParameterGrid | None = None
    data_note: str = ""
    inside_cells: bool = False

    @property
    def metrics(self) -> Sequence[Metric]:
        """The family's score and its metrics."""
        return [self.learner.family.score, *self.learner.family.metrics]

    @property
    def leading(self) -> str:
        """The name in metrics.csv, behind that of the split, of the metric that runs are compared by."""
        return key_of(leading(self.metrics), self.metrics)

    @property
    def protocol(self) -> str:
        """All that a figure must agree in with another that it is compared with."""
        learner = self.learner
        parts = [
            learner.family.protocol,
            self.data_note,
            counted(learner.shots, "shot"),
            counted(self.queries, "query", "queries"),
            counted(self.steps, "inner step"),
            learner.model.protocol if isinstance(learner.model, HasProtocol) else "",
            counted(self.grid.size * self.draws, "task") + (" inside their cells" if self.inside_cells else ""),
        ]
        return ", ".join(part for part in parts if part)

    def tasks(self) -> EvaluationTasks:
        """`draws` times every centre of the grid, or so many tasks from every cell."""
        key = jax.random.fold_in(jax.random.key(self.seed), _EVALUATION)
        if self.inside_cells:
            every = jnp.repeat(jnp.arange(self.grid.size, dtype=jnp.int32), self.draws)
            tasks = self.grid.sample_in(jax.random.fold_in(jax.random.key(self.seed), _PLACES), every)
        else:
            tasks = jnp.repeat(self.grid.centres(), self.draws, axis=0)
        cells = None if self.queue_grid is None else self.queue_grid.locate(tasks)
        return EvaluationTasks(tasks, jax.random.split(key, tasks.shape[0]), cells)

    def results(
        self, meta_params: MetaParams, fixed: EvaluationTasks, data: PyTree[Array] = ()
    ) -> dict[str, Float[Array, "tasks steps"]]:
        """Every task's score (`loss`) and metrics by key, on query data after 0, 1, ... `steps` inner steps."""
        learner = self.learner

        def results_of_one(task_and_key: tuple[Array, Array]) -> dict[str, Array]:
            task, key = task_and_key
            episode, support, adapt_key, query_key = learner.begin(key, task, data)
            loss_of = learner.loss_of(episode, support)
            judge = learner.judge(meta_params, query_key, episode, self.queries)

            def observe(fast: Fast) -> dict[str, Array]:
                outcome = judge(fast)
                return {"loss": outcome.score, **{m.key: outcome.metrics[m.key] for m in learner.family.metrics}}

            return adaptation_path(
                learner.adaptation, learner.model, meta_params, loss_of, adapt_key, self.steps, observe
            )

        return jax.lax.map(results_of_one, (fixed.tasks, fixed.keys), batch_size=self._at_once)

    @property
    def _at_once(self) -> int:
        """Tasks that are adapted side by side."""
        if self.learner.tasks_at_once is not None:
            return self.learner.tasks_at_once
        many = 1 if jax.default_backend() == "cpu" else _ON_ACCELERATORS
        return many * self.learner.family.evaluated_at_once

    def contexts(
        self, meta_params: MetaParams, fixed: EvaluationTasks, data: PyTree[Array] = ()
    ) -> Float[Array, "tasks size"] | None:
        """The adapted numbers of every task after the inner steps of training; None where weights are adapted."""
        learner, adaptation = self.learner, self.learner.adaptation
        if jax.eval_shape(lambda params: adaptation.context(adaptation.start(params)), meta_params) is None:
            return None

        def context_of_one(task_and_key: tuple[Array, Array]) -> Any:
            task, key = task_and_key
            episode, support, adapt_key, _ = learner.begin(key, task, data)
            loss_of, steps = learner.loss_of(episode, support), max(adaptation.steps, 1)
            path = adaptation_path(
                adaptation, learner.model, meta_params, loss_of, adapt_key, steps, adaptation.context
            )
            return path[-1]

        return jax.lax.map(context_of_one, (fixed.tasks, fixed.keys), batch_size=self._at_once)

    def pictures(self, meta_params: MetaParams, data: PyTree[Array] = ()) -> tuple[Float[Array, "tasks axes"], Any]:
        """Three tasks, and the family's pictures of them along the first axis of every array; none if it has none.

        The first parameter is low, in the middle and high (10, 50 and 90 % of its range), the others are in
        the middle. Their data is neither training's nor evaluation's.
        """
        learner = self.learner
        key = jax.random.fold_in(jax.random.key(self.seed), _PICTURES)
        position = jnp.full((3, len(self.grid.axes)), 0.5).at[:, 0].set(jnp.array([0.1, 0.5, 0.9]))

        def picture(task: Array) -> Any:
            episode = learner.episode(key, task, data)
            support = learner.collect_support(key, episode)
            loss_of = learner.loss_of(episode, support)

            def path(observe: Any) -> Any:
                def of_fast(fast: Fast) -> Any:
                    return observe(bind(learner.adaptation, learner.model, meta_params, fast))

                return adaptation_path(
                    learner.adaptation, learner.model, meta_params, loss_of, key, self.steps, of_fast
                )

            return learner.family.picture(episode, support, path)

        tasks = self.grid.at(position)
        return tasks, jax.vmap(picture)(tasks)
