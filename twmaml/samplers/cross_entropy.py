"""The cross-entropy method: a distribution of tasks that moves to where the losses are largest."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Fraction, Report, Sampler, View
from twmaml.space.grid import ParameterGrid
from twmaml.types import Number

_Part = Annotated[float, Field(gt=0, le=1)]


class Search(NamedTuple):
    """A product of Beta distributions, one for each axis, and the tasks drawn since it was fitted."""

    centre: Float[Array, " axes"]
    """φ: the mean of each Beta(2φ, 2-2φ) over the range, which runs from 0 to 1."""
    masses: tuple[Float[Array, " cells"], ...]
    """The probability of each cell along each axis."""
    positions: Float[Array, "memory axes"]
    scores: Float[Array, " memory"]
    weights: Float[Array, " memory"]
    """The uniform probability over the one that a task was drawn with."""
    noted: Int[Array, ""]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class CrossEntropy(Sampler):
    """Robust meta-learning by the cross-entropy method (RoML): p is fitted to the tail of the tasks drawn lately.

    After so many tasks the worst are chosen: those in the tail of uniform sampling, by their weights, and at least a
    part of all. φ moves to their weighted mean. The losses themselves are not weighted. A cell has the mass that the
    distribution has over it.

    Args:
        tail: the part of all tasks that is the tail.
        kept: the part of the tasks drawn that is chosen at least.
        tasks: drawn between two fits.
        smoothing: the part of φ that a fit leaves as it was.
        uniform_fraction: part of the draws that are uniform.

    References:
        Greenberg, Mannor, Chechik, Meirom 2023, Train hard, fight easy: robust meta reinforcement learning,
        algorithm 2.
    """

    tail: _Part
    kept: _Part
    tasks: PositiveInt
    smoothing: Fraction
    uniform_fraction: Fraction = 0.0
    continuous_only = True

    def init(self, grid: ParameterGrid) -> Search:
        """φ = 1/2: uniform."""
        axes = len(grid.axes)
        return Search(
            centre=jnp.full(axes, 0.5),
            masses=tuple(jnp.full(cells, 1 / cells) for cells in grid.shape),
            positions=jnp.zeros((self.tasks, axes)),
            scores=jnp.zeros(self.tasks),
            weights=jnp.zeros(self.tasks),
            noted=jnp.int32(0),
        )

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """The product of the axes' masses, over a uniform floor."""
        p = jnp.ones(1)
        for masses in view.own.masses:
            p = (p[:, None] * masses).reshape(-1)
        return (1 - self.uniform_fraction) * p + self.uniform_fraction / grid.size

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> Search:
        """The batch among the tasks, and a new fit once there are enough."""
        del key
        cells, own = report.draw.cells, view.own
        place = own.noted + jnp.arange(cells.size)
        longer = own._replace(
            positions=own.positions.at[place].set(grid.position(report.draw.tasks), mode="drop"),
            scores=own.scores.at[place].set(report.scores, mode="drop"),
            weights=own.weights.at[place].set(1 / (grid.size * self.probabilities(grid, view)[cells]), mode="drop"),
            noted=own.noted + cells.size,
        )
        return jax.lax.cond(longer.noted >= self.tasks, lambda: self._fit(longer), lambda: longer)

    def _fit(self, own: Search) -> Search:
        chosen = worst(own.scores, own.weights, self.tail, self.kept) * own.weights
        mean = jnp.sum(chosen[:, None] * own.positions, axis=0) / jnp.sum(chosen)
        centre = self.smoothing * own.centre + (1 - self.smoothing) * jnp.clip(mean, 0.001, 0.999)
        masses = tuple(beta_masses(centre[i], masses.size) for i, masses in enumerate(own.masses))
        return own._replace(centre=centre, masses=masses, noted=jnp.int32(0))


def worst(
    scores: Float[Array, " tasks"], weights: Float[Array, " tasks"], tail: Number, kept: Number
) -> Float[Array, " tasks"]:
    """Marks the tail of the largest scores: a part of all weights, and at least a part of the tasks."""
    order = jnp.argsort(-scores)
    weighed = jnp.cumsum(weights[order]) <= tail * jnp.sum(weights)
    counted = jnp.arange(scores.size) < jnp.ceil(kept * scores.size - 1e-4)
    return jnp.zeros(scores.size).at[order].set(jnp.float32(weighed | counted))


def beta_masses(mean: Float[Array, ""], cells: int) -> Float[Array, " cells"]:
    """What a Beta(2φ, 2-2φ) of mean φ has over equal cells of [0, 1]."""
    edges = jnp.linspace(0, 1, cells + 1)
    masses = jnp.maximum(jnp.diff(jax.scipy.special.betainc(2 * mean, 2 - 2 * mean, edges)), 0)
    return masses / jnp.sum(masses)
