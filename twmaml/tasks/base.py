"""The base class of task families."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from twmaml.space.grid import ParameterGrid
from twmaml.types import Metric, Outcome, Predict

Part = Literal["support", "query"]

AdaptationPath = Callable[[Callable[[Predict], Any]], Any]
"""path(observe): `observe` of the predictor after 0, 1, ... inner steps, stacked along the first axis."""


class TaskFamily(ABC):
    """A distribution of tasks: its grid, its data, its loss, its pictures. A subclass is a frozen dataclass."""

    on_policy = False
    """Whether data depends on the predictor and so is collected anew before each inner step."""
    score = Metric("loss", "loss")
    """The queue's number, as figures and tables call it."""
    metrics = tuple[Metric, ...]()
    """Further results of evaluation: keys of `Outcome.metrics`."""
    outputs = 1
    """Units of the last layer of a network for this family."""
    evaluated_at_once = 15
    """Evaluation tasks that are adapted side by side on a CPU: as many as a core's cache holds."""
    protocol = ""
    """A part of what figures must agree in to be compared; numbers of examples and steps come besides."""

    @property
    @abstractmethod
    def grid(self) -> ParameterGrid:
        """The task-parameter space."""

    @property
    @abstractmethod
    def example_input(self) -> PyTree[Array]:
        """Inputs of one example, for the model to shape its weights."""

    def data(self) -> PyTree[Array]:
        """Arrays that all tasks read, loaded once; an argument of every program instead of a constant in it."""
        return ()

    def check_data(self, data: PyTree[Array], shots: int, queries: int) -> None:
        """Refuses numbers of examples that the data cannot give.

        Raises:
            ValueError: with what it can give.
        """
        del data, shots, queries

    def relate_data(self, data: PyTree[Array], training: PyTree[Array]) -> str:
        """How far data to judge on is that of training, in words; nothing of a family that has none."""
        del data, training
        return ""

    def describe_data(self, data: PyTree[Array]) -> str:
        """The size of the data in words; nothing of a family that has none."""
        del data
        return ""

    def episode(self, key: Key[Array, ""], task: Float[Array, " axes"], data: PyTree[Array]) -> Any:
        """The part that support and query of a task share: its parameters, and the classes drawn, say."""
        del key, data
        return task

    @abstractmethod
    def collect(self, key: Key[Array, ""], episode: Any, part: Part, predict: Predict, n: int) -> Any:
        """`n` examples of an episode (of each class, where there are classes)."""

    @abstractmethod
    def outcome(self, predict: Predict, examples: Any) -> Outcome:
        """How a predictor does on examples."""

    def picture(self, episode: Any, support: Any, path: AdaptationPath) -> dict[str, Array]:
        """Arrays that show a task before and after adapting; compiled. Nothing for a family that has no picture."""
        del episode, support, path
        return {}

    def draw_picture(self, axes: Any, picture: Mapping[str, np.ndarray]) -> None:
        """Draws one task's picture into Matplotlib's axes."""
        del axes, picture

    def inputs_of(self, x: Any) -> Any:
        """A user's own inputs in the form that a network takes."""
        return x

    def support_of(self, x: Any, y: Any) -> Any:
        """A user's own examples in the form of `collect`, to adapt to."""
        raise NotImplementedError(f"{type(self).__name__} has no support_of(x, y), so it cannot adapt to arrays")
