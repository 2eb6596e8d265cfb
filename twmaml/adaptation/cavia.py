"""Fast context adaptation: a few numbers that the network has as further inputs."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from pydantic.types import NonNegativeInt

from twmaml.adaptation.gradient_descent import GradientDescent
from twmaml.models.base import Model
from twmaml.types import MetaParams


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class CAVIA(GradientDescent):
    """All weights are shared by the tasks; a context, which begins at zero, is adapted by plain SGD.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training.
        size: numbers of the context; with 0 the network is not adapted.
        decay: factor of the learning rate from one inner step to the next.

    References:
        Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2019, Fast context adaptation via meta-learning, section 3.
    """

    size: NonNegativeInt

    def init(self, key: Key[Array, ""], model: Model, example_input: Any) -> MetaParams:
        """Fresh weights of a network that takes the context as well.

        Raises:
            ValueError: if an example is no vector, to which a context could be joined.
        """
        if jnp.ndim(example_input) != 1:
            raise ValueError(f"a context can be joined to vectors only, not to inputs of shape {example_input.shape}")
        return model.init(key, jnp.concatenate([example_input, jnp.zeros(self.size, example_input.dtype)]))

    def start(self, meta_params: MetaParams) -> Float[Array, " size"]:
        """Zeros."""
        return jnp.zeros(self.size, jax.tree.leaves(meta_params)[0].dtype)

    def context(self, fast: Float[Array, " size"]) -> Float[Array, " size"] | None:
        """The context, if there is any."""
        return fast if self.size else None

    def predict(self, model: Model, meta_params: MetaParams, fast: Float[Array, " size"], inputs: Any) -> Any:
        """Outputs of the network for inputs and context."""
        context = jnp.broadcast_to(fast, (*inputs.shape[:-1], self.size))
        return model.apply(meta_params, jnp.concatenate([inputs, context], axis=-1))
