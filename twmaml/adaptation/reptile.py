"""Reptile: the initial weights move towards the adapted ones, and nothing is differentiated twice."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.adaptation.base import Judge, adapt
from twmaml.adaptation.gradient_descent import GradientDescent
from twmaml.models.base import Model
from twmaml.types import LossOf, MetaParams, Outcome, Step


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Reptile(GradientDescent):
    """The meta-step descends half the squared distance of the initial weights θ to the adapted φ, taken as constant.

    Its gradient is θ - φ: with plain SGD of rate ε, θ moves by ε (mean φ - θ), as the authors have it. Query data only
    judges.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training; with one the gradient is that of joint training, up to a factor.
        decay: factor of the learning rate from one inner step to the next.

    References:
        Nichol, Achiam, Schulman 2018, On first-order meta-learning algorithms, algorithm 2.
    """

    def objective(
        self,
        model: Model,
        meta_params: MetaParams,
        loss_of: LossOf,
        judge: Judge,
        key: Key[Array, ""],
        meta_step: Step,
    ) -> tuple[Float[Array, ""], Outcome]:
        """Half the squared distance to the adapted weights, and how these do."""
        del meta_step
        fast = adapt(self, model, jax.lax.stop_gradient(meta_params), loss_of, key, self.steps)
        squares = jax.tree.map(lambda p, f: jnp.sum((p - f) ** 2), meta_params, fast)
        return jax.tree.reduce(jnp.add, squares) / 2, judge(fast)
