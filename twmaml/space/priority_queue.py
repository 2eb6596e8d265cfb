"""The priority queue: what is known of every cell of the task-parameter space."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from twmaml.types import Step

SHOWN = 2**15
"""Cells that the logged figures of a queue are of, at most."""


class PriorityQueue(NamedTuple):
    """Per cell the latest loss, its absolute change, the number of visits and the step of the last one.

    NaN stands for what has not been measured: the loss of an unvisited cell, the change of a cell without
    two visits at different steps. `last_visit` is -1 before the first.
    """

    losses: Float[Array, " cells"]
    deltas: Float[Array, " cells"]
    visits: Int[Array, " cells"]
    last_visit: Int[Array, " cells"]


def empty_queue(cells: int) -> PriorityQueue:
    """A queue of which no cell has been visited."""
    return PriorityQueue(
        losses=jnp.full(cells, jnp.nan, jnp.float32),
        deltas=jnp.full(cells, jnp.nan, jnp.float32),
        visits=jnp.zeros(cells, jnp.int32),
        last_visit=jnp.full(cells, -1, jnp.int32),
    )


def record(
    queue: PriorityQueue, cells: Int[Array, " tasks"], scores: Float[Array, " tasks"], step: Step
) -> PriorityQueue:
    """Writes the scores of one meta-batch.

    A cell drawn several times gets the mean of its scores, once, and its delta is taken against the loss
    from before the batch. The result does not depend on the order of the batch, to the bit: scores are
    summed in the order of their size, and all writes to one cell write the same number.
    """
    order = jnp.argsort(scores)
    cells, scores = cells[order], scores[order]
    same = cells[:, None] == cells[None, :]
    losses = jnp.sum(jnp.where(same, scores, 0), axis=1) / jnp.sum(same, axis=1)
    return PriorityQueue(
        losses=queue.losses.at[cells].set(losses),
        deltas=queue.deltas.at[cells].set(jnp.abs(losses - queue.losses[cells])),
        visits=queue.visits.at[cells].add(1),
        last_visit=queue.last_visit.at[cells].set(step.astype(jnp.int32)),
    )


def shown_cells(queue: PriorityQueue) -> PriorityQueue:
    """The cells that the logged figures are of: all, or 32,768 chosen at random, the same ones at all times."""
    if queue.losses.size <= SHOWN:
        return queue
    chosen = np.sort(np.random.default_rng(0).choice(queue.losses.size, SHOWN, replace=False))
    return jax.tree.map(lambda each: each[chosen], queue)


def queue_metrics(queue: PriorityQueue) -> dict[str, Float[Array, ""]]:
    """The logged figures of a queue: mean and standard deviation of the known losses, share of cells visited."""
    return {
        "queue/mean": jnp.nanmean(queue.losses),
        "queue/std": jnp.nanstd(queue.losses),
        "queue/coverage": jnp.mean(queue.visits > 0, dtype=jnp.float32),
    }
