"""Sampling in proportion to learning progress."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Fraction, Report, Sampler, View
from twmaml.samplers.proportional import proportional
from twmaml.samplers.sum_tree import totals_of, whole_of
from twmaml.space.grid import ParameterGrid


class Averages(NamedTuple):
    """Exponential averages of each cell's loss over its visits; NaN before the first."""

    fast: Float[Array, " cells"]
    slow: Float[Array, " cells"]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class LearningProgress(Sampler):
    """p = (1-f) progress/Σprogress + f/N, with progress the distance of a fast and a slow average of a cell's loss.

    Cells without two visits at different meta-steps take the mean progress of the others.

    Args:
        fast: weight of the latest loss in the fast average.
        slow: the same of the slow one.
        uniform_fraction: f.

    References:
        Kanitscheider et al. 2021, Multi-task curriculum learning in a complex, visual, hard-exploration domain,
        section 3 (there of success rates, reweighted).
    """

    fast: Fraction
    slow: Fraction
    uniform_fraction: Fraction = 0.1

    def __post_init__(self) -> None:
        if self.slow >= self.fast:
            raise ValueError(f"slow must be less than fast. Got slow={self.slow}, fast={self.fast}")

    def init(self, grid: ParameterGrid) -> Averages:
        """Nothing is known."""
        return Averages(*jnp.full((2, grid.size), jnp.nan))

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """In proportion to the progress, over a uniform floor."""
        del grid
        known = ~jnp.isnan(view.queue.deltas)
        progress = jnp.where(known, jnp.abs(view.own.fast - view.own.slow), jnp.nan)
        cells = totals_of(progress)
        return proportional(cells, whole_of(cells), self.uniform_fraction)

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> Averages:
        """The averages of the cells of the batch, with what the queue has recorded of them."""
        del key, grid
        cells, averages = report.draw.cells, []
        for weight, average in zip((self.fast, self.slow), view.own, strict=True):
            old, new = average[cells], view.queue.losses[cells]
            averages.append(average.at[cells].set(jnp.where(jnp.isnan(old), new, old + weight * (new - old))))
        return Averages(*averages)
