"""The protocols by which networks plug in."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

from twmaml.types import LossOf, Params


@runtime_checkable
class Model(Protocol):
    """A network without its weights: a Flax Linen module or a Haiku transform fits as it is.

    One that has a `protocol` says in it what figures must agree in to be compared: whether it is transductive, say.
    """

    def init(self, key: Key[Array, ""], example_input: Any, /) -> Params:
        """Fresh weights for inputs shaped like the example."""
        ...

    def apply(self, params: Params, inputs: Any, /) -> Any:
        """The network's outputs."""
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
