"""The protocol of task families."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key, PyTree

from twmaml.space.grid import ParameterGrid
from twmaml.types import Outcome, Predict


@runtime_checkable
class TaskFamily(Protocol):
    """A distribution of tasks: its grid, its data, its loss."""

    on_policy: bool
    """Whether data depends on the predictor and so is collected anew before each inner step."""

    @property
    def grid(self) -> ParameterGrid:
        """The task-parameter space."""
        ...

    @property
    def example_input(self) -> PyTree[Array]:
        """Inputs of one example, for the model to shape its weights."""
        ...

    def collect(self, key: Key[Array, ""], task: Float[Array, " axes"], predict: Predict, n: int) -> Any:
        """`n` examples of a task."""
        ...

    def outcome(self, predict: Predict, data: Any) -> Outcome:
        """How a predictor does on data."""
        ...
