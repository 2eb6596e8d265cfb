"""Uniform sampling."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Sampler, View
from twmaml.space.grid import ParameterGrid


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Uniform(Sampler):
    """p = 1/N: every cell alike; the queue is kept but not used."""

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """1/N."""
        del view
        return jnp.full(grid.size, 1 / grid.size)
