"""The estimators of meta-reinforcement learning against each other, and DiCE against finite differences.

`python scripts/estimators.py` trains a policy on task=navigation for some meta-steps and prints, of many meta-gradients
at that policy, the standard deviation of one over the norm of their mean, by estimator; then the first and the second
derivative of a policy's return along a direction, by DiCE and by finite differences.
"""

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from twmaml.configuration.build import build_parts
from twmaml.configuration.config_files import configuration_folder
from twmaml.configuration.settings import read_settings
from twmaml.meta_learning.chunk import train_chunk
from twmaml.models.policy import GaussianPolicy
from twmaml.space.axis import Interval
from twmaml.tasks.control.advantages import discounted_sums
from twmaml.tasks.control.estimators import ESTIMATORS, Estimator, dice
from twmaml.tasks.control.navigation import Navigation
from twmaml.tasks.control.rollouts import Rollouts, roll_out


def meta_gradients(steps: int, number: int, draw_tasks: bool) -> dict[str, Float[np.ndarray, "number weights"]]:
    """Meta-gradients at the same trained policy, all else drawn anew (the tasks only if asked for), by estimator."""
    with hydra.initialize_config_dir(configuration_folder(), version_base="1.3"):
        cfg = hydra.compose("train", ["task=navigation", "sampler=uniform"])
    learner = build_parts(cfg, read_settings(cfg)).learner
    state, _ = jax.jit(partial(train_chunk, learner))(learner.init(0), jnp.int32(steps))
    grid, shape = learner.family.grid, (learner.meta_batch, len(learner.family.grid.axes))
    fixed, found = grid.at(jax.random.uniform(jax.random.key(2), shape)), {}
    for name in ESTIMATORS:
        family: Any = learner.family
        own = replace(learner, family=replace(family, estimator=name))

        @jax.jit
        def gradient(key: Key[Array, ""], own: Any = own) -> Float[Array, " weights"]:
            tasks_key, keys_key = jax.random.split(key)
            tasks = grid.at(jax.random.uniform(tasks_key, shape)) if draw_tasks else fixed
            keys = jax.random.split(keys_key, own.meta_batch)

            def loss(meta_params: Any) -> Array:
                def of_task(key: Key[Array, ""], task: Array) -> Array:
                    return own.adapt_and_judge(meta_params, key, task, (), state.step)[0]

                return jnp.mean(jax.vmap(of_task)(keys, tasks))

            return ravel_pytree(jax.grad(loss)(state.meta_params))[0]

        found[name] = np.asarray(jax.lax.map(gradient, jax.random.split(jax.random.key(1), number)))
    return found


def relative_sd(gradients: Float[np.ndarray, "number weights"]) -> float:
    """The standard deviation of one meta-gradient over the norm of the mean of all, less what chance adds to it."""
    variance = gradients.var(axis=0, ddof=1).sum()
    return float(np.sqrt(variance / max((gradients.mean(axis=0) ** 2).sum() - variance / len(gradients), 1e-30)))


def bootstrapped(gradients: Float[np.ndarray, "number weights"]) -> tuple[float, float]:
    """Its 95 % interval over resampled gradients."""
    generator = np.random.default_rng(0)
    values = [relative_sd(gradients[generator.integers(len(gradients), size=len(gradients))]) for _ in range(300)]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def derivatives(
    estimator: Estimator, blocks: int, trajectories: int, seed: int = 0
) -> dict[str, dict[str, tuple[float, float]]]:
    """First and second derivative of a small policy's return along a direction, each with its standard error.

    Args:
        estimator: a surrogate of the return.
        blocks: independent estimates.
        trajectories: of a block.
        seed: of the policy, the direction and the trajectories.

    Returns:
        Estimates by the surrogate and by finite differences, by order of the derivative.
    """
    environment = Navigation(Interval(-0.5, 0.5, 2), 0.2, 8)
    task = environment.parameters_of({"goal_x": 0.3})
    policy = GaussianPolicy([], "tanh", jax.nn.initializers.normal(1.0), 2, log_std=-2.5)
    policy_key, direction_key, *keys = jax.random.split(jax.random.key(seed), 2 + blocks)
    weights, unravel = ravel_pytree(policy.init(policy_key, jnp.zeros(2)))
    direction = jax.random.normal(direction_key, weights.shape) * 0.3

    def along(offset: Float[Array, ""]) -> Any:
        return partial(policy.apply, unravel(weights + offset * direction))

    def surrogate(offset: Float[Array, ""], rollouts: Rollouts) -> Float[Array, ""]:
        # A baseline that other trajectories give leaves every derivative unbiased.
        half = trajectories // 2
        returns = discounted_sums(rollouts.rewards, 1.0)
        baseline = jnp.concatenate(
            [jnp.repeat(returns[part].mean(axis=0)[None], half, 0) for part in (slice(half, None), slice(half))]
        )
        log_probs = along(offset)(rollouts.observations).log_prob(rollouts.actions)
        return estimator(log_probs, returns - baseline, rollouts.valid) / trajectories

    def mean_return(offset: float, key: Key[Array, ""]) -> Float[Array, ""]:
        return jnp.mean(roll_out(environment, task, along(jnp.float32(offset)), key, trajectories).returns)

    @jax.jit
    def estimate(key: Key[Array, ""]) -> dict[str, dict[str, Array]]:
        rollouts = roll_out(environment, task, along(jnp.float32(0)), key, trajectories)
        first = jax.grad(surrogate)
        near, far = 0.02, 0.05  # less bias for the first derivative, less noise for the second
        difference = (mean_return(near, key) - mean_return(-near, key)) / (2 * near)
        curvature = (mean_return(far, key) - 2 * mean_return(0, key) + mean_return(-far, key)) / far**2
        return {
            "first": {"estimator": first(jnp.float32(0), rollouts), "differences": difference},
            "second": {"estimator": jax.grad(first)(jnp.float32(0), rollouts), "differences": curvature},
        }

    estimates = jax.tree.map(np.asarray, jax.lax.map(estimate, jnp.stack(keys)))
    return jax.tree.map(lambda v: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(blocks))), estimates)


def main() -> None:
    """Prints both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=60, help="meta-steps that the policy is trained for")
    parser.add_argument("--gradients", type=int, default=400, help="meta-gradients of each estimator")
    parser.add_argument("--draw-tasks", action="store_true", help="other tasks for each meta-gradient")
    parser.add_argument("--blocks", type=int, default=200, help="of trajectories, for the derivatives")
    parser.add_argument("--trajectories", type=int, default=20_000, help="of a block")
    arguments = parser.parse_args()
    found = meta_gradients(arguments.steps, arguments.gradients, arguments.draw_tasks)
    print(f"{arguments.gradients} meta-gradients at one policy, after {arguments.steps} meta-steps of task=navigation")
    for name, gradients in found.items():
        low, high = bootstrapped(gradients)
        print(f"  {name:<24} sd / norm of the mean {relative_sd(gradients):.2f} [{low:.2f}, {high:.2f}]")
    means = [gradients.mean(axis=0) for gradients in found.values()]
    cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    print(f"  cosine of their means {cosine:.2f}")
    print(f"derivatives of a policy's return, {arguments.blocks} x {arguments.trajectories} trajectories")
    for order, values in derivatives(dice, arguments.blocks, arguments.trajectories).items():
        (ours, error), (theirs, other) = values["estimator"], values["differences"]
        print(
            f"  {order:<7} DiCE {ours:.4g} ± {error:.2g}, finite differences {theirs:.4g} ± {other:.2g}: "
            f"{abs(ours - theirs) / np.hypot(error, other):.1f} standard errors apart"
        )


if __name__ == "__main__":
    main()
