"""Names for the array types and function types that several modules share."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree
from pydantic import Field

Params = PyTree[Any]
"""Weights of a network, as its model structures them."""

MetaParams = PyTree[Any]
"""The parameters that the meta-step updates: for MAML the initial weights themselves."""

Fast = PyTree[Any]
"""The parameters that an adaptation changes for one task: weights, a context, a last layer."""

Predict = Callable[[Any], Any]
"""A network with its weights bound: inputs -> outputs."""

LossOf = Callable[[Predict, Key[Array, ""]], Float[Array, ""]]
"""Loss of a predictor on support data; the key serves families that collect their data anew."""

Schedule = Callable[[Any], Any]
"""An optax schedule: meta-step -> value."""

Step = Int[Array, ""]
"""A meta-step, counted from 0."""

Real = Annotated[float, Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]
"""A configured number that single precision can hold."""

Number = float | Float[Array, ""]
"""A configured number, which may instead be an argument of a program."""

PositiveReal = Annotated[Real, Field(gt=0)]

NotNegativeReal = Annotated[Real, Field(ge=0)]

InnerSteps = Annotated[int, Field(ge=0, le=100_000)]
"""Number of steps of adapting to one task, one after the other; more than the bound is a slip of the finger."""


class Outcome(NamedTuple):
    """How a predictor did on one task's data."""

    loss: Float[Array, ""]
    """To be differentiated."""
    score: Float[Array, ""]
    """To be stored in the queue; not negative."""
    metrics: dict[str, Float[Array, ""]]
    """Further figures by name, averaged over the tasks and logged as `train/<name>`."""


class Metric(NamedTuple):
    """A figure of how a predictor did, and which way is better."""

    key: str
    """Its name in metrics.csv and in files, `accuracy` say."""
    label: str
    unit: str = ""
    higher_is_better: bool = False
    logarithmic: bool = True
    """Whether figures show it on a logarithmic scale."""
