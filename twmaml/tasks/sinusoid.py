"""Sinusoids, of which amplitude, phase and frequency may vary."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.space.axis import Parameter
from twmaml.tasks.regression import Regression
from twmaml.types import Real


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Sinusoid(Regression):
    """y = amplitude * sin(frequency * x + phase).

    Args:
        amplitude: an axis, or one number for all tasks.
        phase: an axis (with unit `deg` or `rad`), or one number in radians.
        frequency: an axis, or one number for all tasks.
        x_low: smallest input.
        x_high: largest input.
        noise: standard deviation of what is added to every target: an axis, or one number for all tasks.

    References:
        Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning, section 5.1 (there with minus the phase).
    """

    amplitude: Parameter
    phase: Parameter
    frequency: Parameter
    x_low: Real
    x_high: Real
    noise: Parameter = 0.0

    def target(
        self, parameters: dict[str, Float[Array, ""] | float], x: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The sinusoid at x."""
        return parameters["amplitude"] * jnp.sin(parameters["frequency"] * x + parameters["phase"])
