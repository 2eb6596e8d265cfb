"""The multilayer perceptron."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.models.base import Batch, Coefficients, MetaGradient
from twmaml.models.factored import Dense, SteppedDense
from twmaml.models.meta_gradient import MOST_STEPS, meta_gradient
from twmaml.types import LossOf, Params

Activation = Literal["relu", "tanh", "sigmoid", "gelu", "silu", "elu", "selu", "softplus", "leaky_relu"]
"""The name of a function of `jax.nn`."""

_BIAS = 0x62696173  # folded into the key that a layer's weight is drawn by


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class MLP:
    """A multilayer perceptron.

    Args:
        widths: units of each hidden layer; an empty list makes the network affine.
        activation: name of the function after each hidden layer, of `jax.nn`.
        weight_init: draws a weight from a key, a shape and a dtype, as `jax.nn.initializers` do.
        outputs: units of the last layer, which has no activation.
        bias: start of the biases: zero, or drawn as the weights of the same layer are.
    """

    widths: Annotated[Sequence[PositiveInt], Field(max_length=100)]
    activation: Activation
    weight_init: Any
    outputs: PositiveInt = 1
    bias: Literal["zero", "as_weights"] = "zero"

    def __post_init__(self) -> None:
        if not callable(self.weight_init):
            raise ValueError(f"weight_init must be a function of jax.nn.initializers. Got {self.weight_init!r}")

    @property
    def head(self) -> tuple[str]:
        """The last layer."""
        return (str(len(self.widths)),)

    def init(self, key: Key[Array, ""], example_input: Float[Array, "..."]) -> Params:
        """Fresh weights: a tuple of `Dense`. All numbers of an example are inputs, whatever shape it has."""
        units = [example_input.size, *self.widths, self.outputs]
        keys = jax.random.split(key, len(units) - 1)
        shapes = zip(keys, units[:-1], units[1:], strict=True)
        return tuple(Dense(self.weight_init(k, (m, n), jnp.float32), self._bias(k, m, n)) for k, m, n in shapes)

    def _bias(self, key: Key[Array, ""], inputs: int, outputs: int) -> Float[Array, " outputs"]:
        if self.bias == "zero":
            return jnp.zeros(outputs)
        # A row of another weight of the layer, as an initialiser tells the number of inputs by the shape.
        return self.weight_init(jax.random.fold_in(key, _BIAS), (inputs, outputs), jnp.float32)[0]

    def apply(self, params: Params, inputs: Float[Array, "..."]) -> Float[Array, "*batch outputs"]:
        """The outputs of the last layer."""
        return self._forward(params, _as_vectors(inputs, params[0]))[0]

    def meta_gradient(
        self,
        params: Params,
        support: Batch,
        query: Batch,
        learning_rates: Sequence[float | Float[Array, ""]],
        first_order: bool,
        coefficients: Coefficients,
    ) -> MetaGradient | None:
        """Derived by hand; None for many steps, examples that are no vectors, or a subclass, which may do anything."""
        if type(self) is not MLP or any(part.ndim != 3 for part in (*support, *query)):
            return None
        if len(learning_rates) > MOST_STEPS:
            return None
        activation = getattr(jax.nn, self.activation)
        bent = self.activation not in ("relu", "leaky_relu")
        return meta_gradient(params, activation, bent, support, query, learning_rates, first_order, coefficients)

    def factored_step(
        self,
        params: Params,
        loss_of: LossOf,
        key: Key[Array, ""],
        learning_rate: float | Float[Array, ""],
        first_order: bool,
    ) -> Params | None:
        """One step of gradient descent whose result keeps the step in factors where that is smaller.

        Equal to `params - learning_rate * gradient` as a network, but not as a tree: a layer whose factors
        hold fewer numbers than its weight becomes a `SteppedDense`.

        Returns:
            The adapted weights, or None if the loss does not consist of a single call of the network on a
            matrix of inputs: its gradient has other factors then.
        """
        shapes: list[tuple[int, ...]] = []

        def noting_shapes(params: Params) -> Array:
            return loss_of(lambda x: (shapes.append(_as_vectors(x, params[0]).shape), self.apply(params, x))[1], key)

        jax.eval_shape(noting_shapes, params)
        if len(shapes) != 1 or len(shapes[0]) != 2:
            return None
        rows = shapes[0][0]
        factored = [rows * (m + n) < m * n for m, n in (layer.weight.shape for layer in params)]
        # Zeros added to a layer's outputs: the loss's gradient by them is the gradient by the outputs.
        probes = [jnp.zeros((rows, p.bias.size)) if f else p for p, f in zip(params, factored, strict=True)]

        def probed_loss(probes: list[Any]) -> tuple[Array, list[Array]]:
            layers = [
                (lambda h, layer=layer, probe=probe: layer(h) + probe) if f else probe
                for layer, probe, f in zip(params, probes, factored, strict=True)
            ]
            taken: list[list[Array]] = []

            def predict(x: Array) -> Array:
                outputs, layer_inputs = self._forward(layers, _as_vectors(x, params[0]))
                taken.append(layer_inputs)
                return outputs

            return loss_of(predict, key), taken[0]

        gradients, layer_inputs = jax.grad(probed_loss, has_aux=True)(probes)
        if first_order:
            gradients, layer_inputs = jax.lax.stop_gradient((gradients, layer_inputs))
        steps = jax.tree.map(lambda g: -learning_rate * g, gradients)
        return tuple(
            SteppedDense(layer, h, s) if f else jax.tree.map(jnp.add, layer, s)
            for layer, h, s, f in zip(params, layer_inputs, steps, factored, strict=True)
        )

    def _forward(self, layers: Sequence[Any], inputs: Array) -> tuple[Array, list[Array]]:
        """Outputs of the last layer, and the inputs of every layer."""
        activation = getattr(jax.nn, self.activation)
        layer_inputs = [inputs]
        for layer in layers[:-1]:
            layer_inputs.append(activation(layer(layer_inputs[-1])))
        return layers[-1](layer_inputs[-1]), layer_inputs


def _as_vectors(inputs: Float[Array, "..."], first: Dense | SteppedDense) -> Float[Array, "*batch inputs"]:
    """Inputs whose trailing axes, as many as an example has, are one."""
    units = (first.before if isinstance(first, SteppedDense) else first).weight.shape[0]
    kept = inputs.ndim - 1
    while kept > 0 and math.prod(inputs.shape[kept:]) < units:
        kept -= 1
    return inputs.reshape(*inputs.shape[:kept], units)
