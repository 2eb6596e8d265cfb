"""Model-agnostic meta-learning."""

from functools import partial

import jax
from jaxtyping import Array, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.models.base import Model
from twmaml.types import InnerSteps, LossOf, MetaParams, Params, PositiveReal


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class MAML:
    """Model-agnostic meta-learning: the meta-parameters are the initial weights, a step is plain SGD.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training; 0 trains the initial weights on all tasks at once.
        first_order: leave out the derivative of the inner gradient (FOMAML).

    References:
        Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning, equation 1; section 5.2 for first order.
    """

    learning_rate: PositiveReal
    steps: InnerSteps
    first_order: bool = False

    def init(self, params: Params) -> MetaParams:
        """The weights themselves."""
        return params

    def start(self, meta_params: MetaParams) -> Params:
        """The weights themselves."""
        return meta_params

    def step(
        self, meta_params: MetaParams, params: Params, model: Model, loss_of: LossOf, key: Key[Array, ""]
    ) -> Params:
        """params - learning_rate * gradient of the loss."""
        del meta_params
        gradient = jax.grad(lambda params: loss_of(partial(model.apply, params), key))(params)
        if self.first_order:
            gradient = jax.lax.stop_gradient(gradient)
        return jax.tree.map(lambda p, g: p - self.learning_rate * g, params, gradient)

    def last_step(
        self, meta_params: MetaParams, params: Params, model: Model, loss_of: LossOf, key: Key[Array, ""]
    ) -> Params:
        """The same step in the form in which the model is fastest to differentiate through it."""
        factored_step = getattr(model, "factored_step", None)
        if factored_step is not None:
            stepped = factored_step(params, loss_of, key, self.learning_rate, self.first_order)
            if stepped is not None:
                return stepped
        return self.step(meta_params, params, model, loss_of, key)
