"""The dynamics of pendulums of varying mass and length, to be identified from a few transitions."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.space.axis import Parameter
from twmaml.tasks.base import AdaptationPath, Part
from twmaml.tasks.parameters import Parametrised
from twmaml.tasks.regression import Examples, SquaredErrorFamily

_GRAVITY, _TIME_STEP, _MOST_TORQUE, _MOST_SPEED = 10.0, 0.05, 2.0, 8.0
"""As in gymnasium's Pendulum-v1."""


class Transitions(NamedTuple):
    """An episode: its transitions in the order of time, and a random number of each, by which examples are chosen."""

    all: Examples
    lots: Float[Array, " horizon"]

    def chosen(self, part: Part, n: int) -> Int[Array, " n"]:
        """The places of the largest lots for support, of the smallest for query."""
        # Of equal lots the first and the last, so that no transition is both. To sort them all would take far longer.
        if part == "support":
            return jax.lax.top_k(self.lots, n)[1]
        return len(self.lots) - 1 - jax.lax.top_k(-self.lots[::-1], n)[1]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class PendulumDynamics(Parametrised, SquaredErrorFamily):
    """A pendulum under random torques: (cos angle, sin angle, angular velocity, torque) -> what it does next.

    Examples are transitions of one episode, chosen at random; those of support and query are different ones.

    Args:
        mass: in kilograms: an axis, or one number for all tasks.
        length: in metres, likewise.
        horizon: transitions of an episode.
        predicts: the next (cos angle, sin angle, angular velocity), or how much they change.

    References:
        Wang et al. 2023, A simple yet effective strategy to robustify the meta learning paradigm (DR-MAML).
        Towers et al. 2024, Gymnasium, whose Pendulum-v1 this is.
    """

    mass: Parameter
    length: Parameter
    horizon: PositiveInt
    predicts: Literal["state", "change"]

    inputs = 4
    outputs = 3

    def __post_init__(self) -> None:
        for name in ("mass", "length"):
            if self.smallest(name) <= 0:
                raise ValueError(f"{name} must be above 0. Got {self.smallest(name):g}")
        self.grid  # noqa: B018  says now what is wrong with the axes

    def check_data(self, data: PyTree[Array], shots: int, queries: int) -> None:
        """Refuses more examples than an episode has.

        Raises:
            ValueError: with what it has.
        """
        del data
        if shots + queries > self.horizon:
            raise ValueError(f"an episode has task.horizon={self.horizon} transitions. Got {shots + queries} examples")

    def episode(self, key: Key[Array, ""], task: Float[Array, " axes"], data: PyTree[Array]) -> Transitions:
        """Swings from any angle, at up to 1 rad/s, under a torque that is drawn anew, up to 2 Nm, at every step."""
        del data
        own_key, start_key, torque_key, lots_key = jax.random.split(key, 4)
        parameters = self.parameters(own_key, task)
        mass, length = parameters["mass"], parameters["length"]
        bounds = jnp.array([jnp.pi, 1.0])
        start = jax.random.uniform(start_key, (2,), minval=-bounds, maxval=bounds)
        torques = jax.random.uniform(torque_key, (self.horizon,), minval=-_MOST_TORQUE, maxval=_MOST_TORQUE)

        def step(state: tuple[Array, Array], push: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            angle, speed = state
            weight = 3 * _GRAVITY / (2 * length) * jnp.sin(angle)
            speed = jnp.clip(speed + (weight + push) * _TIME_STEP, -_MOST_SPEED, _MOST_SPEED)
            after = angle + speed * _TIME_STEP, speed
            return after, after

        _, after = jax.lax.scan(step, (start[0], start[1]), 3 / (mass * length**2) * torques)
        angles, speeds = (jnp.append(first, rest) for first, rest in zip(start, after, strict=True))
        states = jnp.stack([jnp.cos(angles), jnp.sin(angles), speeds], axis=1)
        targets = states[1:] if self.predicts == "state" else jnp.diff(states, axis=0)
        inputs = jnp.concatenate([states[:-1], torques[:, None]], axis=1)
        return Transitions(Examples(inputs, targets), jax.random.uniform(lots_key, (self.horizon,)))

    def examples(self, key: Key[Array, ""], episode: Transitions, part: Part, n: int) -> Examples:
        """Transitions of the episode, others for query than for support."""
        del key
        chosen = episode.chosen(part, n)
        return Examples(*(each[chosen] for each in episode.all))

    def picture(self, episode: Transitions, support: Examples, path: AdaptationPath) -> dict[str, Array]:
        """True and predicted angular acceleration of every transition of the episode, and of which support has."""
        inputs, targets = episode.all

        def acceleration(outputs: Array) -> Array:
            change = outputs[:, 2] - (inputs[:, 2] if self.predicts == "state" else 0)
            return change / _TIME_STEP

        return {
            "accelerations": acceleration(targets),
            "predictions": path(lambda predict: acceleration(predict(inputs))),
            "support": episode.chosen("support", len(support.inputs)),
        }

    def draw_picture(self, axes: Any, picture: Mapping[str, np.ndarray]) -> None:
        """Predicted against true acceleration, after no, one and all inner steps; support with black rings."""
        true, predictions, support = picture["accelerations"], picture["predictions"], picture["support"]
        ends = [true.min(), true.max()]
        axes.plot(ends, ends, color="black", linewidth=1, label="target")
        for k, mark in zip(sorted({0, 1, len(predictions) - 1}), ("x", "+", "o"), strict=False):
            axes.plot(true, predictions[k], mark, markersize=3, label=f"after {k} inner step{'' if k == 1 else 's'}")
        rings: dict[str, Any] = {"markersize": 7, "markerfacecolor": "none", "color": "black"}
        axes.plot(true[support], predictions[-1][support], "o", label="support points", **rings)
        axes.set(xlabel="angular acceleration [rad/s²]", ylabel="predicted")
