"""The networks, and the protocol by which any other network plugs in."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

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


class Dense(NamedTuple):
    """A layer: outputs = inputs @ weight + bias."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __call__(self, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The layer's outputs."""
        return inputs @ self.weight + self.bias


class SteppedDense(NamedTuple):
    """A layer after one gradient step on it, the step kept as the two factors it is made of.

    The gradient of a layer's weight over K examples is `layer_inputsᵀ @ errors`, of rank K. Kept apart, the
    weight before the step stays common to all tasks, so that vmap multiplies by it once for all of them
    instead of building and multiplying one matrix a task.
    """

    before: Dense
    layer_inputs: Float[Array, "shots inputs"]
    errors: Float[Array, "shots outputs"]
    """Gradient of the loss by the layer's outputs, times minus the learning rate."""

    def __call__(self, inputs: Float[Array, "queries inputs"]) -> Float[Array, "queries outputs"]:
        """The layer's outputs after the step."""
        return self.before(inputs) + _factored_product(inputs, self.layer_inputs, self.errors)


def _times_transposed(a: Float[Array, "m n"], b: Float[Array, "k n"]) -> Float[Array, "m k"]:
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())))


@jax.custom_vjp
def _factored_product(
    x: Float[Array, "queries inputs"], h: Float[Array, "shots inputs"], e: Float[Array, "shots outputs"]
) -> Float[Array, "queries outputs"]:
    """x @ (hᵀ e), plus the step of the bias (the sum of e over its rows)."""
    return (_times_transposed(x, h) + 1) @ e


def _factored_product_forward(x: Array, h: Array, e: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _factored_product(x, h, e), (x, h, e)


def _factored_product_backward(residuals: tuple[Array, Array, Array], ct: Array) -> tuple[Array, ...]:
    # What autodiff derives holds products with a transposed left factor, which take 4 times as long in
    # batches this small; every product here is a @ b or a @ bᵀ.
    x, h, e = residuals
    return (
        _times_transposed(ct, e) @ h,
        _times_transposed(e, ct) @ x,
        (_times_transposed(h, x) + 1) @ ct,
    )


_factored_product.defvjp(_factored_product_forward, _factored_product_backward)


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class MLP:
    """A multilayer perceptron.

    Args:
        widths: units of each hidden layer; an empty list makes the network affine.
        activation: name of the function after each hidden layer, of `jax.nn`.
        weight_init: draws a weight from a key, a shape and a dtype, as `jax.nn.initializers` do; biases
            start at zero.
        outputs: units of the last layer, which has no activation.
    """

    widths: Annotated[Sequence[PositiveInt], Field(max_length=100)]
    activation: Literal["relu", "tanh", "sigmoid", "gelu", "silu", "elu", "selu", "softplus", "leaky_relu"]
    weight_init: Any
    outputs: PositiveInt = 1

    def __post_init__(self) -> None:
        if not callable(self.weight_init):
            raise ValueError(f"weight_init must be a function of jax.nn.initializers. Got {self.weight_init!r}")

    def init(self, key: Key[Array, ""], example_input: Float[Array, "... inputs"]) -> Params:
        """Fresh weights: a tuple of `Dense`."""
        units = [example_input.shape[-1], *self.widths, self.outputs]
        keys = jax.random.split(key, len(units) - 1)
        shapes = zip(keys, units[:-1], units[1:], strict=True)
        return tuple(Dense(self.weight_init(k, (m, n), jnp.float32), jnp.zeros(n)) for k, m, n in shapes)

    def apply(self, params: Params, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The outputs of the last layer."""
        return self._forward(params, inputs)[0]

    def factored_step(
        self, params: Params, loss_of: LossOf, key: Key[Array, ""], learning_rate: float, first_order: bool
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
            return loss_of(lambda x: (shapes.append(x.shape), self.apply(params, x))[1], key)

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
                outputs, layer_inputs = self._forward(layers, x)
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
