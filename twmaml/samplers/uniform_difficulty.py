"""Uniform over difficulty: easy, middling and hard tasks count alike."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Fraction, Report, Sampler, View
from twmaml.samplers.weighting import Weighting
from twmaml.space.grid import ParameterGrid

_ENDS = 2.58
"""Standard deviations between which 99 % of a normal distribution lie."""


class Difficulty(NamedTuple):
    """Running mean and variance of the losses; NaN before the first batch."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class UniformDifficulty(Weighting):
    """Losses are taken as normal, and weighted to be uniform over mean ± 2.58 standard deviations.

    w is the ratio of the two densities, 0 outside, over the effective number of tasks (Σw)²/Σw².

    Args:
        memory: the part of mean and variance that a batch leaves as it was.
        proposal: draws the tasks.

    References:
        Arnold, Dhillon, Ravichandran, Soatto 2021, Uniform sampling over episode difficulty, section 4.
    """

    memory: Fraction
    proposal: Sampler

    def start(self, grid: ParameterGrid) -> Difficulty:
        """Nothing is known of the losses."""
        del grid
        return Difficulty(jnp.float32(jnp.nan), jnp.float32(jnp.nan))

    def factors(self, report: Report, view: View) -> Float[Array, " tasks"]:
        """B w over the effective number; 1 for all if none lies inside."""
        known, batch = view.own, _difficulty_of(report)
        mean, variance = (jnp.where(jnp.isnan(old), new, old) for old, new in zip(known, batch, strict=True))
        z = (report.scores - mean) / jnp.sqrt(variance + 1e-12)
        ratio = math.sqrt(2 * math.pi) / (2 * _ENDS) * jnp.exp(jnp.minimum(z**2, _ENDS**2) / 2)
        w = jnp.where(jnp.abs(z) <= _ENDS, ratio, 0)
        effective = jnp.sum(w) ** 2 / jnp.maximum(jnp.sum(w**2), 1e-12)
        return jnp.where(effective > 0, w.size * w / jnp.maximum(effective, 1e-12), 1.0)

    def learn(self, grid: ParameterGrid, report: Report, view: View) -> Difficulty:
        """Mean and variance with the batch in them."""
        del grid
        both = zip(view.own, _difficulty_of(report), strict=True)
        mixed = [jnp.where(jnp.isnan(old), new, self.memory * old + (1 - self.memory) * new) for old, new in both]
        return Difficulty(*mixed)


def _difficulty_of(report: Report) -> Difficulty:
    return Difficulty(jnp.mean(report.scores), jnp.var(report.scores))
