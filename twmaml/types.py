"""Names for the array types and function types that several modules share."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Int, Key, PyTree

Params = PyTree[Any]
"""Weights of a network, as its model structures them."""

MetaParams = PyTree[Any]
"""What the meta-step updates: for MAML the initial weights themselves."""

Predict = Callable[[Any], Any]
"""A network with its weights bound: inputs -> outputs."""

LossOf = Callable[[Predict, Key[Array, ""]], Float[Array, ""]]
"""Loss of a predictor on support data; the key serves families that collect their data anew."""

Schedule = Callable[[Any], Any]
"""An optax schedule: meta-step -> value."""

Step = Int[Array, ""]
"""A meta-step, counted from 0."""
