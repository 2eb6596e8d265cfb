"""MAML++: learning rates of each layer and step, and the losses after every inner step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from pydantic.types import NonNegativeInt

from twmaml.adaptation.base import Adaptation, Judge, inner_gradient
from twmaml.models.base import Model
from twmaml.types import Fast, LossOf, Outcome, Params, PositiveReal, Step


class WeightsAndStepRates(NamedTuple):
    """The meta-parameters of MAML++."""

    weights: Params
    rates: PyTree[Float[Array, " steps"]]
    """A rate for every inner step, by array of weights."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class MAMLPlusPlus(Adaptation):
    """The initial weights are learned, and a rate for each layer's weights and biases at each inner step.

    The meta-step descends Σ_j v_j · (loss after j steps), with v_j = 1/K for all K steps at first; those of the earlier
    steps fall to 0 and the last one's rises to 1 by the meta-step `annealing`. (The authors' code keeps a hundredth or
    so for the earlier ones.) Steps beyond K, in evaluation, take the last rate.

    Args:
        learning_rate: at which the rates of the first inner step start.
        steps: inner steps in training, K.
        annealing: meta-steps in which the earlier losses fade.
        second_order_from: meta-step before which the derivative of the inner gradient is left out; off in every
            released configuration of the authors.
        decay: factor of the learning rate from one inner step to the next, at the start.

    References:
        Antoniou, Edwards, Storkey 2019, How to train your MAML, section 4 (without its normalisation of batches).
    """

    learning_rate: PositiveReal
    steps: PositiveInt
    annealing: PositiveInt
    second_order_from: NonNegativeInt = 0
    decay: PositiveReal = 1.0

    def init(self, key: Key[Array, ""], model: Model, example_input: Any) -> WeightsAndStepRates:
        """Fresh weights, and rates alike for all layers."""
        weights = model.init(key, example_input)
        rates = self.learning_rate * self.decay ** jnp.arange(self.steps, dtype=jnp.float32)
        return WeightsAndStepRates(weights, jax.tree.map(lambda _: rates, weights))

    def learned(self, meta_params: WeightsAndStepRates) -> Mapping[str, PyTree[Any]]:
        """The rates."""
        return {"learning rate": meta_params.rates}

    def start(self, meta_params: WeightsAndStepRates) -> Fast:
        """The initial weights."""
        return meta_params.weights

    def step(
        self,
        model: Model,
        meta_params: WeightsAndStepRates,
        fast: Fast,
        loss_of: LossOf,
        key: Key[Array, ""],
        index: int | Int[Array, ""],
    ) -> Fast:
        """fast - rates of the step * gradient of the loss."""
        return _descend(meta_params.rates, fast, inner_gradient(self, model, meta_params, fast, loss_of, key), index)

    def objective(
        self,
        model: Model,
        meta_params: WeightsAndStepRates,
        loss_of: LossOf,
        judge: Judge,
        key: Key[Array, ""],
        meta_step: Step,
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the losses after every inner step, and the outcome after the last."""
        second_order = meta_step >= self.second_order_from

        def step(fast: Fast, key_and_index: tuple[Array, Array]) -> tuple[Fast, Outcome]:
            key, index = key_and_index
            gradient = inner_gradient(self, model, meta_params, fast, loss_of, key)
            gradient = jax.tree.map(lambda g: jnp.where(second_order, g, jax.lax.stop_gradient(g)), gradient)
            fast = _descend(meta_params.rates, fast, gradient, index)
            return fast, judge(fast)

        keys = jax.random.split(key, self.steps)
        _, outcomes = jax.lax.scan(step, self.start(meta_params), (keys, jnp.arange(self.steps)))
        last = jax.tree.map(lambda each: each[-1], outcomes)
        return jnp.sum(self.shares(meta_step) * outcomes.loss), last

    def shares(self, meta_step: Step) -> Float[Array, " steps"]:
        """v: by what the loss after each inner step is multiplied; they sum to 1."""
        left = jnp.maximum(1 - meta_step / self.annealing, 0)
        earlier = jnp.full(self.steps - 1, left / self.steps)
        return jnp.append(earlier, 1 - jnp.sum(earlier))


def _descend(rates: PyTree[Float[Array, " steps"]], fast: Fast, gradient: Fast, index: int | Int[Array, ""]) -> Fast:
    return jax.tree.map(lambda p, r, g: p - r[jnp.minimum(index, r.size - 1)] * g, fast, rates, gradient)
