"""Group distributionally robust optimisation, with the cells as groups."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Report, Sampler, View
from twmaml.samplers.ordering import mean_of_same_cell
from twmaml.samplers.weighting import Weighting
from twmaml.space.grid import ParameterGrid
from twmaml.types import PositiveReal


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class GroupRobust(Weighting):
    """A loss counts N q of its cell, and q ∝ q exp(rate · loss) by exponentiated ascent.

    Only the cells of a batch are updated, each once, by the mean of its losses; in the authors' code a group that is
    absent from a batch counts as one with loss 0.

    Args:
        rate: of the ascent.
        proposal: draws the tasks.

    References:
        Sagawa et al. 2020, Distributionally robust neural networks for group shifts, algorithm 1.
    """

    rate: PositiveReal
    proposal: Sampler
    remedy = "lower sampler.rate"

    def start(self, grid: ParameterGrid) -> Float[Array, " cells"]:
        """log q of q = 1/N."""
        return jnp.full(grid.size, -jnp.log(jnp.float32(grid.size)))

    def factors(self, report: Report, view: View) -> Float[Array, " tasks"]:
        """N q of each task's cell, after the step of ascent in these losses."""
        return view.own.size * jnp.exp(self._risen(report, view)[report.draw.cells])

    def learn(self, grid: ParameterGrid, report: Report, view: View) -> Float[Array, " cells"]:
        """log q after the step."""
        del grid
        return self._risen(report, view)

    def _risen(self, report: Report, view: View) -> Float[Array, " cells"]:
        cells = report.draw.cells
        log_q = view.own.at[cells].set(view.own[cells] + self.rate * mean_of_same_cell(cells, report.scores))
        return log_q - jax.nn.logsumexp(log_q)
