"""Layers whose last gradient step is kept in factors."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float


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
