"""Task-robust meta-learning: the weights of the cells are played against the learner."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Report, Sampler, View
from twmaml.samplers.weighting import Weighting
from twmaml.space.grid import ParameterGrid
from twmaml.types import PositiveReal


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class TaskRobust(Weighting):
    """min over the network, max over a distribution p of cells: a loss counts N p, and p ascends in the losses.

    After each batch p_c += rate · loss for every task of cell c, then p is projected onto the simplex.

    Args:
        rate: of the ascent; the authors' are 1e-5 with 5 shots and 2e-5 with 10, for 100 cells.
        proposal: draws the tasks.

    References:
        Collins, Mokhtari, Shakkottai 2020, Task-robust model-agnostic meta-learning, algorithm 1.
    """

    rate: PositiveReal
    proposal: Sampler
    remedy = "lower sampler.rate"

    def start(self, grid: ParameterGrid) -> Float[Array, " cells"]:
        """p = 1/N."""
        return jnp.full(grid.size, 1 / grid.size)

    def factors(self, report: Report, view: View) -> Float[Array, " tasks"]:
        """N p of each task's cell."""
        return view.own.size * view.own[report.draw.cells]

    def learn(self, grid: ParameterGrid, report: Report, view: View) -> Float[Array, " cells"]:
        """A step of ascent; repeated cells add up."""
        del grid
        rises = self.rate * report.draw.weights * report.scores  # as under uniform sampling, if the draw weighs so
        order = jnp.argsort(rises)  # so that the sum does not depend on the order of the batch
        return onto_simplex(view.own.at[report.draw.cells[order]].add(rises[order]))


def onto_simplex(values: Float[Array, " cells"]) -> Float[Array, " cells"]:
    """The nearest distribution: max(values - t, 0) with the t for which they sum to 1.

    Newton's method for t, which ends after finitely many steps, instead of a sort: that would take as long as a
    meta-step.

    References:
        Michelot 1986, A finite algorithm for finding the projection of a point onto the canonical simplex of R^n.
    """

    def shifted(t: Array) -> Array:
        inside = values > t
        return (jnp.sum(jnp.where(inside, values, 0)) - 1) / jnp.maximum(jnp.sum(inside), 1)

    # From below t rises until the set of positive entries stays as it is.
    first = (jnp.sum(values) - 1) / values.size
    t, _ = jax.lax.while_loop(
        lambda ts: ts[1] > ts[0], lambda ts: (ts[1], shifted(ts[1])), (jnp.float32(-jnp.inf), first)
    )
    return jnp.maximum(values - t, 0)
