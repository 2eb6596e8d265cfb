"""Meta-SGD: the initial weights are learned, and a learning rate for each of them."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.adaptation.base import Adaptation, inner_gradient
from twmaml.models.base import Model
from twmaml.types import Fast, InnerSteps, LossOf, Params, Real


class WeightsAndRates(NamedTuple):
    """What is learned."""

    weights: Params
    rates: Params
    """Of each weight; a negative one is allowed."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class MetaSGD(Adaptation):
    """A step is weights - rates * gradient, element by element.

    Args:
        steps: inner steps in training.
        lowest_rate: rates start uniformly between this one
        highest_rate: and this one.

    References:
        Li, Zhou, Chen, Li 2017, Meta-SGD: learning to learn quickly for few-shot learning, equation 2.
    """

    steps: InnerSteps
    lowest_rate: Real
    highest_rate: Real

    def __post_init__(self) -> None:
        if self.lowest_rate > self.highest_rate:
            raise ValueError(f"lowest_rate must not be above highest_rate={self.highest_rate}. Got {self.lowest_rate}")

    def init(self, key: Key[Array, ""], model: Model, example_input: Any) -> WeightsAndRates:
        """Fresh weights and rates."""
        weights_key, rates_key = jax.random.split(key)
        weights = model.init(weights_key, example_input)
        leaves, structure = jax.tree.flatten(weights)
        keys = jax.random.split(rates_key, len(leaves))
        ends: dict[str, Any] = {"minval": self.lowest_rate, "maxval": self.highest_rate}
        rates = [jax.random.uniform(k, leaf.shape, leaf.dtype, **ends) for k, leaf in zip(keys, leaves, strict=True)]
        return WeightsAndRates(weights, jax.tree.unflatten(structure, rates))

    def start(self, meta_params: WeightsAndRates) -> Fast:
        """The initial weights."""
        return meta_params.weights

    def step(
        self,
        model: Model,
        meta_params: WeightsAndRates,
        fast: Fast,
        loss_of: LossOf,
        key: Key[Array, ""],
        index: int | Int[Array, ""],
    ) -> Fast:
        """fast - rates * gradient of the loss."""
        del index
        gradient = inner_gradient(self, model, meta_params, fast, loss_of, key)
        return jax.tree.map(lambda p, r, g: p - r * g, fast, meta_params.rates, gradient)
