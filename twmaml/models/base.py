"""The protocol by which a network plugs in."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Key

from twmaml.types import Params


@runtime_checkable
class Model(Protocol):
    """A network without its weights: a Flax Linen module or a Haiku transform fits as it is."""

    def init(self, key: Key[Array, ""], example_input: Any, /) -> Params:
        """Fresh weights for inputs shaped like the example."""
        ...

    def apply(self, params: Params, inputs: Any, /) -> Any:
        """The network's outputs."""
        ...
