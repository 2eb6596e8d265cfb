"""The protocols by which networks plug in."""

from typing import Any, Protocol, runtime_checkable

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
