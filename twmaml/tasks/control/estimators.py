"""Surrogates of the return: functions whose derivatives estimate the return's."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Estimator = Callable[
    [
        Float[Array, "trajectories steps"],
        Float[Array, "trajectories steps"],
        Bool[Array, "trajectories steps"],
    ],
    Float[Array, ""],
]
"""(log-probabilities of the actions taken, their advantages, which steps count) -> sum over trajectories."""


def low_variance_curvature(
    log_probs: Float[Array, "trajectories steps"],
    advantages: Float[Array, "trajectories steps"],
    valid: Bool[Array, "trajectories steps"],
) -> Float[Array, ""]:
    """The likelihood ratio times the advantage of each action by itself.

    The gradient is that of the policy gradient theorem; the curvature leaves out the products of the scores of
    different steps, which is biased but of far lower variance.

    References:
        Rothfuss, Lee, Clavera, Asfour, Abbeel 2019, ProMP: Proximal meta-policy search, equation 9.
    """
    ratios = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))
    return jnp.sum(jnp.where(valid, ratios * advantages, 0))


def dice(
    log_probs: Float[Array, "trajectories steps"],
    advantages: Float[Array, "trajectories steps"],
    valid: Bool[Array, "trajectories steps"],
) -> Float[Array, ""]:
    """The ratio of each trajectory up to and with an action, less that up to it, times the advantage.

    Derivatives of every order are unbiased where the advantages are (undiscounted, neither standardised nor with a
    baseline that has been fitted to the same trajectories).

    References:
        Foerster, Farquhar, Al-Shedivat, Rocktäschel, Xing, Whiteson 2018, DiCE (the ratio, whose value is 1).
        Farquhar, Whiteson, Foerster 2019, Loaded DiCE, equation 11 with λ = 1 (the difference).
    """
    log_probs = jnp.where(valid, log_probs, 0)
    until = jnp.cumsum(log_probs, axis=1)
    before = until - log_probs
    ratios = jnp.exp(until - jax.lax.stop_gradient(until)) - jnp.exp(before - jax.lax.stop_gradient(before))
    # The difference is 0 in value; the advantages are added, so that the sum has the value of the other estimators.
    return jnp.sum(jnp.where(valid, (ratios + 1) * advantages, 0))


ESTIMATORS: Mapping[str, Estimator] = {"low_variance_curvature": low_variance_curvature, "dice": dice}
"""By the name that a configuration gives."""
