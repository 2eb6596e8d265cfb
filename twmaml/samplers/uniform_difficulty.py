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
from twmaml.types import Number

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
        mean, variance = _mixed(view.own, report, 1.0)
        z = (report.scores - mean) / jnp.sqrt(variance + 1e-12)
        ratio = math.sqrt(2 * math.pi) / (2 * _ENDS) * jnp.exp(jnp.minimum(z**2, _ENDS**2) / 2)
        w = jnp.where(jnp.abs(z) <= _ENDS, ratio, 0)
        total = report.draw.weights * w  # what each counts for in the end
        effective = jnp.sum(total) ** 2 / jnp.maximum(jnp.sum(total**2), 1e-12)
        return jnp.where(effective > 0, w.size * w / jnp.maximum(effective, 1e-12), 1.0)

    def learn(self, grid: ParameterGrid, report: Report, view: View) -> Difficulty:
        """Mean and variance with the batch in them."""
        del grid
        return _mixed(view.own, report, self.memory)


def _mixed(known: Difficulty, report: Report, memory: Number) -> Difficulty:
    """Mean and variance about it, with those of a batch for a part; the batch's own if nothing is known."""
    shares = report.draw.weights / jnp.maximum(jnp.sum(report.draw.weights), 1e-12)
    mean = jnp.sum(shares * report.scores)
    centre = jnp.where(jnp.isnan(known.mean), mean, known.mean)
    new = Difficulty(mean, jnp.sum(shares * (report.scores - centre) ** 2))
    mixed = [
        jnp.where(jnp.isnan(old), fresh, memory * old + (1 - memory) * fresh)
        for old, fresh in zip(known, new, strict=True)
    ]
    return Difficulty(*mixed)
