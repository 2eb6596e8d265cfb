"""The protocols by which networks plug in."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

from twmaml.types import LossOf, Params


@runtime_checkable
class Model(Protocol):
    """A network without its weights: a Flax Linen module or a Haiku transform fits as it is."""

    def init(self, key: Key[Array, ""], example_input: Any, /) -> Params:
        """Fresh weights for inputs shaped like the example."""
        ...

    def apply(self, params: Params, inputs: Any, /) -> Any:
        """The network's outputs."""
        ...


@runtime_checkable
class HasProtocol(Model, Protocol):
    """A network whose figures can be compared only with those of others that say the same of themselves."""

    @property
    def protocol(self) -> str:
        """The property that counts: whether the network is transductive, say."""
        ...


@runtime_checkable
class HasHead(Model, Protocol):
    """A network that says which of its weights are the last layer's."""

    @property
    def head(self) -> Sequence[str]:
        """The beginnings of their names, as a checkpoint has them."""
        ...


class Batch(NamedTuple):
    """Examples of every task."""

    inputs: Float[Array, "tasks examples *input"]
    targets: Float[Array, "tasks examples *output"]


Coefficients = Callable[[Float[Array, " tasks"]], tuple[Float[Array, " tasks"], Any]]
"""Losses on query sets -> by what each is multiplied in the objective (no gradient through it), and anything else."""

MetaGradient = tuple[Params, Float[Array, " tasks"], Any]
"""A gradient, the losses on query sets, and what `Coefficients` gave besides."""


@runtime_checkable
class SupportsMetaGradient(Model, Protocol):
    """A network that has a faster way to the meta-gradient through inner steps than to differentiate twice."""

    def meta_gradient(
        self,
        params: Params,
        support: Batch,
        query: Batch,
        learning_rates: Sequence[float | Float[Array, ""]],
        first_order: bool,
        coefficients: Coefficients,
    ) -> MetaGradient | None:
        """The gradient of the weighted sum of the tasks' mean squared errors; None where it does not apply."""
        ...


@runtime_checkable
class SupportsFactoredStep(Model, Protocol):
    """A network that can take a step of gradient descent in a form that is faster to differentiate through."""

    def factored_step(
        self,
        params: Params,
        loss_of: LossOf,
        key: Key[Array, ""],
        learning_rate: float | Float[Array, ""],
        first_order: bool,
    ) -> Params | None:
        """The weights after the step, which only `apply` understands; None if the loss has another form."""
        ...
