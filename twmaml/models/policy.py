"""Policies: networks that give distributions of actions."""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.models.mlp import MLP, Activation
from twmaml.types import Params, Real

_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class Gaussian(NamedTuple):
    """Vectors of independent normal numbers."""

    mean: Float[Array, "*batch actions"]
    log_std: Float[Array, "*batch actions"]

    def noise(self, key: Key[Array, ""], steps: int) -> Float[Array, "steps *batch actions"]:
        """The randomness of so many draws."""
        return jax.random.normal(key, (steps, *self.mean.shape))

    def draw(self, noise: Float[Array, "*batch actions"]) -> Float[Array, "*batch actions"]:
        """The actions that some randomness leads to."""
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, actions: Float[Array, "*batch actions"]) -> Float[Array, "*batch"]:
        """The logarithms of their densities."""
        standard = (actions - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * standard**2 + self.log_std + 0.5 * jnp.log(2 * jnp.pi), axis=-1)

    @property
    def mode(self) -> Float[Array, "*batch actions"]:
        """The most probable actions."""
        return self.mean


class Categorical(NamedTuple):
    """One of several kinds each."""

    logits: Float[Array, "*batch kinds"]

    def noise(self, key: Key[Array, ""], steps: int) -> Float[Array, "steps *batch kinds"]:
        """The randomness of so many draws."""
        return jax.random.gumbel(key, (steps, *self.logits.shape))

    def draw(self, noise: Float[Array, "*batch kinds"]) -> Int[Array, "*batch"]:
        """The actions that some randomness leads to: the largest of logits and Gumbel noise is a draw."""
        return jnp.argmax(self.logits + noise, axis=-1)

    def log_prob(self, actions: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The logarithms of their probabilities."""
        chosen = jax.nn.one_hot(actions, self.logits.shape[-1])
        return jnp.sum(jax.nn.log_softmax(self.logits) * chosen, axis=-1)

    @property
    def mode(self) -> Int[Array, "*batch"]:
        """The most probable actions."""
        return jnp.argmax(self.logits, axis=-1)


@dataclass(frozen=True, config=_STRICT)
class _Policy:
    """The multilayer perceptron of a policy.

    Args:
        widths: as of `MLP`.
        activation: as of `MLP`.
        weight_init: as of `MLP`.
        outputs: numbers of an action, or kinds.
    """

    widths: Annotated[Sequence[PositiveInt], Field(max_length=100)]
    activation: Activation
    weight_init: Any
    outputs: PositiveInt = 1

    def __post_init__(self) -> None:
        self._network  # noqa: B018  says now what is wrong with the keys

    @cached_property
    def _network(self) -> MLP:
        return MLP(self.widths, self.activation, self.weight_init, self.outputs)


@dataclass(frozen=True, config=_STRICT)
class CategoricalPolicy(_Policy):
    """A multilayer perceptron that gives the logits of the kinds of action."""

    @property
    def head(self) -> tuple[str]:
        """The last layer."""
        return self._network.head

    def init(self, key: Key[Array, ""], example_input: Float[Array, " observations"]) -> Params:
        """Fresh weights."""
        return self._network.init(key, example_input)

    def apply(self, params: Params, inputs: Float[Array, "*batch observations"]) -> Categorical:
        """The distribution of the action at each observation."""
        return Categorical(self._network.apply(params, inputs))


class GaussianWeights(NamedTuple):
    """Weights of a Gaussian policy."""

    network: Params
    log_std: Float[Array, " actions"]


@dataclass(frozen=True, config=_STRICT)
class GaussianPolicy(_Policy):
    """A multilayer perceptron that gives the mean of an action, and beside it a standard deviation that is learned.

    Args:
        log_std: logarithm of the standard deviations before training; adapted like any weight.
    """

    log_std: Real = 0.0

    @property
    def head(self) -> tuple[str]:
        """The last layer."""
        return (f"network.{self._network.head[0]}",)

    def init(self, key: Key[Array, ""], example_input: Float[Array, " observations"]) -> GaussianWeights:
        """Fresh weights."""
        return GaussianWeights(self._network.init(key, example_input), jnp.full(self.outputs, self.log_std))

    def apply(self, params: GaussianWeights, inputs: Float[Array, "*batch observations"]) -> Gaussian:
        """The distribution of the action at each observation."""
        mean = self._network.apply(params.network, inputs)
        return Gaussian(mean, jnp.broadcast_to(params.log_std, mean.shape))
