"""Orders and quantiles of all cells, which take as long as a meta-step and so are refreshed only now and then."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from twmaml.space.priority_queue import PriorityQueue
from twmaml.types import Number, Step

State = TypeVar("State")


def now_and_then(steps: int, step: Step, fresh: Callable[[], State], kept: State) -> State:
    """A state that is computed anew at every so many meta-steps, and stays as it is at the others."""
    return jax.lax.cond(step % steps == 0, fresh, lambda: kept)


def is_filled(queue: PriorityQueue, share: Number) -> Bool[Array, ""]:
    """Whether so many of the cells have been visited that what is known of them means something."""
    return jnp.mean(queue.visits > 0, dtype=jnp.float32) >= share


def descending_ranks(values: Float[Array, " cells"]) -> Int[Array, " cells"]:
    """1 for the largest value, and so on; NaN comes last."""
    order = jnp.argsort(-values)
    return jnp.zeros(values.size, jnp.int32).at[order].set(jnp.arange(1, values.size + 1, dtype=jnp.int32))


def mean_of_same_cell(cells: Int[Array, " tasks"], values: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """For each task the mean of the values of all tasks that share its cell; the order of the tasks does not matter."""
    order = jnp.argsort(values)
    same = cells[:, None] == cells[order][None, :]
    return jnp.sum(jnp.where(same, values[order], 0), axis=1) / jnp.sum(same, axis=1)
