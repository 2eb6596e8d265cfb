"""Conditional value at risk: only the worst tasks count."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Report, Sampler, View
from twmaml.samplers.ordering import now_and_then
from twmaml.samplers.weighting import Weighting
from twmaml.space.grid import ParameterGrid
from twmaml.types import Number

_SECTIONS = 16  # into which a bracket is cut each time


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class TailRisk(Weighting):
    """The gradient of CVaR: tasks from a quantile of the losses on count 1/(1-confidence), the others nothing.

    Args:
        confidence: the part of the tasks that does not count; the tail is the other part.
        quantile: of what. `batch`: the tail is the worst ⌈B(1-confidence)⌉ of B tasks (DR-MAML; CVaR-ML with a
            confidence of .95). `density`: of a Gaussian kernel density of the batch's losses, bandwidth by Scott's
            rule (DR-MAML+). `queue`: of the losses of all cells visited.
        refresh: meta-steps between looks at all cells, with `queue`.
        proposal: draws the tasks. With one that weighs them (`importance`) the tail is that of uniform sampling.

    References:
        Wang et al. 2023, A simple yet effective strategy to robustify the meta learning paradigm, equation 5 (batch).
        Lv et al. 2024, Theoretical investigations and practical enhancements on tail task risk minimization in meta
        learning, Listing 1 (density).
        Greenberg et al. 2023, Train hard, fight easy, section 4 (CVaR-ML).
    """

    confidence: Annotated[float, Field(ge=0, lt=1)]
    quantile: Literal["batch", "density", "queue"]
    proposal: Sampler
    refresh: PositiveInt = 10

    def start(self, grid: ParameterGrid) -> Float[Array, ""] | tuple[()]:
        """The quantile of the queue, not known yet."""
        del grid
        return jnp.float32(jnp.nan) if self.quantile == "queue" else ()

    def factors(self, report: Report, view: View) -> Float[Array, " tasks"]:
        """1 over the part of the tail within it, otherwise 0; 1 for all while the queue is empty."""
        scores, weights = report.scores, report.draw.weights
        if self.quantile == "batch":
            kept = worst_part(scores, weights, 1 - self.confidence)
            total = jnp.sum(kept * weights)  # 0 if the draw lets nothing count
            return kept * scores.size / jnp.where(total > 0, total, 1)
        threshold = view.own if self.quantile == "queue" else density_quantile(scores, weights, self.confidence)
        tail = jnp.float32(scores >= threshold) / (1 - self.confidence)
        return jnp.where(jnp.isnan(threshold), 1.0, tail)

    def learn(self, grid: ParameterGrid, report: Report, view: View) -> Float[Array, ""] | tuple[()]:
        """The quantile of what the queue holds."""
        del grid, report
        if self.quantile != "queue":
            return view.own
        return now_and_then(
            self.refresh, view.step, lambda: jnp.nanquantile(view.queue.losses, self.confidence), view.own
        )


def worst_part(values: Float[Array, " tasks"], weights: Float[Array, " tasks"], part: Number) -> Float[Array, " tasks"]:
    """Marks the largest values, as many as it takes for their weights to make up a part of all weights."""
    place = jnp.arange(values.size)
    larger = (values[None, :] > values[:, None]) | (
        (values[None, :] == values[:, None]) & (place[None, :] < place[:, None])
    )
    before = jnp.sum(jnp.where(larger, weights[None, :], 0), axis=1)
    # Up to rounding: three tenths of 10 are 3, which 10 * (1 - 0.7) exceeds by a little.
    return jnp.float32(before < part * jnp.sum(weights) * (1 - 1e-5))


def density_quantile(
    values: Float[Array, " tasks"], weights: Float[Array, " tasks"], level: Number
) -> Float[Array, ""]:
    """A quantile of the Gaussian kernel density of values, between the least and the largest of them.

    The bandwidth is Scott's, sd · n^(-1/5) with the effective number n of the weighted values.
    """
    weights = weights / jnp.sum(weights)
    n = 1 / jnp.sum(weights**2)
    mean = jnp.sum(weights * values)
    variance = jnp.sum(weights * (values - mean) ** 2) / jnp.maximum(1 - 1 / n, 1e-6)
    width = jnp.sqrt(variance) * n**-0.2 + 1e-12  # all values may be equal

    def narrow(bracket: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bracket
        borders = low + (high - low) / _SECTIONS * jnp.arange(1, _SECTIONS)
        below = jax.scipy.special.ndtr((borders[:, None] - values) / width) @ weights < level
        section = jnp.sum(below)
        step = (high - low) / _SECTIONS
        return (low + step * section, low + step * (section + 1)), None

    (low, _), _ = jax.lax.scan(narrow, (jnp.min(values), jnp.max(values)), None, length=4)
    return low  # that equal values lie not below
