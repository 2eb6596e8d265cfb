"""ε-greedy sampling."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.additive import Additive, fill_of
from twmaml.samplers.base import View
from twmaml.samplers.sum_tree import Totals
from twmaml.types import PositiveReal, Schedule


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class EpsilonGreedy(Additive):
    """p = ε/N + (1-ε)/M on the M cells of the largest loss, ε/N elsewhere.

    Args:
        epsilon: a number in [0, 1], or an optax schedule of the meta-step with values there.
        burn_in: first visit every cell: while some are unvisited, p is uniform over those.
        initial: priority of unvisited cells; if not given, the mean of the visited ones.
    """

    epsilon: Any
    burn_in: bool = False
    initial: PositiveReal | None = None
    signal = "losses"

    def __post_init__(self) -> None:
        if isinstance(self.epsilon, str) or not (callable(self.epsilon) or isinstance(self.epsilon, int | float)):
            raise ValueError(f"epsilon must be a number in [0, 1] or an optax schedule. Got {self.epsilon!r}")
        if callable(self.epsilon):
            steps = np.concatenate([[0], np.geomspace(1, 2**31 - 1, 5000).astype(np.int32)])
            values = np.broadcast_to(np.asarray(self.epsilon(steps), float), steps.shape)
        else:
            values = np.array([self.epsilon], float)
        outside = values[~((values >= 0) & (values <= 1))]
        if outside.size:
            raise ValueError(f"epsilon must lie in [0, 1]. Got {outside[0]:g}")

    @property
    def schedule(self) -> Schedule:
        """ε as a function of the meta-step."""
        return self.epsilon if callable(self.epsilon) else lambda step: jnp.float32(self.epsilon)

    def shares(self, part: Totals, whole: Totals, view: View) -> Float[Array, "*sets"]:
        """ε-greedy over the losses; during the burn-in uniform over the unvisited cells."""
        fill, epsilon = fill_of(whole, self.initial), self.schedule(view.step)
        highest = jnp.maximum(whole.largest, jnp.where(whole.unknown > 0, fill, -jnp.inf))
        best, all_best = (
            each.of_largest * (each.largest == highest) + each.unknown * (fill == highest) for each in (part, whole)
        )
        p = epsilon * (part.cells / whole.cells) + (1 - epsilon) * (best / all_best)
        if self.burn_in:
            p = jnp.where(whole.unknown > 0, part.unknown / jnp.maximum(whole.unknown, 1), p)
        return p

    def metrics(self, view: View) -> Mapping[str, Array]:
        """ε."""
        return {"epsilon": jnp.asarray(self.schedule(view.step), jnp.float32)}
