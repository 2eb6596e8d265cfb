"""Meta-SGD: the initial weights are learned, and a learning rate for each of them."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from twmaml.adaptation.gradient_descent import GradientDescent
from twmaml.models.base import Model
from twmaml.types import Fast, Params


class WeightsAndRates(NamedTuple):
    """The meta-parameters of Meta-SGD."""

    weights: Params
    rates: Params
    """A rate for each weight; a negative one is allowed."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class MetaSGD(GradientDescent):
    """A step is weights - rates * gradient, element by element.

    Args:
        learning_rate: about which all rates start.
        steps: inner steps in training.
        spread: the part of it by which a rate may start above or below, uniformly.
        decay: factor of all rates from one inner step to the next.

    References:
        Li, Zhou, Chen, Li 2017, Meta-SGD: learning to learn quickly for few-shot learning, equation 2.
    """

    spread: Annotated[float, Field(ge=0, le=1)] = 0.0

    def init(self, key: Key[Array, ""], model: Model, example_input: Any) -> WeightsAndRates:
        """Fresh weights and rates."""
        weights_key, rates_key = jax.random.split(key)
        weights = model.init(weights_key, example_input)
        leaves, structure = jax.tree.flatten(weights)
        keys = jax.random.split(rates_key, len(leaves))
        parts = [jax.random.uniform(k, leaf.shape, leaf.dtype, -1, 1) for k, leaf in zip(keys, leaves, strict=True)]
        rates = [self.learning_rate * (1 + self.spread * part) for part in parts]
        return WeightsAndRates(weights, jax.tree.unflatten(structure, rates))

    def learned(self, meta_params: WeightsAndRates) -> Mapping[str, PyTree[Any]]:
        """The rates."""
        return {"learning rate": meta_params.rates}

    def start(self, meta_params: WeightsAndRates) -> Fast:
        """The initial weights."""
        return meta_params.weights

    def direction(self, meta_params: WeightsAndRates, fast: Fast, gradient: Fast) -> Fast:
        """Rates * gradient."""
        del fast
        return jax.tree.map(jnp.multiply, meta_params.rates, gradient)

    def rate(self, index: int | Int[Array, ""]) -> float | Float[Array, ""]:
        """The part of the learned rates that an inner step takes."""
        return 1.0 if self.decay == 1 else self.decay ** jnp.float32(index)
