"""Advantages of actions: by how much they were better than a baseline expects."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def discounted_sums(values: Float[Array, "trajectories steps"], factor: float) -> Float[Array, "trajectories steps"]:
    """At every step the sum of the values from there on, each a `factor` of the one before."""

    def add(later: Array, value: Array) -> tuple[Array, Array]:
        total = value + factor * later
        return total, total

    _, sums = jax.lax.scan(add, jnp.zeros_like(values[:, 0]), values.T, reverse=True)
    return sums.T


def linear_baseline(
    observations: Float[Array, "trajectories steps observations"],
    returns: Float[Array, "trajectories steps"],
    valid: Bool[Array, "trajectories steps"],
    ridge: float = 1e-3,
) -> Float[Array, "trajectories steps"]:
    """Expected returns: least squares on the observations, their squares, and powers of time, in closed form.

    Args:
        observations: before each action; clipped to ±10.
        returns: the discounted sum of rewards from each action on.
        valid: steps to fit to.
        ridge: penalty of the squared coefficients, a step.

    References:
        Duan, Chen, Houthooft, Schulman, Abbeel 2016, Benchmarking deep reinforcement learning for continuous
        control, section 4 (the features).
    """
    observed = jnp.clip(observations, -10, 10)
    time = jnp.broadcast_to(jnp.arange(returns.shape[1])[:, None] / 100, (*returns.shape, 1))
    features = jnp.concatenate([observed, observed**2, time, time**2, time**3, jnp.ones_like(time)], axis=-1)
    counted = jnp.where(valid[..., None], features, 0).reshape(-1, features.shape[-1])
    penalty = ridge * jnp.sum(valid) * jnp.eye(features.shape[-1])
    coefficients = jnp.linalg.solve(counted.T @ counted + penalty, counted.T @ returns.ravel())
    return features @ coefficients


def generalised_advantages(
    rewards: Float[Array, "trajectories steps"],
    values: Float[Array, "trajectories steps"],
    valid: Bool[Array, "trajectories steps"],
    discount: float,
    trace: float,
) -> Float[Array, "trajectories steps"]:
    """Discounted sums of the errors of a baseline, which is 0 after the end of an episode.

    Args:
        rewards: of each action; 0 where not valid.
        values: of the baseline.
        valid: steps before the end of the episode.
        discount: of rewards, a step (γ).
        trace: the share of later errors (λ): 1 takes all rewards as they were, 0 only the next.

    References:
        Schulman, Moritz, Levine, Jordan, Abbeel 2016, High-dimensional continuous control using generalized
        advantage estimation, equation 16.
    """
    values = jnp.where(valid, values, 0)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    return discounted_sums(rewards + discount * following - values, discount * trace)


def standardised(
    values: Float[Array, "trajectories steps"], valid: Bool[Array, "trajectories steps"]
) -> Float[Array, "trajectories steps"]:
    """The same values with mean 0 and standard deviation 1 over the valid steps."""
    mean = jnp.mean(values, where=valid)
    return (values - mean) / (jnp.std(values, where=valid) + 1e-8)
