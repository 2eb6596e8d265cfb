"""The meta-gradient of a multilayer perceptron through steps of gradient descent, derived by hand.

With H the inputs of a layer on the support set and D its errors there times minus the rate, a step makes its weight
W + Hᵀ D and its bias b + 1ᵀ D. Either each task gets a weight of its own, or H and D are kept beside the one that is
common to all tasks, where they hold fewer numbers. Going back through the query set, and for each step up and down
through the support set, adds further products of this kind to the gradient by the weight. It takes products of the form
a b and a bᵀ only, and every intermediate result is computed once.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from twmaml.models.base import Batch, Coefficients
from twmaml.models.factored import Dense

MOST_STEPS = 20
"""Steps, up to which the gradient is derived: each is written out, which makes the program longer to compile."""

_FEW = 32
"""Examples, up to which sums over them are written out."""

_NARROW = 48
"""Columns, up to which a product with a transposed left side takes less time than to transpose that before."""

_stored = jax.lax.optimization_barrier
"""Keeps XLA from computing a result again in everything that reads it."""


def meta_gradient(
    layers: Sequence[Dense],
    activation: Callable[[Array], Array],
    bent: bool,
    support: Batch,
    query: Batch,
    rates: Sequence[float | Float[Array, ""]],
    first_order: bool,
    coefficients: Coefficients,
) -> tuple[tuple[Dense, ...], Float[Array, " tasks"], Any]:
    """Gradient of the weighted sum of the tasks' mean squared errors after steps of gradient descent.

    Args:
        layers: of the network before the steps.
        activation: after each hidden layer.
        bent: whether it has a second derivative that is not 0.
        support: to take the steps on.
        query: to judge them on.
        rates: of the steps.
        first_order: leave out what depends on the derivative of the steps.
        coefficients: of the losses in the sum.

    Returns:
        The gradient, the losses, and what `coefficients` gives besides.

    References:
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, equation 1, of which this is the gradient.
    """
    slope = _derivative(activation)
    shared = adapted = [_Layer(*layer) for layer in layers]
    steps: list[_Step] = []
    for rate in rates:
        up = _up(adapted, activation, support.inputs)
        scale = -2 * rate / support.targets[0].size
        down = _down(adapted, slope, up, (up.outputs[-1] - support.targets) * scale)
        steps.append(_Step(adapted, up, down, scale))
        kept = [_is_kept(layer, support, len(rates), len(steps) == len(rates)) for layer in layers]
        adapted = [_stepped(*each) for each in zip(adapted, up.inputs, down.errors, kept, strict=True)]

    up = _up(adapted, activation, query.inputs)
    residuals = up.outputs[-1] - query.targets
    losses = jnp.mean(residuals**2, axis=(1, 2))
    chosen, besides = coefficients(losses)
    down = _down(adapted, slope, up, residuals * (2 * chosen / residuals[0].size)[:, None, None])
    uses = [[_Use(*use)] for use in zip(up.inputs, down.errors, up.factors, down.factors, strict=True)]
    if first_order:
        adapted, steps = shared, []
    found = [_gradient(*each) for each in zip(adapted, uses, strict=True)]
    for step in reversed(steps):
        found = _back_through_step(step, slope, bent, found)
    return tuple(Dense(each.weight, each.bias) for each in found), losses, besides


class _Layer(NamedTuple):
    """A layer whose weight is `weight + inputsᵀ errors`, or the gradient by these: each task's own, or all tasks'."""

    weight: Float[Array, "*tasks inputs outputs"]
    bias: Float[Array, "*tasks_and_1 outputs"]
    inputs: Any = None
    """Inputs of all steps that are kept in factors: [tasks, examples, inputs], or None."""
    errors: Any = None

    def times(self, a: Array) -> tuple[Array, Any]:
        """The product with the weight, and that with the first of its factors."""
        product = _times(a, self.weight)
        if self.inputs is None:
            return product, None
        factor = _stored(_times_transposed(a, self.inputs))
        return product + factor @ self.errors, factor

    def times_transposed(self, a: Array) -> tuple[Array, Any]:
        """The same with the weight transposed."""
        product = _times_transposed(a, self.weight)
        if self.errors is None:
            return product, None
        factor = _stored(_times_transposed(a, self.errors))
        return product + factor @ self.inputs, factor


def _is_kept(layer: Dense, support: Batch, steps: int, last: bool) -> bool:
    """Whether a step is kept in factors: those of all steps are fewer numbers than the weight, or those of the last."""
    n, m = layer.weight.shape
    return (1 if last else steps) * support.inputs.shape[1] * (n + m) < n * m


def _stepped(layer: _Layer, inputs: Array, errors: Array, kept: bool) -> _Layer:
    bias = layer.bias + _over_examples(errors)
    if not kept:
        return _Layer(_plus_products(layer.weight, [(inputs, errors)]), bias)
    if layer.inputs is not None:
        inputs = jnp.concatenate([layer.inputs, inputs], axis=1)
        errors = jnp.concatenate([layer.errors, errors], axis=1)
    return _Layer(layer.weight, bias, inputs, errors)


class _Up(NamedTuple):
    """A pass from the inputs of the network to its outputs."""

    inputs: list[Array]
    """The inputs of each layer."""
    outputs: list[Array]
    """Its outputs, before the activation."""
    factors: list[Any]
    """The inputs times those kept in the layer."""


def _up(layers: Sequence[_Layer], activation: Callable[[Array], Array], inputs: Array) -> _Up:
    up = _Up([inputs], [], [])
    for layer in layers:
        if up.outputs:
            up.outputs[-1] = _stored(up.outputs[-1])
            up.inputs.append(_stored(activation(up.outputs[-1])))
        product, factor = layer.times(up.inputs[-1])
        up.outputs.append(product + layer.bias)
        up.factors.append(factor)
    return up


class _Down(NamedTuple):
    """A pass from the gradient by the outputs of the network to that by its inputs."""

    errors: list[Array]
    """The gradient by the outputs of each layer."""
    by_inputs: list[Array]
    """The gradient by its inputs."""
    factors: list[Any]
    """The errors times those kept in the layer."""


def _down(layers: Sequence[_Layer], slope: Callable[[Array], Array], up: _Up, errors: Array) -> _Down:
    down = _Down([_stored(errors)], [], [])
    for i in reversed(range(len(layers))):
        product, factor = layers[i].times_transposed(down.errors[0])
        down.by_inputs.insert(0, product)
        down.factors.insert(0, factor)
        if i:
            down.errors.insert(0, _stored(slope(up.outputs[i - 1]) * product))
    return down


class _Step(NamedTuple):
    """A step of gradient descent."""

    layers: list[_Layer]
    """The layers before it."""
    up: _Up
    """The pass through the support set."""
    down: _Down
    """The pass back, of minus the rate times the gradient."""
    scale: Any
    """The factor of the residuals in the errors."""


class _Use(NamedTuple):
    """A product `inputsᵀ errors` in the gradient by a weight."""

    inputs: Array
    errors: Array
    by_inputs: Any
    """The inputs times those kept in the layer."""
    by_errors: Any
    """The errors times those kept in the layer."""


def _gradient(layer: _Layer, uses: Sequence[_Use], rest: _Layer | None = None) -> _Layer:
    """The gradient by a layer: the rest of it and the uses, the last of which is one of the bias as well."""
    weight, bias, inputs, errors = rest or (None, None, None, None)
    pairs = [(use.inputs, use.errors) for use in uses]
    weight = _plus_products(weight, pairs) if layer.weight.ndim == 3 else _plus_summed_products(weight, pairs)
    by_bias = (_over_examples if layer.bias.ndim == 3 else _summed)(uses[-1].errors)
    if layer.inputs is not None:
        inputs = _plus_products(inputs, [(use.by_errors, use.inputs) for use in uses])
        errors = _plus_products(errors, [(use.by_inputs, use.errors) for use in uses])
    return _Layer(weight, by_bias if bias is None else bias + by_bias, inputs, errors)


def _back_through_step(
    step: _Step, slope: Callable[[Array], Array], bent: bool, found: Sequence[_Layer]
) -> list[_Layer]:
    """The gradient by the layers before a step, found from that by the layers after it."""
    layers, up, down, scale = step
    parts = [_part(*each) for each in zip(layers, up.inputs, down.errors, found, strict=True)]
    uses: list[list[_Use]] = [[]]
    bends: list[Array | float] = []
    upwards = parts[0].by_errors
    for i, outputs in enumerate(up.outputs[:-1], start=1):  # through the errors, in the order opposite to theirs
        bends.append(upwards * down.by_inputs[i] * _derivative(slope)(outputs) if bent else 0.0)
        sloped = _stored(slope(outputs) * upwards)
        product, factor = layers[i].times(sloped)
        uses.append([_Use(sloped, down.errors[i], factor, down.factors[i])])
        upwards = parts[i].by_errors + product
    downwards = _stored(upwards * scale)
    gradient: list[_Layer] = []
    for i in reversed(range(len(layers))):  # through the outputs and inputs
        product, factor = layers[i].times_transposed(downwards)
        uses[i].append(_Use(up.inputs[i], downwards, up.factors[i], factor))
        gradient.insert(0, _gradient(layers[i], uses[i], parts[i].rest))
        if i:
            by_inputs = product + parts[i].by_inputs
            downwards = _stored(slope(up.outputs[i - 1]) * by_inputs + bends[i - 1])
    return gradient


class _Part(NamedTuple):
    """The gradient by a layer after a step, taken apart."""

    by_inputs: Float[Array, "tasks shots inputs"]
    """The part through the layer's inputs on the support set."""
    by_errors: Float[Array, "tasks shots outputs"]
    """The part through its errors there."""
    rest: _Layer
    """The gradient by the layer before the step."""


def _part(layer: _Layer, inputs: Array, errors: Array, found: _Layer) -> _Part:
    weight, bias, kept = found.weight, found.bias, (None, None)
    if found.inputs is None:
        by_inputs, by_errors = _times_transposed(errors, weight), _times(inputs, weight)
    else:
        shots = inputs.shape[1]
        by_inputs, by_errors = found.inputs[:, -shots:], found.errors[:, -shots:]
        if layer.inputs is not None:
            kept = (found.inputs[:, :-shots], found.errors[:, :-shots])
    by_errors = by_errors + bias
    if layer.bias.ndim == 1:  # before the first step, where tasks share all
        weight, bias = weight if weight.ndim == 2 else weight.sum(axis=0), _summed(bias)
    return _Part(by_inputs, by_errors, _Layer(weight, bias, *kept))


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


def _plus_products(
    a: Array | None, pairs: Sequence[tuple[Float[Array, "tasks k n"], Float[Array, "tasks k m"]]]
) -> Float[Array, "tasks n m"]:
    """a + bᵀ c for each pair. Few examples are added as outer products: a transposed left side takes far longer."""
    terms = [] if a is None else [a]
    for b, c in pairs:
        if b.shape[1] > _FEW:
            terms.append(jax.lax.dot_general(b, c, (((1,), (1,)), ((0,), (0,)))))
        else:
            terms.extend(b[:, k, :, None] * c[:, k, None, :] for k in range(b.shape[1]))
    return _stored(reduce(jnp.add, terms))


def _plus_summed_products(
    a: Float[Array, "n m"] | None, pairs: Sequence[tuple[Float[Array, "tasks k n"], Float[Array, "tasks k m"]]]
) -> Float[Array, "n m"]:
    """The same, each product summed over the tasks."""
    terms = [] if a is None else [a]
    for b, c in pairs:
        b, c = b.reshape(-1, b.shape[-1]), c.reshape(-1, c.shape[-1])
        turned = _stored(b.T) if b.shape[-1] > _NARROW else b.T
        terms.append((c.T @ b).T if c.shape[-1] == 1 else turned @ c)
    return reduce(jnp.add, terms)


def _over_examples(a: Float[Array, "tasks k n"]) -> Float[Array, "tasks 1 n"]:
    """The sum over the examples."""
    if a.shape[1] > _FEW:
        return a.sum(axis=1, keepdims=True)
    return reduce(jnp.add, [a[:, k : k + 1] for k in range(a.shape[1])])


def _summed(a: Float[Array, "tasks k n"]) -> Float[Array, " n"]:
    """The sum over tasks and examples, as a product, which is faster than the reduction."""
    a = a.reshape(-1, a.shape[-1])
    return jnp.ones(a.shape[0], a.dtype) @ a
