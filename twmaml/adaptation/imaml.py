"""Implicit MAML: the meta-gradient follows from where adapting ends, not from the way there."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.adaptation.base import Judge, adapt, inner_gradient
from twmaml.adaptation.gradient_descent import GradientDescent
from twmaml.models.base import Model
from twmaml.types import Fast, LossOf, MetaParams, NotNegativeReal, Outcome, PositiveReal, Step


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class IMAML(GradientDescent):
    """Weights φ are adapted by gradient descent on loss + proximity/2 · ‖φ - θ‖², θ being the initial ones.

    The meta-gradient is (I + H/proximity)⁻¹ ∇(loss on query data), with the Hessian H of the loss on support data at φ,
    by conjugate gradients. It is exact as far as φ is the minimum.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training.
        proximity: λ, the strength of the pull to the initial weights.
        conjugate_steps: of the conjugate gradients.
        damping: added to the identity.
        decay: factor of the learning rate from one inner step to the next.

    References:
        Rajeswaran, Finn, Kakade, Levine 2019, Meta-learning with implicit gradients, equation 6 and algorithm 2.
    """

    proximity: PositiveReal
    conjugate_steps: PositiveInt
    damping: NotNegativeReal = 0.0
    same_data = True

    def direction(self, meta_params: MetaParams, fast: Fast, gradient: Fast) -> Fast:
        """The gradient of loss and pull together."""
        return jax.tree.map(lambda g, p, start: g + self.proximity * (p - start), gradient, fast, meta_params)

    def objective(
        self,
        model: Model,
        meta_params: MetaParams,
        loss_of: LossOf,
        judge: Judge,
        key: Key[Array, ""],
        meta_step: Step,
    ) -> tuple[Float[Array, ""], Outcome]:
        """A number with the implicit meta-gradient, and the outcome."""
        del meta_step
        start = jax.lax.stop_gradient(meta_params)
        fast = adapt(self, model, start, loss_of, key, self.steps)
        outcome, pull = jax.vjp(judge, fast)
        zeros = jax.tree.map(jnp.zeros_like, outcome)
        (gradient,) = pull(zeros._replace(loss=jnp.ones_like(outcome.loss)))

        def gradient_at(fast: Fast) -> Fast:
            return inner_gradient(self, model, start, fast, loss_of, key)

        def curved(v: Fast) -> Fast:
            _, hessian_v = jax.jvp(gradient_at, (fast,), (v,))
            return jax.tree.map(lambda v, h: (1 + self.damping) * v + h / self.proximity, v, hessian_v)

        implicit, _ = jax.scipy.sparse.linalg.cg(curved, gradient, maxiter=self.conjugate_steps, tol=0.0)
        products = jax.tree.map(lambda p, g: jnp.vdot(p, jax.lax.stop_gradient(g)), meta_params, implicit)
        return jax.tree.reduce(jnp.add, products), outcome
