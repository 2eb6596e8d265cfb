"""A model that predicts the losses of tasks before they are trained on."""

from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Draw, Report, Sampler, View
from twmaml.samplers.ordering import now_and_then
from twmaml.samplers.uniform import Uniform
from twmaml.space.grid import ParameterGrid
from twmaml.types import NotNegativeReal, Number, PositiveReal

_WIDTH = 10

_LARGEST = 1e3
"""Of a loss, in units of the scale: the squares of larger ones would overflow, and tell no more."""

_WATCHED = 10
"""Meta-steps between looks at how good the predictions are."""

_COLUMNS = 16
"""In which candidates stand: as many numbers as a processor compares at once."""


class Normal(NamedTuple):
    """A normal distribution of the model's latent vector."""

    mean: Float[Array, " latent"]
    deviation: Float[Array, " latent"]


class Model(NamedTuple):
    """A neural process: what it has learned, and what it believes after the latest batch."""

    weights: Float[Array, " weights"]
    """Of all layers in one vector: the many small ones of a network would each cost the optimiser as much."""
    optimizer: Any
    belief: Normal
    correlation: Float[Array, ""]
    """Of the losses of a batch with what was predicted of them, now and then."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class RiskPrediction(Sampler):
    """Of several uniform candidates those that a neural process predicts to be worst are trained on, and no other is
    adapted to.

    The process encodes the latest batch (tasks and losses) into a latent vector, and decodes a task with it into a
    loss; it is trained by one step a batch on squared error and the divergence from the latest belief. A task enters as
    its position in the range, scaled to mean 0 and variance 1 (the authors' code: as it is). Its weights start alike
    in all runs.

    Args:
        candidates: for each task of the batch.
        selection: `top`: the largest mean + optimism · standard deviation over the samples (MPTS); `diverse`: the
            loss by one sample, and greedily far from those chosen (PDTS; the authors have 32 candidates a task).
        samples: of the latent vector.
        optimism: weight of the standard deviation, with `top`.
        diversity: weight of the mean distance to those chosen, with `diverse`.
        learning_rate: of the process (Adam).
        scale: losses are divided by it.

    References:
        Wang et al. 2025, Model predictive task sampling for efficient and robust adaptation, algorithm 1.
        Qu et al. 2025, Fast and robust: task sampling with posterior and diversity synergies, algorithm 1.
    """

    candidates: Annotated[int, Field(ge=1, le=1000)]
    selection: Literal["top", "diverse"]
    samples: PositiveInt = 20
    optimism: NotNegativeReal = 3.0
    diversity: NotNegativeReal = 1.0
    learning_rate: PositiveReal = 5e-4
    scale: PositiveReal = 10.0
    selects = True
    expensive = True

    def init(self, grid: ParameterGrid) -> Model:
        """An untrained process that believes in a standard normal vector."""
        weights, _ = ravel_pytree(_fresh(len(grid.axes)))
        belief = Normal(jnp.zeros(_WIDTH), jnp.ones(_WIDTH))
        return Model(weights, self._optimizer.init(weights), belief, jnp.float32(jnp.nan))

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """Those of the candidates: 1/N."""
        return Uniform().probabilities(grid, view)

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int) -> Draw:
        """The best of the candidates."""
        draw_key, latent_key = jax.random.split(key)
        drawn = Uniform().draw(draw_key, grid, view, n * self.candidates)
        tasks, own = _standardised(grid, drawn.tasks), view.own
        layers = _layers_of(own.weights, grid)
        if self.selection == "top":
            losses = _decode(layers, tasks, _sample(latent_key, own.belief, self.samples))
            _, chosen = jax.lax.top_k(jnp.mean(losses, axis=0) + self.optimism * jnp.std(losses, axis=0), n)
        else:
            (losses,) = _decode(layers, tasks, _sample(latent_key, own.belief, 1))
            chosen = choose_apart(losses / 2, tasks, self.diversity, n)
        return jax.tree.map(lambda each: each[chosen], drawn)

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> Model:
        """One step of training on the batch, and the belief that follows from it."""
        own, tasks = view.own, _standardised(grid, report.draw.tasks)
        targets, layers = jnp.minimum(report.scores / self.scale, _LARGEST), _layers_of(own.weights, grid)

        def loss(layers: Any) -> tuple[Array, Normal]:
            belief = _encode(layers, tasks, targets)
            predicted = jnp.mean(_decode(layers, tasks, _sample(key, belief, self.samples)), axis=0)
            return jnp.sum((predicted - targets) ** 2) + _divergence(belief, own.belief), belief

        gradient, belief = jax.grad(loss, has_aux=True)(layers)
        updates, optimizer = self._optimizer.update(ravel_pytree(gradient)[0], own.optimizer)

        def foresight() -> Array:
            return jnp.corrcoef(_decode(layers, tasks, own.belief.mean[:, None])[0], targets)[0, 1]

        correlation = now_and_then(_WATCHED, view.step, foresight, own.correlation)
        return Model(own.weights + updates, optimizer, belief, correlation)

    def metrics(self, view: View) -> dict[str, Array]:
        """How well the losses of a batch had been predicted."""
        return {"prediction_correlation": view.own.correlation}

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)


def choose_apart(
    scores: Float[Array, " candidates"], places: Float[Array, "candidates axes"], diversity: Number, n: int
) -> Int[Array, " tasks"]:
    """Greedily the candidates of the largest score + diversity · Σ distances to those chosen / (n (n-1))."""
    # The largest is looked for in each column, then in the best one: on a CPU XLA's argmax goes from number to number.
    blank = -scores.size % _COLUMNS
    values = jnp.pad(scores, (0, blank), constant_values=-jnp.inf).reshape(-1, _COLUMNS)
    at = jnp.pad(places, ((0, blank), (0, 0))).T.reshape(-1, *values.shape)
    numbers = jnp.arange(values.size, dtype=jnp.int32).reshape(values.shape)

    def choose(i: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, values = carry
        column = jnp.argmax(jnp.max(values, axis=0))
        row = jnp.argmax(values[:, column])
        apart = jnp.linalg.norm(at - at[:, row, column][:, None, None], axis=0)
        farther = values + diversity / max(n * (n - 1), 1) * apart
        best = numbers[row, column]
        return chosen.at[i].set(best), jnp.where(numbers == best, -jnp.inf, farther)

    return jax.lax.fori_loop(0, n, choose, (jnp.zeros(n, jnp.int32), values))[0]


@jax.custom_vjp
def transposed_product(
    weight: Float[Array, "inputs outputs"], h: Float[Array, "inputs many"]
) -> Float[Array, "outputs many"]:
    """Wᵀh. With a transposed left side XLA's product takes twice as long on a CPU, so the weights are copied.

    In the gradient nothing needs to be transposed but a right side.
    """
    return jax.lax.optimization_barrier(weight.T) @ h


transposed_product.defvjp(
    lambda weight, h: (transposed_product(weight, h), (weight, h)),
    lambda kept, towards: (kept[1] @ towards.T, kept[0] @ towards),
)


def _standardised(grid: ParameterGrid, tasks: Float[Array, "tasks axes"]) -> Float[Array, "tasks axes"]:
    return (grid.position(tasks) - 0.5) * jnp.sqrt(12.0)


def _fresh(axes: int) -> dict[str, list[tuple[Array, Array]]]:
    """The layers of an untrained process."""
    shapes = {
        "encode": [axes + 1, *[_WIDTH] * 3],
        "join": [_WIDTH, _WIDTH],
        "believe": [_WIDTH, 2 * _WIDTH],
        "decode": [axes + _WIDTH, *[_WIDTH] * 3, 1],
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {name: _layers(key, units) for key, (name, units) in zip(keys, shapes.items(), strict=True)}


def _layers_of(weights: Float[Array, " weights"], grid: ParameterGrid) -> dict[str, list[tuple[Array, Array]]]:
    form = jax.eval_shape(lambda: _fresh(len(grid.axes)))
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form))
    return unravel(weights)


def _layers(key: Key[Array, ""], units: list[int]) -> list[tuple[Array, Array]]:
    """Weights and biases, uniform between ±1/√inputs."""
    pairs = list(pairwise(units))
    keys = jax.random.split(key, (len(pairs), 2))
    return [
        (
            jax.random.uniform(keys[i, 0], (a, b), minval=-(a**-0.5), maxval=a**-0.5),
            jax.random.uniform(keys[i, 1], (b,), minval=-(a**-0.5), maxval=a**-0.5),
        )
        for i, (a, b) in enumerate(pairs)
    ]


def _forward(layers: list[tuple[Array, Array]], h: Float[Array, "units many"]) -> Float[Array, "outputs many"]:
    """Units first: products of so few of them are several times faster along the long axis."""
    for i, (weight, bias) in enumerate(layers):
        h = transposed_product(weight, jax.nn.relu(h) if i else h) + bias[:, None]
    return h


def _encode(layers: Any, tasks: Float[Array, "tasks axes"], targets: Float[Array, " tasks"]) -> Normal:
    *others, last = layers["encode"]
    encoded = jax.nn.relu(_forward(others, jnp.concatenate([tasks.T, targets[None]])))
    # The last layer is linear: it takes the mean over the tasks to the mean of what it makes of them.
    mean_code = _forward([last], jnp.mean(encoded, axis=1, keepdims=True))
    joined = jax.nn.relu(_forward(layers["join"], mean_code))
    mean, deviation = jnp.split(_forward(layers["believe"], joined)[:, 0], 2)
    return Normal(mean, 0.1 + 0.9 * jax.nn.sigmoid(deviation))


def _decode(
    layers: Any, tasks: Float[Array, "tasks axes"], latent: Float[Array, "latent samples"]
) -> Float[Array, "samples tasks"]:
    """Losses, in units of the scale."""
    (first, bias), *others = layers["decode"]
    axes = tasks.shape[1]
    h = (first[:axes].T @ tasks.T)[:, None] + (first[axes:].T @ latent + bias[:, None])[:, :, None]
    return _forward(others, jax.nn.relu(h).reshape(_WIDTH, -1)).reshape(latent.shape[1], tasks.shape[0])


def _sample(key: Key[Array, ""], belief: Normal, n: int) -> Float[Array, "latent samples"]:
    return belief.mean[:, None] + belief.deviation[:, None] * jax.random.normal(key, (_WIDTH, n))


def _divergence(q: Normal, p: Normal) -> Float[Array, ""]:
    """KL(q ‖ p)."""
    ratio = q.deviation / p.deviation
    return jnp.sum((ratio**2 - 1 + ((q.mean - p.mean) / p.deviation) ** 2) / 2 - jnp.log(ratio))
