"""Almost no inner loop: only the head of the network is adapted."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key, PyTree
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.adaptation.gradient_descent import GradientDescent
from twmaml.models.base import HasHead, Model
from twmaml.types import Params


class BodyAndHead(NamedTuple):
    """The weights of a network, apart."""

    body: PyTree[Any]
    """As the network structures them, with None for what belongs to the head."""
    head: dict[str, Array]
    """By name."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class ANIL(GradientDescent):
    """All weights are learned, those of the head are adapted by plain SGD; the others make features.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training.
        head: names of the weights to adapt, or beginnings of them, separated by points as in a checkpoint; the
            network's own head if not given.
        decay: factor of the learning rate from one inner step to the next.

    References:
        Raghu, Raghu, Bengio, Vinyals 2020, Rapid learning or feature reuse? Towards understanding the effectiveness of
        MAML, section 4.
    """

    head: Sequence[str | int] | None = None

    def init(self, key: Key[Array, ""], model: Model, example_input: Any) -> BodyAndHead:
        """Fresh weights.

        Raises:
            ValueError: if nothing says what the head is, or a part of it is not there.
        """
        prefixes = self.head if self.head is not None else model.head if isinstance(model, HasHead) else ()
        weights = model.init(key, example_input)
        leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]}
        for prefix in prefixes or ["null"]:
            if not any(_begins(name, prefix) for name in leaves):
                raise ValueError(f"adaptation.head={prefix}: must begin the name of a weight: {', '.join(leaves)}")
        head = {name: leaf for name, leaf in leaves.items() if any(_begins(name, prefix) for prefix in prefixes)}
        body = jax.tree_util.tree_map_with_path(lambda path, leaf: None if _name(path) in head else leaf, weights)
        return BodyAndHead(body, head)

    def start(self, meta_params: BodyAndHead) -> dict[str, Array]:
        """The head."""
        return meta_params.head

    def predict(self, model: Model, meta_params: BodyAndHead, fast: dict[str, Array], inputs: Any) -> Any:
        """Outputs of the network with the adapted head."""
        return model.apply(_joined(meta_params.body, fast), inputs)


def _joined(body: PyTree[Any], head: dict[str, Array]) -> Params:
    def weight(path: Any, leaf: Any) -> Any:
        return head[_name(path)] if leaf is None else leaf

    return jax.tree_util.tree_map_with_path(weight, body, is_leaf=lambda leaf: leaf is None)


def _begins(name: str, prefix: str | int) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
