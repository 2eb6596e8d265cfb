"""The part that all regressions share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from twmaml.space.axis import Axis
from twmaml.space.grid import ParameterGrid
from twmaml.types import Outcome, Predict


class Examples(NamedTuple):
    """Data of a regression."""

    inputs: Float[Array, "examples 1"]
    targets: Float[Array, "examples 1"]


class Regression:
    """A family of functions of one real input, judged by the mean squared error.

    A subclass is a frozen dataclass. Each field annotated `Axis | float` is a task parameter: one axis of the grid
    if it is given as an `Axis`, otherwise fixed. Besides them it needs the fields `x_low` and `x_high`, the
    range of the inputs, and `target`.
    """

    x_low: float
    x_high: float
    on_policy = False

    def __post_init__(self) -> None:
        if not self.x_low < self.x_high:
            raise ValueError(f"x_low must be less than x_high. Got x_low={self.x_low}, x_high={self.x_high}")
        ParameterGrid(self._axes())  # says now what is wrong with the axes

    def _axes(self) -> dict[str, Axis]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Axis)}

    @property
    def grid(self) -> ParameterGrid:
        """One axis for each parameter that varies."""
        return ParameterGrid(self._axes())

    @property
    def example_input(self) -> Float[Array, " 1"]:
        """One real number."""
        return jnp.zeros(1)

    def target(
        self, parameters: dict[str, Float[Array, ""] | float], x: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The task's function, given all parameters by name; angles in radians."""
        raise NotImplementedError

    def parameters(self, task: Float[Array, " axes"]) -> dict[str, Float[Array, ""] | float]:
        """All parameters of a task by name: those of the grid and the fixed ones."""
        return {**vars(self), **dict(zip(self._axes(), task, strict=True))}

    def collect(self, key: Key[Array, ""], task: Float[Array, " axes"], predict: Predict, n: int) -> Examples:
        """Inputs drawn uniformly from the range, and the task's function of them."""
        del predict
        inputs = jax.random.uniform(key, (n, 1), minval=self.x_low, maxval=self.x_high)
        return Examples(inputs, self.target(self.parameters(task), inputs))

    def outcome(self, predict: Predict, data: Examples) -> Outcome:
        """The mean squared error, as loss and as score."""
        predictions = predict(data.inputs)
        if predictions.shape != data.targets.shape:  # broadcasting would hide it
            raise ValueError(
                "the network's outputs and the targets must have the same shape. "
                f"Got {predictions.shape} and {data.targets.shape}"
            )
        loss = jnp.mean((predictions - data.targets) ** 2)
        return Outcome(loss=loss, score=loss, metrics={})
