"""A bandit over cells that is paid in learning progress."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Fraction, Report, Sampler, View
from twmaml.samplers.ordering import now_and_then
from twmaml.space.grid import ParameterGrid
from twmaml.types import PositiveReal

_LOW, _HIGH = 0.2, 0.8


class Teacher(NamedTuple):
    """The bandit's state."""

    log_weights: Float[Array, " cells"]
    gains: Float[Array, " memory"]
    """The latest ones; NaN where there is none yet."""
    range: Float[Array, " 2"]
    """The quantiles of them that rewards of -1 and 1 stand for; NaN before the first gain."""
    next: Array
    """Where the next gain is written."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Bandit(Sampler):
    """EXP3.S: p = (1-ε) softmax(w) + ε/N, paid by how far a cell's loss has fallen since its last visit.

    A reward is the gain between the 20 % and the 80 % quantile of the latest gains, mapped to -1 ... 1 and clipped;
    w ← log((1-a) exp(w + rate r/p) + a/(N-1) Σ_others exp(w + rate r/p)) with a = 1/t, r/p averaged over the batch.

    Args:
        rate: of the weights.
        epsilon: the uniform part.
        memory: gains that the quantiles are of.
        refresh: meta-steps between two of them.

    References:
        Graves et al. 2017, Automated curriculum learning for neural networks, section 2.
        Auer et al. 2002, The nonstochastic multiarmed bandit problem, section 8.
    """

    rate: PositiveReal
    epsilon: Fraction
    memory: PositiveInt = 256
    refresh: PositiveInt = 10

    def init(self, grid: ParameterGrid) -> Teacher:
        """All cells alike."""
        unknown = jnp.full(self.memory, jnp.nan)
        return Teacher(jnp.zeros(grid.size), unknown, jnp.full(2, jnp.nan), jnp.int32(0))

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """The softmax of the weights over a uniform floor."""
        return (1 - self.epsilon) * jax.nn.softmax(view.own.log_weights) + self.epsilon / grid.size

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> Teacher:
        """A reward to the cells of the batch, and some of all to all."""
        del key
        own, cells = view.own, report.draw.cells
        gains = report.before.losses[cells] - report.scores
        low, high = own.range
        reward = jnp.clip(2 * (gains - low) / jnp.maximum(high - low, 1e-12) - 1, -1, 1)
        reward = jnp.where(high > low, reward, jnp.sign(gains - low))  # where most gains are the same
        reward = jnp.where(jnp.isnan(reward), 0, reward)  # of a first visit there is no gain
        order = jnp.argsort(reward)  # so that the sum does not depend on the order of the batch
        cells, reward = cells[order], reward[order]
        paid = jnp.zeros(grid.size).at[cells].add(reward / self.probabilities(grid, view)[cells] / cells.size)
        return Teacher(share_weights(own.log_weights + self.rate * paid, view.step + 1), *self._note(gains, view))

    def _note(self, gains: Float[Array, " tasks"], view: View) -> tuple[Array, Array, Array]:
        """Memory, quantiles and place of the next gain, with those of a batch."""
        own, known = view.own, jnp.sort(gains)  # NaN at the end
        if known.size > self.memory:  # evenly over all of them
            known = known[jnp.linspace(0, known.size - 1, self.memory).astype(jnp.int32)]
        place = (own.next + jnp.arange(known.size)) % self.memory
        noted = own.gains.at[place].set(jnp.where(jnp.isnan(known), own.gains[place], known))
        quantiles = now_and_then(
            self.refresh, view.step, lambda: jnp.nanquantile(noted, jnp.array([_LOW, _HIGH])), own.range
        )
        return noted, quantiles, (own.next + jnp.sum(~jnp.isnan(known), dtype=jnp.int32)) % self.memory


def share_weights(log_weights: Float[Array, " cells"], t: Array) -> Float[Array, " cells"]:
    """Log-weights of which each gives a = 1/t to the others, so that none is ever lost; the largest stays near 0."""
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    a = 1 / t
    return jnp.log((1 - a) * weights + a / max(weights.size - 1, 1) * (jnp.sum(weights) - weights) + 1e-30)
