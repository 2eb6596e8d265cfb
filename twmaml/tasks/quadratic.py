"""Parabolas, of which the three coefficients may vary."""

from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.space.axis import Parameter
from twmaml.tasks.regression import Regression
from twmaml.types import Real


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Quadratic(Regression):
    """y = a * x**2 + b * x + c.

    Args:
        a: an axis, or one number for all tasks.
        b: likewise.
        c: likewise.
        x_low: smallest input.
        x_high: largest input.
        noise: standard deviation of what is added to every target: an axis, or one number for all tasks.
    """

    a: Parameter
    b: Parameter
    c: Parameter
    x_low: Real
    x_high: Real
    noise: Parameter = 0.0

    def target(
        self, parameters: dict[str, Float[Array, ""] | float], x: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The parabola at x."""
        return parameters["a"] * x**2 + parameters["b"] * x + parameters["c"]
