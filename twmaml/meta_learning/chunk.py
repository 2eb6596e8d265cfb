"""Many meta-steps as one program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from twmaml.meta_learning.learner import MetaLearner, RunState
from twmaml.samplers.base import Draw
from twmaml.samplers.cells import is_distribution
from twmaml.space.priority_queue import queue_metrics
from twmaml.types import Outcome


class Chunk(NamedTuple):
    """What a chunk of meta-steps leaves to be logged."""

    metrics: dict[str, Float[Array, ""]]
    """By name: means over the steps for `train` and `weights` (the maximum for `weights/max`), the state
    after the last step for `queue` and `sampler`."""
    first_failure: Int[Array, ""]
    """The first step at which a loss is not finite or a score is negative or none, or would be for the weights are not
    finite or the probabilities are none; else `NO_FAILURE`. The last two are looked at only after the last step."""


NO_FAILURE = jnp.iinfo(jnp.int32).max


def train_chunk(learner: MetaLearner, state: RunState, steps: Int[Array, ""]) -> tuple[RunState, Chunk]:
    """So many meta-steps of one run. The number is traced: chunks of any length are one program."""

    def body(_: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, sums, largest_weight, first_failure = carry
        new_state, draw, outcomes = learner.meta_step(state)
        sound = jnp.all(jnp.isfinite(outcomes.loss) & (outcomes.score >= 0))
        return (
            new_state,
            jax.tree.map(jnp.add, sums, _step_metrics(draw, outcomes)),
            jnp.maximum(largest_weight, jnp.max(draw.weights)),
            jnp.minimum(first_failure, jnp.where(sound, NO_FAILURE, state.step)),
        )

    _, *draw_and_outcomes = jax.eval_shape(learner.meta_step, state)
    sums = jax.tree.map(jnp.zeros_like, jax.eval_shape(_step_metrics, *draw_and_outcomes))
    carry = (state, sums, jnp.float32(0), jnp.int32(NO_FAILURE))
    state, sums, largest_weight, first_failure = jax.lax.fori_loop(0, steps, body, carry)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.meta_params)]
    p = learner.sampler.probabilities(state.queue, state.step)
    sound = jnp.stack([*finite, is_distribution(p)])  # what the last update did
    first_failure = jnp.minimum(first_failure, jnp.where(jnp.all(sound), NO_FAILURE, state.step))
    metrics = {
        **{name: total / steps for name, total in sums.items()},
        "weights/max": largest_weight,
        **queue_metrics(state.queue),
        "queue/entropy": -jnp.sum(jax.scipy.special.xlogy(p, p)),  # of the sampler's distribution, in nats
        **{f"sampler/{name}": value for name, value in learner.sampler.metrics(state.step).items()},
    }
    return state, Chunk(metrics, first_failure)


def _step_metrics(draw: Draw, outcomes: Outcome) -> dict[str, Float[Array, ""]]:
    """What is summed over the steps of a chunk."""
    return {
        "train/loss": jnp.mean(outcomes.loss),
        "train/loss_std": jnp.std(outcomes.loss),
        **{f"train/{name}": jnp.mean(value) for name, value in outcomes.metrics.items()},
        "weights/effective_sample_size": jnp.sum(draw.weights) ** 2 / jnp.sum(draw.weights**2),
    }
