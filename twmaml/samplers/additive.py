"""Samplers whose distribution follows from totals over sets of cells, and so can be drawn from through a tree."""

from abc import abstractmethod
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from twmaml.samplers import sum_tree
from twmaml.samplers.base import Probability, Report, Sampler, View
from twmaml.samplers.sum_tree import Totals
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import SHOWN, PriorityQueue, empty_queue
from twmaml.types import Number

TREE_FROM = 4096
"""Cells from which on a draw through the tree takes less time than one from the probabilities of all cells."""

_ENTROPY_DRAWS = 1024


class Additive(Sampler):
    """A sampler that says how probable sets of cells are, single ones among them, from totals of a signal over each.

    On a grid of many cells the totals are its own state, a tree over the cells, and no step looks at all of them.
    """

    signal: Literal["losses", "deltas"]

    @abstractmethod
    def shares(self, part: Totals, whole: Totals, view: View) -> Float[Array, "*sets"]:
        """The probability of sets of cells; that of a union of disjoint sets is the sum of theirs.

        Args:
            part: of each set.
            whole: of all cells.
            view: for the step and the sampler's settings; what the queue holds is in the totals.
        """

    def init(self, grid: ParameterGrid) -> PyTree[Array]:
        """The tree of a queue without any visit; nothing on a small grid."""
        return sum_tree.build(self._signal(empty_queue(grid.size))) if self._has_tree(grid) else ()

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> PyTree[Array]:
        """The tree with the batch in it."""
        del key
        if not self._has_tree(grid):
            return view.own
        return sum_tree.refresh(view.own, self._signal(view.queue), report.draw.cells)

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """The share of every cell."""
        del grid
        cells = sum_tree.totals_of(self._signal(view.queue))
        return self.shares(cells, sum_tree.whole_of(cells), view)

    def draw_cells(
        self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int
    ) -> tuple[Int[Array, " tasks"], Probability]:
        """From all shares, or through the tree."""
        if not self._has_tree(grid):
            return super().draw_cells(key, grid, view, n)
        signal, whole = self._signal(view.queue), sum_tree.root(view.own)

        def share(part: Totals) -> Float[Array, "*sets"]:
            return self.shares(part, whole, view)

        cells = sum_tree.draw(key, view.own, signal, share, n)
        return cells, lambda cells: share(sum_tree.leaves(signal, cells))

    def entropy(self, grid: ParameterGrid, view: View) -> Float[Array, ""]:
        """Exact where all cells are shown, else the mean of -log p over 1,024 draws; NaN if p does not sum to 1."""
        if grid.size <= SHOWN or not self._has_tree(grid):
            return super().entropy(grid, view)
        key = jax.random.fold_in(jax.random.key(0), view.step)
        cells, probability = self.draw_cells(key, grid, view, _ENTROPY_DRAWS)
        whole = sum_tree.root(view.own)
        adds_up = jnp.abs(self.shares(whole, whole, view) - 1) < 0.01
        return jnp.where(adds_up, -jnp.mean(jnp.log(probability(cells))), jnp.nan)

    def _has_tree(self, grid: ParameterGrid) -> bool:
        """Whether there are many cells; not where a subclass has a state or probabilities of its own."""
        own = [getattr(type(self), name) is getattr(Additive, name) for name in ("init", "update", "probabilities")]
        return grid.size >= TREE_FROM and all(own)

    def _signal(self, queue: PriorityQueue) -> Float[Array, " cells"]:
        return queue.losses if self.signal == "losses" else queue.deltas


def fill_of(whole: Totals, initial: Number | None) -> Float[Array, ""]:
    """The priority of unknown cells: the initial one, or the mean of the known ones."""
    if initial is not None:
        return jnp.float32(initial)
    known = whole.cells - whole.unknown
    # Rounding must neither make a mean larger than the largest, nor that of equal ones smaller.
    mean = jnp.minimum(whole.total / jnp.maximum(known, 1), whole.largest)
    mean = jnp.where(whole.of_largest == known, whole.largest, mean)
    return jnp.where(known > 0, mean, 1.0)
