"""The part that all regressions share."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from twmaml.tasks.base import AdaptationPath, Part, TaskFamily
from twmaml.tasks.parameters import Parameters, Parametrised
from twmaml.types import Metric, Outcome, Predict


class Examples(NamedTuple):
    """Data of a regression."""

    inputs: Float[Array, "examples inputs"]
    targets: Float[Array, "examples outputs"]


class SquaredErrorFamily(TaskFamily):
    """A family whose examples are vectors, judged by the mean squared error over all outputs."""

    inputs = 1
    """Numbers of an input; those of a target are `outputs`."""
    score = Metric("loss", "mean squared error")

    @property
    def example_input(self) -> Float[Array, " inputs"]:
        """Real numbers."""
        return jnp.zeros(self.inputs)

    @abstractmethod
    def examples(self, key: Key[Array, ""], episode: Any, part: Part, n: int) -> Examples:
        """`n` examples of an episode, whatever the predictor."""

    def collect(self, key: Key[Array, ""], episode: Any, part: Part, predict: Predict, n: int) -> Examples:
        """The same; the fast meta-gradient relies on it."""
        del predict
        return self.examples(key, episode, part, n)

    def outcome(self, predict: Predict, examples: Examples) -> Outcome:
        """The mean squared error, as loss and as score."""
        predictions = predict(examples.inputs)
        if jnp.shape(predictions) != examples.targets.shape:  # broadcasting would hide it
            raise ValueError(
                "the network's outputs and the targets must have the same shape. "
                f"Got {predictions.shape} and {examples.targets.shape}"
            )
        loss = jnp.mean((predictions - examples.targets) ** 2)
        return Outcome(loss=loss, score=loss, metrics={})

    def support_of(self, x: Any, y: Any) -> Examples:
        """Inputs and targets as rows."""
        inputs, targets = (jnp.asarray(part, jnp.float32) for part in (x, y))
        return Examples(inputs.reshape(-1, self.inputs), targets.reshape(-1, self.outputs))


_NOISE = 0x6E6F6973  # folded into a key that inputs are drawn by


class Regression(Parametrised, SquaredErrorFamily):
    """A family of functions, of one real input unless it says otherwise.

    A subclass is a frozen dataclass whose fields are task parameters (`Parametrised`). Besides them it needs the
    fields `x_low` and `x_high`, the range of the inputs, and `target`; it may have a field `noise`, and with
    `inputs = 2` or `outputs = 3` in the class a function of vectors.
    """

    x_low: float
    x_high: float
    noise: Any = 0.0
    """Standard deviation of Gaussian noise on every target: a task parameter. Its square is a loss that stays."""

    def __post_init__(self) -> None:
        if not self.x_low < self.x_high:
            raise ValueError(f"x_low must be less than x_high. Got x_low={self.x_low}, x_high={self.x_high}")
        if self.smallest("noise") < 0:
            raise ValueError(f"noise must not be negative. Got {self.smallest('noise'):g}")
        self.grid  # noqa: B018  says now what is wrong with the axes

    @abstractmethod
    def target(self, parameters: Parameters, x: Float[Array, "examples inputs"]) -> Float[Array, "examples outputs"]:
        """The task's function."""

    def episode(self, key: Key[Array, ""], task: Float[Array, " axes"], data: PyTree[Array]) -> Parameters:
        """All parameters of a task: those of the grid, those drawn anew, and the fixed ones."""
        del data
        return self.parameters(key, task)

    def examples(self, key: Key[Array, ""], episode: Parameters, part: Part, n: int) -> Examples:
        """Inputs drawn uniformly from the range, and the task's function of them with noise."""
        del part
        inputs = jax.random.uniform(key, (n, self.inputs), minval=self.x_low, maxval=self.x_high)
        targets = self.target(episode, inputs)
        if self.noise != 0:  # else the program has none of it
            deviation = episode.get("noise", self.noise)
            targets = targets + deviation * jax.random.normal(jax.random.fold_in(key, _NOISE), targets.shape)
        return Examples(inputs, targets)

    def picture(self, episode: Parameters, support: Examples, path: AdaptationPath) -> dict[str, Array]:
        """Target, support and predictions over the range of inputs; nothing of a function of vectors."""
        if self.inputs > 1 or self.outputs > 1:
            return {}
        x = jnp.linspace(self.x_low, self.x_high, 200)
        return {
            "x": x,
            "targets": self.target(episode, x[:, None])[:, 0],
            "predictions": path(lambda predict: predict(x[:, None])[:, 0]),
            "support_inputs": support.inputs[:, 0],
            "support_targets": support.targets[:, 0],
        }

    def draw_picture(self, axes: Any, picture: Mapping[str, np.ndarray]) -> None:
        """The task's function, the support points, and the network after no, one and all inner steps."""
        axes.plot(picture["x"], picture["targets"], color="black", linewidth=2, label="target")
        axes.plot(picture["support_inputs"], picture["support_targets"], "^", color="black", label="support points")
        predictions = picture["predictions"]
        for k, line in zip(sorted({0, 1, len(predictions) - 1}), (":", "--", "-"), strict=False):
            label = f"after {k} inner step{'' if k == 1 else 's'}"
            axes.plot(picture["x"], predictions[k], line, linewidth=1.8, label=label)
        axes.set(xlabel="x", ylabel="y")


def is_mean_squared_error(family: TaskFamily) -> bool:
    """Whether the loss and the score of a family are the mean squared error of its examples, and nothing else."""
    return isinstance(family, SquaredErrorFamily) and all(
        getattr(type(family), name) is getattr(SquaredErrorFamily, name) for name in ("collect", "outcome", "on_policy")
    )
