"""Many meta-steps as one program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from twmaml.meta_learning.learner import MetaLearner, RunState
from twmaml.samplers.base import Draw
from twmaml.space.priority_queue import queue_metrics, shown_cells
from twmaml.types import Outcome


class Chunk(NamedTuple):
    """The figures of a chunk of meta-steps."""

    metrics: dict[str, Float[Array, ""]]
    """By name: means over the steps for `train` and `weights` (the maximum for `weights/max`), the state
    after the last step for `queue` and `sampler`."""
    first_failure: Int[Array, ""]
    """First step with a non-finite loss or an invalid score; `NO_FAILURE` if none. Weights and probabilities are
    checked after the last step only."""
    tasks_trained: Int[Array, ""]
    """Tasks whose loss had a weight other than 0."""
    losses: Float[Array, " shown"]
    """Losses of the queue's `shown_cells` after the last step."""
    visits: Int[Array, " shown"]


NO_FAILURE = jnp.iinfo(jnp.int32).max


def train_chunk(
    learner: MetaLearner, state: RunState, steps: Int[Array, ""], data: PyTree[Array] = ()
) -> tuple[RunState, Chunk]:
    """So many meta-steps of one run. The number is traced: chunks of any length are one program."""

    def body(_: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, sums, largest_weight, trained, first_failure = carry
        new_state, draw, outcomes = learner.meta_step(state, data)
        sound = jnp.all(jnp.isfinite(outcomes.loss) & (outcomes.score >= 0))
        return (
            new_state,
            jax.tree.map(jnp.add, sums, _step_metrics(draw, outcomes)),
            jnp.maximum(largest_weight, jnp.max(draw.weights)),
            trained + jnp.count_nonzero(draw.weights).astype(jnp.int32),
            jnp.minimum(first_failure, jnp.where(sound, NO_FAILURE, state.step)),
        )

    _, *draw_and_outcomes = jax.eval_shape(learner.meta_step, state, data)
    sums = jax.tree.map(jnp.zeros_like, jax.eval_shape(_step_metrics, *draw_and_outcomes))
    carry = (state, sums, jnp.float32(0), jnp.int32(0), jnp.int32(NO_FAILURE))
    state, sums, largest_weight, trained, first_failure = jax.lax.fori_loop(0, steps, body, carry)
    entropy = learner.sampler.entropy(learner.family.grid, state.view)
    first_failure = jnp.minimum(first_failure, jnp.where(_is_sound(state, entropy), NO_FAILURE, state.step))
    shown = shown_cells(state.queue)
    metrics = {
        **{name: total / steps for name, total in sums.items()},
        "weights/max": largest_weight,
        **queue_metrics(shown),
        "queue/entropy": jnp.where(learner.sampler.selects, jnp.nan, entropy),
        **{f"sampler/{name}": value for name, value in learner.sampler.metrics(state.view).items()},
    }
    return state, Chunk(metrics, first_failure, trained, shown.losses, shown.visits)


def _is_sound(state: RunState, entropy: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether the last update has left finite parameters and a distribution over cells."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.meta_params)]
    return jnp.all(jnp.stack([*finite, ~jnp.isnan(entropy)]))


def _step_metrics(draw: Draw, outcomes: Outcome) -> dict[str, Float[Array, ""]]:
    """Figures that are summed over the steps of a chunk."""
    return {
        "train/loss": jnp.mean(outcomes.loss),
        "train/loss_std": jnp.std(outcomes.loss),
        **{f"train/{name}": jnp.mean(value) for name, value in outcomes.metrics.items()},
        "weights/effective_sample_size": _effective(draw.weights),
    }


def _effective(weights: Float[Array, " tasks"]) -> Float[Array, ""]:
    """The number of tasks that a batch is worth; 0 where none counts.

    References:
        Kish 1965, Survey sampling, section 11.7.
    """
    squares = jnp.sum(weights**2)
    return jnp.where(squares > 0, jnp.sum(weights) ** 2 / jnp.where(squares > 0, squares, 1), 0)
