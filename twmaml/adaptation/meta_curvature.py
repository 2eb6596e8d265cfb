"""Meta-curvature: the inner gradient is multiplied by learned matrices."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.adaptation.gradient_descent import GradientDescent
from twmaml.models.base import Model
from twmaml.types import Fast, Params


class WeightsAndCurvature(NamedTuple):
    """The meta-parameters of Meta-Curvature."""

    weights: Params
    curvature: PyTree[Array]
    """A square matrix for every axis of an array of weights, or a factor for each entry of a vector."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class MetaCurvature(GradientDescent):
    """A step is weights - learning_rate * curved gradient, with the gradient of a matrix G curved to A G B.

    Every axis of an array has a matrix of its own (a convolution's too: height, width, inputs, outputs); the entries of
    a bias have factors. All start as the identity, which is MAML.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training.
        decay: factor of the learning rate from one inner step to the next.

    References:
        Park, Oliva 2019, Meta-curvature, section 3 (there a convolution's height and width share a matrix).
    """

    def init(self, key: Key[Array, ""], model: Model, example_input: Any) -> WeightsAndCurvature:
        """Fresh weights, and identities."""
        weights = model.init(key, example_input)
        return WeightsAndCurvature(weights, jax.tree.map(_identity, weights))

    def start(self, meta_params: WeightsAndCurvature) -> Fast:
        """The initial weights."""
        return meta_params.weights

    def learned(self, meta_params: WeightsAndCurvature) -> Mapping[str, PyTree[Any]]:
        """The singular values of the matrices: by how much they stretch a gradient."""

        def stretches(curvature: np.ndarray) -> np.ndarray:
            return np.linalg.svd(curvature, compute_uv=False) if curvature.ndim == 2 else np.abs(curvature)

        return {"stretch": jax.tree.map(stretches, meta_params.curvature)}

    def direction(self, meta_params: WeightsAndCurvature, fast: Fast, gradient: Fast) -> Fast:
        """The curved gradient."""
        del fast
        return jax.tree.map(_curve, gradient, meta_params.curvature)


def _identity(weights: Float[Array, "..."]) -> tuple[Array, ...]:
    if weights.ndim < 2:
        return (jnp.ones_like(weights),)
    return tuple(jnp.eye(size, dtype=weights.dtype) for size in weights.shape)


def _curve(gradient: Float[Array, "..."], curvature: tuple[Array, ...]) -> Float[Array, "..."]:
    if gradient.ndim < 2:
        return gradient * curvature[0]

    def along(curved: Array, axis: int) -> Array:
        return jnp.moveaxis(jnp.tensordot(curvature[axis], curved, (1, axis)), 0, axis)

    return functools.reduce(along, range(gradient.ndim), gradient)
