"""Prioritised level replay, with the cells of the grid as levels."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Draw, Fraction, Report, Sampler, View
from twmaml.samplers.ordering import descending_ranks, is_filled, now_and_then
from twmaml.space.grid import ParameterGrid
from twmaml.types import Number, PositiveReal

_REPLAYED = 0x7265706C


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class LevelReplay(Sampler):
    """Visited cells by the rank of their signal and by their staleness, or any cell to explore.

    p = replay · ((1-s) h + s c) + (1-replay)/N, with h ∝ rank^(-1/temperature) and c ∝ meta-steps since the last visit,
    both over the cells visited; s is the staleness. The queue holds all cells, so none is ever thrown out.

    Args:
        signal: what the rank is of: `losses`, or `deltas` (the absolute change, as a value error is).
        replay: probability of drawing a visited cell.
        temperature: of the ranks; the larger, the more alike the cells.
        staleness: the part of c.
        robust: tasks drawn to explore count nothing (robust PLR), the others 1/replay; until the cells are filled
            nothing is learned.
        spread: the part of the replayed tasks that comes from a neighbour of the cell instead (an edit, as in ACCEL).
        fill: the part of the cells that must have been visited before any is replayed.
        refresh: meta-steps between sortings of the cells.

    References:
        Jiang, Grefenstette, Rocktäschel 2021, Prioritized level replay, equations 1 to 3.
        Jiang et al. 2021, Replay-guided adversarial environment design (robust).
        Parker-Holder et al. 2022, Evolving curricula with regret-based environment design (spread).
    """

    signal: Literal["losses", "deltas"]
    replay: Fraction
    temperature: PositiveReal
    staleness: Fraction
    robust: bool = False
    spread: Fraction = 0.0
    fill: Fraction = 0.5
    refresh: PositiveInt = 10

    def __post_init__(self) -> None:
        if self.robust and self.replay == 0:
            raise ValueError("replay must be above 0 if robust, as no task would count. Got 0")

    def init(self, grid: ParameterGrid) -> Float[Array, " cells"]:
        """h, before any cell has been visited."""
        return jnp.zeros(grid.size)

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """Replay, over a uniform floor."""
        replay = self._replay(view)
        return replay * self._replayed(grid, view) + (1 - replay) / grid.size

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int) -> Draw:
        """Tasks from the distribution; which of them are replayed is drawn afterwards, given their cells."""
        draw = super().draw(key, grid, view, n)
        if not self.robust:
            return draw
        share = self._replay(view) * self._replayed(grid, view) / self.probabilities(grid, view)
        replayed = jax.random.uniform(jax.random.fold_in(key, _REPLAYED), (n,)) < share[draw.cells]
        return draw._replace(weights=replayed / self.replay)

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> Float[Array, " cells"]:
        """h of what the queue holds."""
        del key, grid, report
        signal = view.queue.losses if self.signal == "losses" else view.queue.deltas
        return now_and_then(self.refresh, view.step, lambda: rank_weights(signal, self.temperature), view.own)

    def _replay(self, view: View) -> Float[Array, ""]:
        """The probability of replaying."""
        return jnp.where(is_filled(view.queue, self.fill), self.replay, 0.0)

    def _replayed(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """The distribution of replayed tasks; uniform before there are any."""
        queue = view.queue
        age = jnp.where(queue.visits > 0, view.step - queue.last_visit, 0).astype(jnp.float32)
        p = (1 - self.staleness) * view.own + self.staleness * age / jnp.maximum(jnp.sum(age), 1)
        total = jnp.sum(p)  # not 1 where all ranks or all ages are 0
        p = jnp.where(total > 0, p / jnp.where(total > 0, total, 1), 1 / grid.size)
        return spread_out(p, grid, self.spread) if self.spread > 0 else p


def rank_weights(signal: Float[Array, " cells"], temperature: Number) -> Float[Array, " cells"]:
    """rank^(-1/temperature) over the known cells, normalised; zero where none is known."""
    weights = jnp.where(jnp.isnan(signal), 0.0, descending_ranks(signal) ** (-1 / temperature))
    return weights / jnp.maximum(jnp.sum(weights), 1e-30)


def spread_out(p: Float[Array, " cells"], grid: ParameterGrid, part: Number) -> Float[Array, " cells"]:
    """A distribution of which a part is moved to the neighbours along the continuous axes; at an end it stays."""
    axes = [i for i, axis in enumerate(grid.axes.values()) if axis.continuous]
    cells = p.reshape(grid.shape)

    def moved_up(cells: Array, axis: int) -> Array:
        cells = jnp.moveaxis(cells, axis, 0)
        moved = jnp.concatenate([jnp.zeros_like(cells[:1]), cells[:-1]]).at[-1].add(cells[-1])
        return jnp.moveaxis(moved, 0, axis)

    neighbours = [moved_up(cells, i) for i in axes] + [jnp.flip(moved_up(jnp.flip(cells, i), i), i) for i in axes]
    if not neighbours:
        return p
    return ((1 - part) * cells + part * sum(neighbours) / len(neighbours)).reshape(-1)
