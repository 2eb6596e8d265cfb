"""Cart-pole and pendulum, of gymnax, with masses, lengths and forces as task parameters."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.errors import ConfigurationError
from twmaml.space.axis import Interval, Nuisance, Segments
from twmaml.tasks.control.environment import Environment, Paths, Transition
from twmaml.tasks.parameters import Parameters
from twmaml.types import Real

_STRICT = ConfigDict(strict=True, extra="forbid")

_MOST_TORQUE, _MOST_SPEED = 2.0, 8.0
"""Bounds of the pendulum, at which gymnax clips."""


@cache
def _gymnax(name: str) -> tuple[Any, Any]:
    """An environment of gymnax, and its parameters."""
    try:
        from gymnax.environments.classic_control import cartpole, pendulum  # noqa: PLC0415  takes seconds
    except ImportError as error:
        raise ConfigurationError(f'task: {name} needs gymnax: pip install -e ".[control]" ({error})') from error
    environment = {"CartPole": cartpole.CartPole, "Pendulum": pendulum.Pendulum}[name]()
    return environment, environment.default_params


def _check_positive(environment: Environment, name: str) -> None:
    if environment.smallest(name) <= 0:
        raise ValueError(f"{name} must be above 0. Got {environment.smallest(name):g}")


@dataclass(frozen=True, config=_STRICT)
class CartPole(Environment):
    """A pole on a cart that is pushed to the left or to the right. The reward is 1 until it falls.

    Args:
        force_gain: of a push, in newtons; negative: the two actions have changed places.
        pole_length: half the length of the pole, in metres.
        horizon: actions of an episode.

    References:
        Lange 2022, gymnax, CartPole-v1, whose `step_env` this is.
    """

    force_gain: Interval | Segments | Nuisance | Real
    pole_length: Interval | Segments | Nuisance | Real
    horizon: PositiveInt

    observations = 4
    actions = 2
    discrete = True

    def __post_init__(self) -> None:
        _check_positive(self, "pole_length")
        _gymnax("CartPole")
        super().__post_init__()

    @property
    def return_range(self) -> tuple[float, float]:
        """From no action to all of them."""
        return 0.0, float(self.horizon)

    def reset(self, key: Key[Array, ""], task: Parameters) -> tuple[Any, Float[Array, "4"]]:
        """Upright, up to 0.05 in every coordinate."""
        del task
        environment, defaults = _gymnax("CartPole")
        observation, state = environment.reset_env(key, defaults)
        return state, observation

    def step(self, key: Key[Array, ""], state: Any, action: Int[Array, ""], task: Parameters) -> Transition:
        """Pushes. The episode is over when the cart is further than 2.4 m or the pole by more than 24° off."""
        environment, defaults = _gymnax("CartPole")
        length = task["pole_length"]
        own = defaults.replace(force_mag=task["force_gain"], length=length, polemass_length=defaults.masspole * length)
        observation, state, reward, done, _ = environment.step_env(key, state, action, own)
        return Transition(state, observation, reward, done)

    def succeeded(self, state: Any, task: Parameters) -> Bool[Array, ""]:
        """Whether the pole is still up."""
        del task
        environment, defaults = _gymnax("CartPole")
        return ~environment.is_terminated(state, defaults)

    def draw_paths(self, axes: Any, task: Mapping[str, float], paths: Mapping[str, Paths]) -> None:
        """The angle of the pole over time."""
        for label, path in paths.items():
            path.draw(axes, np.rad2deg(path.observations[..., 2]), label)
        axes.set(xlabel="time step", ylabel="angle of the pole [°]")

    def draw_moment(self, axes: Any, task: Mapping[str, float], path: Paths, time: int) -> None:
        """The cart and its pole."""
        x, angle = path.observations[0, time, 0], path.observations[0, time, 2]
        axes.plot([-2.4, 2.4], [0, 0], color="0.6", linewidth=1)
        axes.plot([x - 0.25, x + 0.25], [0, 0], color="black", linewidth=8, solid_capstyle="butt")
        length = 2 * task["pole_length"]
        axes.plot([x, x + length * np.sin(angle)], [0, length * np.cos(angle)], color="#E69F00", linewidth=4)
        axes.set(xlim=(-2.6, 2.6), ylim=(-0.4, max(2 * length, 1)), aspect="equal")


@dataclass(frozen=True, config=_STRICT)
class Pendulum(Environment):
    """A pendulum to swing up and hold with little torque. The reward is minus angle² + 0.1 speed² + 0.001 torque².

    Args:
        mass: in kilograms.
        length: in metres.
        horizon: actions of an episode.

    References:
        Lange 2022, gymnax, Pendulum-v1, whose `step_env` this is.
    """

    mass: Interval | Segments | Nuisance | Real
    length: Interval | Segments | Nuisance | Real
    horizon: PositiveInt

    observations = 3
    actions = 1

    def __post_init__(self) -> None:
        for name in ("mass", "length"):
            _check_positive(self, name)
        _gymnax("Pendulum")
        super().__post_init__()

    @property
    def return_range(self) -> tuple[float, float]:
        """From hanging down at full speed to standing upright all the time."""
        return -self.horizon * (np.pi**2 + 0.1 * _MOST_SPEED**2 + 0.001 * _MOST_TORQUE**2), 0.0

    def reset(self, key: Key[Array, ""], task: Parameters) -> tuple[Any, Float[Array, "3"]]:
        """Any angle, up to 1 rad a second."""
        del task
        environment, defaults = _gymnax("Pendulum")
        observation, state = environment.reset_env(key, defaults)
        return state, observation

    def step(self, key: Key[Array, ""], state: Any, action: Float[Array, "1"], task: Parameters) -> Transition:
        """Turns by `action` times the greatest torque, 2 Nm, beyond which it is clipped."""
        environment, defaults = _gymnax("Pendulum")
        own = defaults.replace(m=task["mass"], l=task["length"])
        observation, state, reward, done, _ = environment.step_env(key, state, _MOST_TORQUE * action, own)
        return Transition(state, observation, reward, done)

    def draw_paths(self, axes: Any, task: Mapping[str, float], paths: Mapping[str, Paths]) -> None:
        """The height of the end over time."""
        for label, path in paths.items():
            path.draw(axes, path.observations[..., 0], label)
        axes.set(xlabel="time step", ylabel="height / length", ylim=(-1.1, 1.1))

    def draw_moment(self, axes: Any, task: Mapping[str, float], path: Paths, time: int) -> None:
        """The pendulum."""
        cosine, sine = path.observations[0, time, :2]
        length = task["length"]
        axes.plot([0, length * sine], [0, length * cosine], color="#E69F00", linewidth=4)
        axes.plot(0, 0, "o", color="black")
        axes.set(xlim=(-1.2 * length, 1.2 * length), ylim=(-1.2 * length, 1.2 * length), aspect="equal")
