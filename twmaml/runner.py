"""The method: one meta-step, many of them as one compiled program, many runs around it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt32

from twmaml.adaptation import Adaptation, adapt
from twmaml.models import Model
from twmaml.priority_queue import PriorityQueue, empty_queue, queue_metrics, record
from twmaml.samplers import Draw, Sampler, is_distribution
from twmaml.tasks.base import Outcome, TaskFamily
from twmaml.types import LossOf, MetaParams, Params, Predict, Step


class RunState(NamedTuple):
    """Everything that training changes, and the key that all its randomness comes from."""

    meta_params: MetaParams
    opt_state: optax.OptState
    queue: PriorityQueue
    key: Key[Array, ""]
    step: Step


class Chunk(NamedTuple):
    """What a chunk of meta-steps leaves to be logged."""

    metrics: dict[str, Float[Array, ""]]
    """By name: means over the steps for `train` and `weights` (the maximum for `weights/max`), the state
    after the last step for `queue` and `sampler`."""
    first_failure: Int[Array, ""]
    """The first step at which a loss is not finite or a score is negative or none, or would be for the weights are not
    finite or the probabilities are none; else `NO_FAILURE`. The last two are looked at only after the last step."""


NO_FAILURE = jnp.iinfo(jnp.int32).max


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

    def train_chunk(self, state: RunState, steps: Int[Array, ""]) -> tuple[RunState, Chunk]:
        """So many meta-steps of one run. The number is traced: chunks of any length are one program."""

        def body(_: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            state, sums, largest_weight, first_failure = carry
            new_state, draw, outcomes = self.meta_step(state)
            sound = jnp.all(jnp.isfinite(outcomes.loss) & (outcomes.score >= 0))
            return (
                new_state,
                jax.tree.map(jnp.add, sums, _step_metrics(draw, outcomes)),
                jnp.maximum(largest_weight, jnp.max(draw.weights)),
                jnp.minimum(first_failure, jnp.where(sound, NO_FAILURE, state.step)),
            )

        _, *draw_and_outcomes = jax.eval_shape(self.meta_step, state)
        sums = jax.tree.map(jnp.zeros_like, jax.eval_shape(_step_metrics, *draw_and_outcomes))
        carry = (state, sums, jnp.float32(0), jnp.int32(NO_FAILURE))
        state, sums, largest_weight, first_failure = jax.lax.fori_loop(0, steps, body, carry)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.meta_params)]
        p = self.sampler.probabilities(state.queue, state.step)
        sound = jnp.stack([*finite, is_distribution(p)])  # what the last update did
        first_failure = jnp.minimum(first_failure, jnp.where(jnp.all(sound), NO_FAILURE, state.step))
        metrics = {
            **{name: total / steps for name, total in sums.items()},
            "weights/max": largest_weight,
            **queue_metrics(state.queue),
            "queue/entropy": -jnp.sum(jax.scipy.special.xlogy(p, p)),  # of the sampler's distribution, in nats
            **{f"sampler/{name}": value for name, value in self.sampler.metrics(state.step).items()},
        }
        return state, Chunk(metrics, first_failure)


class _MetaBatch(NamedTuple):
    """The tasks of a meta-step, the keys of their data, and what each one's loss counts for."""

    keys: Key[Array, " tasks"]
    tasks: Float[Array, "tasks axes"]
    weights: Float[Array, " tasks"]


def _step_metrics(draw: Draw, outcomes: Outcome) -> dict[str, Float[Array, ""]]:
    """What is summed over the steps of a chunk."""
    return {
        "train/loss": jnp.mean(outcomes.loss),
        "train/loss_std": jnp.std(outcomes.loss),
        **{f"train/{name}": jnp.mean(value) for name, value in outcomes.metrics.items()},
        "weights/effective_sample_size": jnp.sum(draw.weights) ** 2 / jnp.sum(draw.weights**2),
    }


def _bind(model: Model, params: Params) -> Predict:
    return partial(model.apply, params)


def over_runs(program: Callable[[Any, Any], Any], sharding: NamedSharding) -> Any:
    """The program of one run, for many: the first argument and the result gain a leading axis of runs.

    The runs, whose number must be a multiple of the devices', are spread over the devices; on each, one run after
    the other on a CPU, where vmap over runs costs 14-17 %, and all at once on an accelerator.

    Args:
        program: of a run's part, and of what all runs share.
        sharding: of the runs (`shard_runs`).
    """
    everywhere = PartitionSpec()

    def on_one_device(parts: Any, shared: Any) -> Any:
        one = lambda part: program(part, shared)  # noqa: E731
        return jax.lax.map(one, parts) if jax.default_backend() == "cpu" else jax.vmap(one)(parts)

    many = jax.shard_map(
        on_one_device,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, everywhere),
        out_specs=sharding.spec,
        check_vma=False,
    )
    return jax.jit(many, in_shardings=(sharding, NamedSharding(sharding.mesh, everywhere)), out_shardings=sharding)


def shard_runs(runs: int, task_devices: int = 1) -> NamedSharding:
    """Spreads the axis of runs over the devices, `task_devices` of them for a run, over no more than there are runs."""
    devices = jax.devices()
    at_once = max(1, min(runs, len(devices) // task_devices))
    mesh = np.array(devices[: at_once * task_devices]).reshape(at_once, task_devices)
    return NamedSharding(jax.sharding.Mesh(mesh, ("runs", "tasks")), PartitionSpec("runs"))
