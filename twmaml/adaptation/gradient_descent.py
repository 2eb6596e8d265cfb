"""The part that adaptations by gradient descent share."""

import jax
from jaxtyping import Array, Float, Int, Key
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from twmaml.adaptation.base import Adaptation, inner_gradient
from twmaml.models.base import Model
from twmaml.types import Fast, InnerSteps, LossOf, MetaParams, PositiveReal


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class GradientDescent(Adaptation):
    """A step is fast - learning_rate * direction, the direction being the gradient unless a subclass has another.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training.
        decay: factor of the learning rate from one inner step to the next.
    """

    learning_rate: PositiveReal
    steps: InnerSteps
    decay: PositiveReal = Field(default=1.0, kw_only=True)

    def step(
        self,
        model: Model,
        meta_params: MetaParams,
        fast: Fast,
        loss_of: LossOf,
        key: Key[Array, ""],
        index: int | Int[Array, ""],
    ) -> Fast:
        """fast - learning_rate * direction."""
        gradient = inner_gradient(self, model, meta_params, fast, loss_of, key)
        direction, rate = self.direction(meta_params, fast, gradient), self.rate(index)
        return jax.tree.map(lambda p, d: p - rate * d, fast, direction)

    def direction(self, meta_params: MetaParams, fast: Fast, gradient: Fast) -> Fast:
        """The gradient of the loss on support data."""
        del meta_params, fast
        return gradient

    def rate(self, index: int | Int[Array, ""]) -> float | Float[Array, ""]:
        """The learning rate of an inner step; without decay the number itself, which makes a faster program."""
        return self.learning_rate if self.decay == 1 else self.learning_rate * self.decay**index
