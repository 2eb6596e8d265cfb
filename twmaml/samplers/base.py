"""The protocol of samplers: from the queue to a distribution over cells, and the draw from it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from pydantic import Field

from twmaml.samplers.cells import draw_cells
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import PriorityQueue
from twmaml.types import Step

Fraction = Annotated[float, Field(ge=0, le=1)]


class Draw(NamedTuple):
    """The tasks of one meta-batch, their cells, and the weights of their losses."""

    tasks: Float[Array, "tasks axes"]
    cells: Int[Array, " tasks"]
    weights: Float[Array, " tasks"]


class Sampler(ABC):
    """A distribution over cells. A new sampler is a frozen dataclass with `probabilities`, and nothing else."""

    importance: bool = False
    """Whether losses are weighted so that the gradient is that of uniform sampling in expectation."""
    interpolate: bool = False
    """Whether tasks come from the interpolated distribution instead of uniformly from the drawn cell."""
    remedy: str = "bound them"
    """What a user should do where importance weights have grown too large."""

    @abstractmethod
    def probabilities(self, queue: PriorityQueue, step: Step) -> Float[Array, " cells"]:
        """The probability of every cell; they sum to 1."""

    def metrics(self, step: Step) -> Mapping[str, Array]:
        """What the sampler wants logged, as `sampler/<name>`."""
        del step
        return {}

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, queue: PriorityQueue, step: Step, n: int) -> Draw:
        """`n` independent tasks from the distribution.

        The weight of a task is the uniform density over the density it was drawn with, or 1 without
        `importance`; its mean over draws is 1.
        """
        key_cells, key_tasks = jax.random.split(key)
        p = self.probabilities(queue, step)
        cells = draw_cells(key_cells, p, n)
        if self.interpolate:
            tasks = grid.sample_around(key_tasks, cells)
            cells = grid.locate(tasks)
            density = grid.interpolate(p, tasks)
        else:
            tasks = grid.sample_in(key_tasks, cells)
            density = p[cells]
        weights = 1 / (grid.size * density) if self.importance else jnp.ones(n)
        return Draw(tasks, cells, weights)
