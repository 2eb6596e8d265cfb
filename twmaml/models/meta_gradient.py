"""The meta-gradient of a multilayer perceptron through one inner step, derived by hand.

With H and D the inputs and errors of a layer on the support set, Q its inputs on the query set and α the rate of the
step, the adapted layer gives Q W + b − α (Q Hᵀ + 1) D: its step has the rank of the support set, so the weight before
it stays common to all tasks. Going back once through the query set, then up and down through the support set, gives the
gradient in products of the form a b and a bᵀ only, and every intermediate result is computed once.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from twmaml.models.base import Batch, Coefficients
from twmaml.models.factored import Dense

_FEW = 16
"""Examples, up to which sums over them are written out."""

_stored = jax.lax.optimization_barrier
"""Keeps XLA from computing a result again in everything that reads it."""


def one_step_meta_gradient(
    layers: Sequence[Dense],
    activation: Callable[[Array], Array],
    bent: bool,
    support: Batch,
    query: Batch,
    rate: float | Float[Array, ""],
    first_order: bool,
    coefficients: Coefficients,
) -> tuple[tuple[Dense, ...], Float[Array, " tasks"], Any]:
    """Gradient of the weighted sum of the tasks' mean squared errors after a step of gradient descent.

    Args:
        layers: of the network before the step.
        activation: after each hidden layer.
        bent: whether it has a second derivative that is not 0.
        support: to take the step on.
        query: to judge it on.
        rate: of the step.
        first_order: leave out what depends on the derivative of the step.
        coefficients: of the losses in the sum.

    Returns:
        The gradient, the losses, and what `coefficients` gives besides.

    References:
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, equation 1, of which this is the gradient.
    """
    slope = _derivative(activation)
    passed = _pass(layers, activation, slope, bent, support)
    adapted = [_adapt(*each, rate) for each in zip(layers, passed.inputs, passed.errors, strict=True)]
    inputs, slopes, outputs = query.inputs, [], []
    for layer in adapted[:-1]:
        outputs.append(layer.forward(inputs))
        slopes.append(slope(outputs[-1].value))
        inputs = _stored(activation(outputs[-1].value))
    outputs.append(adapted[-1].forward(inputs))
    residuals = outputs[-1].value - query.targets
    losses = jnp.mean(residuals**2, axis=(1, 2))
    chosen, besides = coefficients(losses)

    back = _stored(residuals * (2 * chosen / residuals[0].size)[:, None, None])
    found: list[_Back] = []
    for layer, output, each in zip(adapted[::-1], outputs[::-1], [*slopes[::-1], None], strict=True):
        found.insert(0, layer.backward(output, back))
        if each is not None:
            back = _stored(each * layer.through(back))
    gradient = [Dense(each.by_weight, each.by_bias) for each in found]
    if not first_order:
        second = _back_through_step(layers, passed, found)
        gradient = [Dense(a.weight + b.weight, a.bias + b.bias) for a, b in zip(gradient, second, strict=True)]
    return tuple(gradient), losses, besides


class _Passed(NamedTuple):
    """A pass through the support set, forth and back."""

    inputs: list[Array]
    """The inputs of each layer."""
    slopes: list[Array]
    """Derivatives of the activation after each hidden layer."""
    curvatures: list[Array | None]
    """Second derivatives there; None where they are 0."""
    errors: list[Array]
    """The gradient of the loss by the outputs of each layer."""
    unsloped: list[Array]
    """The errors of each hidden layer before they are multiplied by the slope."""


def _pass(
    layers: Sequence[Dense],
    activation: Callable[[Array], Array],
    slope: Callable[[Array], Array],
    bent: bool,
    support: Batch,
) -> _Passed:
    inputs, slopes, curvatures = [support.inputs], [], []
    for layer in layers[:-1]:
        outputs = _stored(_times(inputs[-1], layer.weight) + layer.bias)
        inputs.append(_stored(activation(outputs)))
        slopes.append(slope(outputs))
        curvatures.append(_derivative(slope)(outputs) if bent else None)
    residuals = _times(inputs[-1], layers[-1].weight) + layers[-1].bias - support.targets
    errors, unsloped = [_stored(residuals * (2 / residuals[0].size))], []
    for layer, each in zip(layers[:0:-1], slopes[::-1], strict=True):
        unsloped.insert(0, _times_transposed(errors[0], layer.weight))
        errors.insert(0, _stored(each * unsloped[0]))
    return _Passed(inputs, slopes, curvatures, errors, unsloped)


class _Output(NamedTuple):
    """A layer's result on the query set."""

    inputs: Array
    value: Array
    factor: Any
    """Q Hᵀ + 1 where the step is kept in factors."""


class _Back(NamedTuple):
    """The gradients that going back through a layer on the query set gives."""

    by_weight: Float[Array, "inputs outputs"]
    by_bias: Float[Array, " outputs"]
    by_inputs: Float[Array, "tasks shots inputs"]
    """By the layer's inputs on the support set."""
    by_errors: Float[Array, "tasks shots outputs"]
    """By its errors there."""


class _Thin(NamedTuple):
    """An adapted layer whose weight holds no more numbers than the factors of its step: each task has its own."""

    inputs: Array  # of the support set, and so the errors
    errors: Array
    rate: Any
    weight: Float[Array, "tasks inputs outputs"]
    bias: Float[Array, "tasks outputs"]

    def forward(self, inputs: Array) -> _Output:
        return _Output(inputs, _stored(_times(inputs, self.weight) + self.bias[:, None]), None)

    def backward(self, output: _Output, back: Array) -> _Back:
        by_weight, by_bias = _transposed_times(output.inputs, back), _over_examples(back)
        by_inputs = -self.rate * _times_transposed(self.errors, by_weight)
        by_errors = -self.rate * (_times(self.inputs, by_weight) + by_bias[:, None])
        return _Back(by_weight.sum(axis=0), _summed(back), by_inputs, by_errors)

    def through(self, back: Array) -> Array:
        """The gradient by the layer's inputs on the query set."""
        return _times_transposed(back, self.weight)


class _Wide(NamedTuple):
    """An adapted layer whose weight before the step is common to all tasks, and the factors of its step."""

    inputs: Array  # of the support set, and so the errors
    errors: Array
    rate: Any
    before: Dense

    def forward(self, inputs: Array) -> _Output:
        factor = _stored(_times_transposed(inputs, self.inputs) + 1)
        step = self.rate * (factor @ self.errors)
        return _Output(inputs, _stored(inputs @ self.before.weight + self.before.bias - step), factor)

    def backward(self, output: _Output, back: Array) -> _Back:
        by_inputs = _stored(-self.rate * _times_transposed(self.errors, back)) @ output.inputs
        by_errors = -self.rate * _transposed_times(output.factor, back)
        return _Back(_summed_product(output.inputs, back), _summed(back), by_inputs, by_errors)

    def through(self, back: Array) -> Array:
        """The gradient by the layer's inputs on the query set."""
        by_factor = _stored(-self.rate * _times_transposed(back, self.errors))
        return _times_transposed(back, self.before.weight) + by_factor @ self.inputs


def _adapt(layer: Dense, inputs: Array, errors: Array, rate: Any) -> _Thin | _Wide:
    (n, m), shots = layer.weight.shape, inputs.shape[1]
    if n * m > shots * (n + m):
        return _Wide(inputs, errors, rate, layer)
    weight = layer.weight - rate * _transposed_times(inputs, errors)
    return _Thin(inputs, errors, rate, weight, layer.bias - rate * _over_examples(errors))


def _back_through_step(layers: Sequence[Dense], passed: _Passed, found: Sequence[_Back]) -> list[Dense]:
    """Gradient by the weights through the inputs and the errors of the support set."""
    by_weights: list[Array | float] = [0.0]
    by_bends: list[Array | None] = []
    upwards = found[0].by_errors
    for i, layer in enumerate(layers[1:]):  # through the errors, in the order opposite to theirs
        curvature = passed.curvatures[i]
        by_bends.append(None if curvature is None else upwards * passed.unsloped[i] * curvature)
        sloped = _stored(passed.slopes[i] * upwards)
        by_weights.append(_summed_product(sloped, passed.errors[i + 1]))
        upwards = found[i + 1].by_errors + _times(sloped, layer.weight)
    downwards = _stored(upwards * (2 / upwards[0].size))
    gradient: list[Dense] = []
    for i in reversed(range(len(layers))):  # through the outputs and inputs
        by_weight = by_weights[i] + _summed_product(passed.inputs[i], downwards)
        gradient.insert(0, Dense(by_weight, _summed(downwards)))
        if i:
            by_inputs = _times_transposed(downwards, layers[i].weight) + found[i].by_inputs
            by_bend = by_bends[i - 1]
            downwards = _stored(passed.slopes[i - 1] * by_inputs + (0.0 if by_bend is None else by_bend))
    return gradient


def _derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The derivative of a function of each number."""
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


def _times(a: Float[Array, "tasks n k"], b: Float[Array, "*tasks k m"]) -> Float[Array, "tasks n m"]:
    """a b; with a single number to add it is no product of matrices, which would take longer."""
    return a * b if b.shape[-2] == 1 else a @ b


def _times_transposed(a: Float[Array, "tasks n k"], b: Float[Array, "*tasks m k"]) -> Float[Array, "tasks n m"]:
    """a bᵀ."""
    if b.shape[-1] == 1:
        return a * jnp.swapaxes(b, -1, -2)
    if b.ndim == 2:
        return a @ b.T
    return jax.lax.dot_general(a, b, (((2,), (2,)), ((0,), (0,))))


def _transposed_times(a: Float[Array, "tasks k n"], b: Float[Array, "tasks k m"]) -> Float[Array, "tasks n m"]:
    """aᵀ b. Outer products are added where there are few: a product with a transposed left side takes far longer."""
    if a.shape[1] > _FEW:
        return jax.lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))))
    return _stored(_added([a[:, k, :, None] * b[:, k, None, :] for k in range(a.shape[1])]))


def _over_examples(a: Float[Array, "tasks k n"]) -> Float[Array, "tasks n"]:
    """The sum over the examples."""
    return a.sum(axis=1) if a.shape[1] > _FEW else _added([a[:, k] for k in range(a.shape[1])])


def _added(terms: Sequence[Array]) -> Array:
    return reduce(jnp.add, terms)


def _summed_product(a: Float[Array, "tasks k n"], b: Float[Array, "tasks k m"]) -> Float[Array, "n m"]:
    """aᵀ b, summed over the tasks."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return (b.T @ a).T if b.shape[-1] == 1 else a.T @ b


def _summed(a: Float[Array, "tasks k n"]) -> Float[Array, " n"]:
    """The sum over tasks and examples, as a product, which is faster than the reduction."""
    a = a.reshape(-1, a.shape[-1])
    return jnp.ones(a.shape[0], a.dtype) @ a
