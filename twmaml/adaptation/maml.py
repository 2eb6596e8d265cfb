"""Model-agnostic meta-learning."""

import jax
from jaxtyping import Array, Int, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.adaptation.gradient_descent import GradientDescent
from twmaml.models.base import Batch, Coefficients, MetaGradient, Model, SupportsFactoredStep, SupportsMetaGradient
from twmaml.types import Fast, LossOf, MetaParams


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class MAML(GradientDescent):
    """Model-agnostic meta-learning: the meta-parameters are the initial weights, a step is plain SGD.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training; 0 trains the initial weights on all tasks at once.
        first_order: leave out the derivative of the inner gradient (FOMAML).
        decay: factor of the learning rate from one inner step to the next.

    References:
        Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning, equation 1; section 5.2 for first order.
    """

    first_order: bool = False

    def direction(self, meta_params: MetaParams, fast: Fast, gradient: Fast) -> Fast:
        """The gradient, or as first order takes it a constant."""
        del meta_params, fast
        return jax.lax.stop_gradient(gradient) if self.first_order else gradient

    def last_step(
        self,
        model: Model,
        meta_params: MetaParams,
        fast: Fast,
        loss_of: LossOf,
        key: Key[Array, ""],
        index: int | Int[Array, ""],
    ) -> Fast:
        """The same step, factored where the network can do that."""
        if isinstance(model, SupportsFactoredStep):
            stepped = model.factored_step(fast, loss_of, key, self.rate(index), self.first_order)
            if stepped is not None:
                return stepped
        return self.step(model, meta_params, fast, loss_of, key, index)

    def meta_gradient(
        self, model: Model, meta_params: MetaParams, support: Batch, query: Batch, coefficients: Coefficients
    ) -> MetaGradient | None:
        """That of the network, if it has one. A subclass has none, as it may adapt otherwise."""
        if type(self) is not MAML or not isinstance(model, SupportsMetaGradient):
            return None
        rates = [self.rate(index) for index in range(self.steps)]
        return model.meta_gradient(meta_params, support, query, rates, self.first_order, coefficients)
