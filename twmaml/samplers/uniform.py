"""Uniform sampling."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Probability, Sampler, View
from twmaml.space.grid import ParameterGrid


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Uniform(Sampler):
    """p = 1/N: every cell alike; the queue is kept but not used."""

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """1/N."""
        del view
        return jnp.full(grid.size, 1 / grid.size)

    def draw_cells(
        self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int
    ) -> tuple[Int[Array, " tasks"], Probability]:
        """Whole numbers below N."""
        if type(self) is not Uniform:  # a subclass may have other probabilities
            return super().draw_cells(key, grid, view, n)
        return jax.random.randint(key, (n,), 0, grid.size), lambda cells: jnp.full(cells.shape, 1 / grid.size)

    def entropy(self, grid: ParameterGrid, view: View) -> Float[Array, ""]:
        """log N."""
        return super().entropy(grid, view) if type(self) is not Uniform else jnp.log(jnp.float32(grid.size))
