"""Sampling for learnability: cells that are neither mastered nor hopeless."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Fraction, Report, Sampler, View
from twmaml.samplers.ordering import descending_ranks, is_filled, now_and_then
from twmaml.space.grid import ParameterGrid


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Learnability(Sampler):
    """p = share/K on the K cells of the largest u(1-u), over (1-share)/N, with u the failure of a cell in [0, 1].

    The authors score fresh levels by the success rate of many roll-outs; here the queue's latest scores are taken.

    Args:
        failure: `rank`: u is the rank of the score among those known, over their number, so that cells about the median
            are learnable, whatever the scale; `score`: the score itself, where that lies in [0, 1].
        share: the part of the tasks from learnable cells.
        learnable: K as a part of the N cells.
        fill: the part of the cells that must have been visited before any are chosen.
        refresh: meta-steps between choices of them.

    References:
        Rutherford et al. 2024, No regrets: investigating and improving regret approximations for curriculum discovery,
        algorithm 1.
    """

    failure: Literal["rank", "score"]
    share: Fraction
    learnable: Annotated[float, Field(gt=0, le=1)]
    fill: Fraction = 0.5
    refresh: PositiveInt = 100

    def init(self, grid: ParameterGrid) -> Float[Array, " cells"]:
        """All cells alike."""
        return jnp.full(grid.size, 1 / grid.size)

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """The learnable cells over a uniform floor."""
        return self.share * view.own + (1 - self.share) / grid.size

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> Float[Array, " cells"]:
        """The distribution over the learnable cells; over all while there are none."""
        del key, report
        count = max(1, round(self.learnable * grid.size))

        def choose() -> Array:
            u = self._failure(view.queue.losses)
            score, best = jax.lax.top_k(jnp.nan_to_num(u * (1 - u)), count)
            chosen = jnp.zeros(grid.size).at[best].set(jnp.float32(score > 0))
            usable = is_filled(view.queue, self.fill) & (score[0] > 0)
            return jnp.where(usable, chosen / jnp.maximum(jnp.sum(chosen), 1), 1 / grid.size)

        return now_and_then(self.refresh, view.step, choose, view.own)

    def _failure(self, scores: Float[Array, " cells"]) -> Float[Array, " cells"]:
        if self.failure == "score":
            return jnp.clip(scores, 0, 1)
        known = ~jnp.isnan(scores)
        return jnp.where(known, descending_ranks(-scores) / (jnp.sum(known) + 1), jnp.nan)
