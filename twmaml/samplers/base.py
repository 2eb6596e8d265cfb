"""The base class of samplers: from what is known to a distribution over cells, and the draw from it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree
from pydantic import Field

from twmaml.samplers.cells import draw_cells, is_distribution
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import PriorityQueue
from twmaml.types import Step

Fraction = Annotated[float, Field(ge=0, le=1)]


Probability = Callable[[Int[Array, " tasks"]], Float[Array, " tasks"]]
"""The probability of each of some cells."""


class Draw(NamedTuple):
    """The tasks of one meta-batch, their cells, and the weights of their losses."""

    tasks: Float[Array, "tasks axes"]
    cells: Int[Array, " tasks"]
    weights: Float[Array, " tasks"]


class Report(NamedTuple):
    """A draw and what came of it. No gradient flows through it."""

    draw: Draw
    losses: Float[Array, " tasks"]
    scores: Float[Array, " tasks"]
    before: PriorityQueue
    """The queue before this batch."""


class View(NamedTuple):
    """Everything that a sampler decides from."""

    queue: PriorityQueue
    own: PyTree[Array]
    """The sampler's own state."""
    step: Step


class Sampler(ABC):
    """A distribution over cells. A new sampler is a frozen dataclass with `probabilities`, and often nothing else."""

    importance: bool = False
    """Whether losses are weighted so that the gradient is that of uniform sampling in expectation."""
    interpolate: bool = False
    """Whether tasks come from the interpolated distribution instead of uniformly from the drawn cell."""
    selects: bool = False
    """Whether draws are chosen from more than are kept; `probabilities` is only the proposal then."""
    expensive: bool = False
    """Whether a step takes so long that on an accelerator, where all samplers of a program are computed in every run,
    it is better given a program of its own."""
    continuous_only: bool = False
    """Whether it needs a grid on which there is something between the centres of two cells."""
    remedy: str = "bound them"
    """Advice to a user whose weights have grown too large."""

    def init(self, grid: ParameterGrid) -> PyTree[Array]:
        """The sampler's own state before the first meta-step; nothing for most."""
        del grid
        return ()

    @abstractmethod
    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """The probability of every cell; they sum to 1."""

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int) -> Draw:
        """`n` independent tasks from the distribution.

        The weight of a task is the uniform density over the density it was drawn with, or 1 without
        `importance`; its mean over draws is 1.
        """
        key_cells, key_tasks = jax.random.split(key)
        cells, probability = self.draw_cells(key_cells, grid, view, n)
        if self.interpolate:
            tasks = grid.sample_around(key_tasks, cells)
            cells = grid.locate(tasks)
            density = grid.interpolate(probability, tasks)
        else:
            tasks = grid.sample_in(key_tasks, cells)
            density = probability(cells)
        weights = 1 / (grid.size * density) if self.importance else jnp.ones(n)
        return Draw(tasks, cells, weights)

    def draw_cells(
        self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int
    ) -> tuple[Int[Array, " tasks"], Probability]:
        """`n` independent cells from the distribution, and the probability of any cell."""
        p = self.probabilities(grid, view)
        return draw_cells(key, p, n), lambda cells: p[cells]

    def entropy(self, grid: ParameterGrid, view: View) -> Float[Array, ""]:
        """That of the distribution, in nats; NaN if it is none."""
        p = self.probabilities(grid, view)
        return jnp.where(is_distribution(p), -jnp.sum(jax.scipy.special.xlogy(p, p)), jnp.nan)

    def weigh(self, report: Report, view: View) -> Float[Array, " tasks"]:
        """The weight of each loss of the batch; that of the draw unless the losses are to decide.

        Args:
            report: of the whole batch.
            view: as it was when the batch was drawn.
        """
        del view
        return report.draw.weights

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> PyTree[Array]:
        """The sampler's own state after a batch.

        Args:
            key: of this meta-step.
            grid: of the tasks.
            report: of the batch.
            view: with the batch in its queue, and its step.
        """
        del key, grid, report
        return view.own

    def metrics(self, view: View) -> Mapping[str, Array]:
        """Numbers that the sampler wants logged, as `sampler/<name>`."""
        del view
        return {}
