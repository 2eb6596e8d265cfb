"""Online hard task mining: the hardest tasks so far come again."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Draw, Fraction, Report, Sampler, View
from twmaml.samplers.uniform import Uniform
from twmaml.space.grid import ParameterGrid


class Memory(NamedTuple):
    """The hardest tasks, the hardest first."""

    tasks: Float[Array, "memory axes"]
    cells: Int[Array, " memory"]
    scores: Float[Array, " memory"]
    """When they were trained on last; minus infinity where there is no task."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class HardTasks(Sampler):
    """A part of the batch are the hardest of the tasks remembered, exactly as they were; the others are uniform.

    A task leaves the memory only if it turns out easier than others.

    Args:
        share: of the batch; at most as many as are remembered.
        memory: tasks that are remembered.
        wait: meta-steps with uniform tasks only.

    References:
        Kumar et al. 2022, The effect of diversity in meta-learning (OHTM), after the authors' code.
    """

    share: Fraction
    memory: PositiveInt
    wait: Annotated[int, Field(ge=0)]
    selects = True

    def init(self, grid: ParameterGrid) -> Memory:
        """Nothing is remembered."""
        cells = jnp.zeros(self.memory, jnp.int32)
        return Memory(jnp.zeros((self.memory, len(grid.axes))), cells, jnp.full(self.memory, -jnp.inf))

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """Those of the other tasks: 1/N."""
        return Uniform().probabilities(grid, view)

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int) -> Draw:
        """The hardest first, then uniform ones."""
        draw = Uniform().draw(key, grid, view, n)
        hard = self._hard(n)
        again = self._again(view, hard)
        tasks = jnp.where(again[:, None], view.own.tasks[:hard], draw.tasks[:hard])
        cells = jnp.where(again, view.own.cells[:hard], draw.cells[:hard])
        return draw._replace(tasks=draw.tasks.at[:hard].set(tasks), cells=draw.cells.at[:hard].set(cells))

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> Memory:
        """The hardest of those remembered and those of the batch; a repeated task with its new score."""
        del key, grid
        old, draw = view.own, report.draw
        hard = self._hard(draw.cells.size)
        again = self._again(view, hard)
        scores = jnp.concatenate(
            [old.scores.at[:hard].set(jnp.where(again, -jnp.inf, old.scores[:hard])), report.scores]
        )
        scores, kept = jax.lax.top_k(scores, self.memory)
        tasks, cells = jnp.concatenate([old.tasks, draw.tasks]), jnp.concatenate([old.cells, draw.cells])
        return Memory(tasks[kept], cells[kept], scores)

    def _hard(self, n: int) -> int:
        return min(round(self.share * n), self.memory)

    def _again(self, view: View, hard: int) -> Array:
        """Which of the hardest tasks are drawn again."""
        return (view.step >= self.wait) & (view.own.scores[:hard] > -jnp.inf)
