"""Half-cheetah and ant, of brax. A meta-step of usual size takes many seconds on a CPU: they want an accelerator."""

import warnings
from functools import cache
from importlib import import_module
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.errors import ConfigurationError
from twmaml.space.axis import Interval, Nuisance, Segments
from twmaml.tasks.control.environment import Environment, Transition
from twmaml.tasks.parameters import Parameters
from twmaml.types import Real

Backend = Literal["spring", "positional", "generalized", "mjx"]

_FASTEST_ANT = 4.0
"""Metres a second that no policy has been seen to exceed much; only the zero of the queue's score depends on it."""

_CONTROL_COST = 0.05


@cache
def _brax(name: str, backend: str) -> Any:
    """An environment of brax, without its wrappers: they would restart episodes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that brax and what it builds on are no longer developed
        try:
            envs = import_module("brax.envs")  # takes seconds
        except ImportError as error:
            raise ConfigurationError(f'task: {name} needs brax: pip install -e ".[brax]" ({error})') from error
        return envs.get_environment(name, backend=backend)


class _Locomotion(Environment):
    """A body of brax."""

    name: str
    backend: Backend

    def __post_init__(self) -> None:
        _brax(self.name, self.backend)  # outside of what the base class takes for errors of the environment
        super().__post_init__()

    def reset(self, key: Key[Array, ""], task: Parameters) -> tuple[Any, Float[Array, " observations"]]:
        """The body at rest, with some noise."""
        del task
        state = _brax(self.name, self.backend).reset(key)
        return state, state.obs

    def _advance(self, state: Any, action: Float[Array, " actions"]) -> tuple[Any, Float[Array, ""]]:
        """The next state, and the cost of the action, which is clipped to ±1."""
        action = jnp.clip(action, -1, 1)
        return _brax(self.name, self.backend).step(state, action), _CONTROL_COST * jnp.sum(action**2)


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class HalfCheetah(_Locomotion):
    """A planar body that has to run at a velocity. The reward is minus the difference, and the cost of the action.

    Args:
        velocity: to run at, in metres a second.
        horizon: actions of an episode, of 0.05 s each.
        backend: of brax.

    References:
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, section 5.3 (goal velocity).
        Freeman, Frey, Raichuk, Girgin, Mordatch, Bachem 2021, Brax.
    """

    velocity: Interval | Segments | Nuisance | Real
    horizon: PositiveInt
    backend: Backend = "spring"

    name = "halfcheetah"
    observations, actions = 17, 6

    @property
    def return_range(self) -> tuple[float, float]:
        """From standing still where the fastest is asked for, at full cost, to running as asked at none."""
        return -self.horizon * (self.largest("velocity") + _CONTROL_COST * self.actions), 0.0

    def step(self, key: Key[Array, ""], state: Any, action: Float[Array, " actions"], task: Parameters) -> Transition:
        """Moves the joints."""
        del key
        state, cost = self._advance(state, action)
        off = jnp.abs(state.metrics["x_velocity"] - task["velocity"])
        return Transition(state, state.obs, -off - cost, state.done > 0)


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Ant(_Locomotion):
    """A body on four legs that has to walk in a direction. The reward is its speed there plus 1, less the cost.

    Args:
        direction: to walk in.
        horizon: actions of an episode, of 0.05 s each.
        backend: of brax.

    References:
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, section 5.3 (goal direction).
        Freeman, Frey, Raichuk, Girgin, Mordatch, Bachem 2021, Brax.
    """

    direction: Interval | Segments | Nuisance | Real
    horizon: PositiveInt
    backend: Backend = "spring"

    name = "ant"
    observations, actions = 27, 8

    @property
    def return_range(self) -> tuple[float, float]:
        """From falling over at once to walking at 4 m/s."""
        return 0.0, self.horizon * (_FASTEST_ANT + 1)

    def step(self, key: Key[Array, ""], state: Any, action: Float[Array, " actions"], task: Parameters) -> Transition:
        """Moves the joints; the episode is over when the body falls over."""
        del key
        state, cost = self._advance(state, action)
        speed = state.metrics["x_velocity"] * jnp.cos(task["direction"])
        speed = speed + state.metrics["y_velocity"] * jnp.sin(task["direction"])
        return Transition(state, state.obs, speed + 1 - cost, state.done > 0)
