"""One meta-step."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, UInt32

from twmaml.adaptation.base import Adaptation, adapt
from twmaml.models.base import Model
from twmaml.samplers.base import Draw, Sampler
from twmaml.space.priority_queue import PriorityQueue, empty_queue, record
from twmaml.tasks.base import TaskFamily
from twmaml.types import LossOf, MetaParams, Outcome, Params, Predict, Step


class RunState(NamedTuple):
    """Everything that training changes, and the key that all its randomness comes from."""

    meta_params: MetaParams
    opt_state: optax.OptState
    queue: PriorityQueue
    key: Key[Array, ""]
    step: Step


@dataclass(frozen=True)
class MetaLearner:
    """The configured parts of a run, and how they work together."""

    family: TaskFamily
    sampler: Sampler
    model: Model
    adaptation: Adaptation
    optimizer: optax.GradientTransformation
    meta_batch: int
    shots: int
    queries: int
    task_devices: int = 1
    """Devices that share the tasks of a meta-batch; if not 1, only inside a mesh with an axis `tasks` of that size."""

    def init(self, seed: int | UInt32[Array, ""]) -> RunState:
        """The state before the first meta-step; all of a run's randomness follows from the seed."""
        init_key, loop_key = jax.random.split(jax.random.key(seed))
        meta_params = self.adaptation.init(self.model.init(init_key, self.family.example_input))
        return RunState(
            meta_params=meta_params,
            opt_state=self.optimizer.init(meta_params),
            queue=empty_queue(self.family.grid.size),
            key=loop_key,
            step=jnp.int32(0),
        )

    def meta_step(self, state: RunState) -> tuple[RunState, Draw, Outcome]:
        """One update."""
        draw_key, tasks_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        grid = self.family.grid
        draw = self.sampler.draw(draw_key, grid, state.queue, state.step, self.meta_batch)

        batch = _MetaBatch(jax.random.split(tasks_key, self.meta_batch), draw.tasks, draw.weights)
        gradient, outcomes = self._meta_gradient(state.meta_params, batch)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.meta_params)
        meta_params = optax.apply_updates(state.meta_params, updates)
        queue = record(state.queue, draw.cells, outcomes.score, state.step)
        return RunState(meta_params, opt_state, queue, state.key, state.step + 1), draw, outcomes

    def _meta_gradient(self, meta_params: MetaParams, batch: "_MetaBatch") -> tuple[MetaParams, Outcome]:
        """Gradient of the weighted mean of the losses after adapting, and the outcome of every task."""

        def meta_loss(meta_params: MetaParams, batch: _MetaBatch) -> tuple[Array, Outcome]:
            outcomes = jax.vmap(partial(self.adapted_outcome, meta_params))(batch.keys, batch.tasks)
            return jnp.sum(batch.weights * outcomes.loss) / self.meta_batch, outcomes

        gradient_of = jax.grad(meta_loss, has_aux=True)
        if self.task_devices == 1:
            return gradient_of(meta_params, batch)
        share = math.ceil(self.meta_batch / self.task_devices)
        index = jax.lax.axis_index("tasks") * share + jnp.arange(share)
        mine = jax.tree.map(lambda leaf: leaf[index % self.meta_batch], batch)
        # What pads the last devices' shares counts for nothing.
        mine = mine._replace(weights=jnp.where(index < self.meta_batch, mine.weights, 0))
        gradient, outcomes = gradient_of(meta_params, mine)
        everyones = jax.lax.all_gather(outcomes, "tasks", tiled=True)
        return jax.lax.psum(gradient, "tasks"), jax.tree.map(lambda leaf: leaf[: self.meta_batch], everyones)

    def adapted_outcome(self, meta_params: MetaParams, key: Key[Array, ""], task: Float[Array, " axes"]) -> Outcome:
        """Adapts to one task on support data and judges the adapted network on query data."""
        support_key, adapt_key, query_key = jax.random.split(key, 3)
        loss_of = self.support_loss(support_key, task)
        params = adapt(self.adaptation, meta_params, self.model, loss_of, adapt_key, self.adaptation.steps)
        return self.query_outcome(params, query_key, task, self.queries)

    def support_loss(self, key: Key[Array, ""], task: Float[Array, " axes"]) -> LossOf:
        """The loss that a task's inner steps descend: on one support set, or collected anew at each step."""
        if self.family.on_policy:

            def loss_on_new_data(predict: Predict, step_key: Key[Array, ""]) -> Array:
                data = self.family.collect(step_key, task, predict, self.shots)
                return self.family.outcome(predict, data).loss

            return loss_on_new_data
        support = self.family.collect(key, task, lambda inputs: inputs, self.shots)
        return lambda predict, _: self.family.outcome(predict, support).loss

    def query_outcome(self, params: Params, key: Key[Array, ""], task: Float[Array, " axes"], n: int) -> Outcome:
        """How weights do on `n` fresh examples of a task."""
        predict = _bind(self.model, params)
        return self.family.outcome(predict, self.family.collect(key, task, predict, n))


class _MetaBatch(NamedTuple):
    """The tasks of a meta-step, the keys of their data, and what each one's loss counts for."""

    keys: Key[Array, " tasks"]
    tasks: Float[Array, "tasks axes"]
    weights: Float[Array, " tasks"]


def _bind(model: Model, params: Params) -> Predict:
    return partial(model.apply, params)
