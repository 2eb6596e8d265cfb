"""A point that has to find a goal in the plane."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.space.axis import Interval, Nuisance, Segments
from twmaml.tasks.control.environment import Environment, Paths, Transition
from twmaml.tasks.parameters import Parameters
from twmaml.types import PositiveReal, Real

_STRIDE = 0.1
"""The furthest that an action moves along each coordinate."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Navigation(Environment):
    """A point that starts at the origin and observes where it is, but not the goal. The reward is minus the distance.

    Args:
        goal_x: place of the goal.
        goal_y: likewise.
        horizon: actions of an episode.
        tolerance: an episode that ends within this distance of the goal has succeeded.

    References:
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, section 5.3.
    """

    goal_x: Interval | Segments | Nuisance | Real
    goal_y: Interval | Segments | Nuisance | Real
    horizon: PositiveInt
    tolerance: PositiveReal = 0.1

    observations = 2
    actions = 2

    @property
    def return_range(self) -> tuple[float, float]:
        """From walking away from the furthest goal to having been on the goal all the time."""
        furthest = math.hypot(self.largest("goal_x"), self.largest("goal_y"))
        steps = self.horizon
        return -(steps * furthest + math.sqrt(2) * _STRIDE * steps * (steps + 1) / 2), 0.0

    def reset(self, key: Key[Array, ""], task: Parameters) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        """The origin."""
        del key, task
        return jnp.zeros(2), jnp.zeros(2)

    def step(
        self, key: Key[Array, ""], state: Float[Array, "2"], action: Float[Array, "2"], task: Parameters
    ) -> Transition:
        """Moves by the action, of which each coordinate is clipped to ±0.1."""
        del key
        place = state + jnp.clip(action, -_STRIDE, _STRIDE)
        return Transition(place, place, -_distance(place, task), jnp.zeros((), bool))

    def succeeded(self, state: Float[Array, "2"], task: Parameters) -> Bool[Array, ""]:
        """Whether the point is at the goal."""
        return _distance(state, task) <= self.tolerance

    def draw_paths(self, axes: Any, task: Mapping[str, float], paths: Mapping[str, Paths]) -> None:
        """The ways in the plane, and the goal."""
        for label, path in paths.items():
            axes.plot(*path.joined(path.observations).T, linewidth=1.2, label=label)
        self._draw_ends(axes, task)
        axes.set_aspect("equal", adjustable="datalim")

    def draw_moment(self, axes: Any, task: Mapping[str, float], path: Paths, time: int) -> None:
        """The way so far, and the point."""
        axes.plot(*path.observations[0, : time + 1].T, linewidth=1.2)
        axes.plot(*path.observations[0, time], "o", color="#0072B2", markersize=8)
        self._draw_ends(axes, task)
        reach = 1.4 * max(self.largest("goal_x"), self.largest("goal_y"))
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")

    def _draw_ends(self, axes: Any, task: Mapping[str, float]) -> None:
        axes.plot(0, 0, "o", color="black", markersize=4, label="start")
        axes.plot(task["goal_x"], task["goal_y"], "*", color="black", markersize=12, label="goal")
        axes.set(xlabel="x", ylabel="y")


def _distance(place: Float[Array, "2"], task: Parameters) -> Float[Array, ""]:
    return jnp.hypot(place[0] - task["goal_x"], place[1] - task["goal_y"])
