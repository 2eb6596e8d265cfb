"""Sampling in proportion to a signal of the queue."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.additive import Additive, fill_of
from twmaml.samplers.base import Fraction, View
from twmaml.samplers.sum_tree import Totals
from twmaml.types import Number, PositiveReal


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Proportional(Additive):
    """p = (1-f) priority/Σpriority + f/N with uniform fraction f; weight (1/N)/p <= 1/f with `importance`.

    Args:
        signal: the priority of a cell: its latest loss, or the latest absolute change of its loss.
        importance: weight the losses by (1/N)/p, so that the expected gradient is that of uniform sampling.
        uniform_fraction: f; 0 is the predecessor's rule, whose weights have no bound.
        interpolate: draw tasks from the multilinear interpolation of the distribution between the
            cells' centres, instead of uniformly inside the drawn cell.
        initial: priority of cells of which the signal is unknown yet; if not given, the mean of the known ones.
    """

    signal: Literal["losses", "deltas"]
    importance: bool
    uniform_fraction: Fraction = 0.1
    interpolate: bool = False
    initial: PositiveReal | None = None
    remedy = "raise sampler.uniform_fraction"

    def shares(self, part: Totals, whole: Totals, view: View) -> Float[Array, "*sets"]:
        """Proportional to the signal, over a uniform floor; uniform where all priorities are zero."""
        del view
        return proportional(part, whole, self.uniform_fraction, self.initial)


def proportional(
    part: Totals, whole: Totals, uniform_fraction: Number, initial: Number | None = None
) -> Float[Array, "*sets"]:
    """The probability of sets of cells in proportion to their priority, over a uniform floor."""
    fill, uniform = fill_of(whole, initial), part.cells / whole.cells
    priority, all_priority = (each.total + each.unknown * fill for each in (part, whole))
    share = jnp.where(all_priority > 0, priority / all_priority, uniform)
    return (1 - uniform_fraction) * share + uniform_fraction * uniform
