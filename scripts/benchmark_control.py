"""Speed of control: meta-steps a second, where their time goes, and environment steps a second.

`python scripts/benchmark_control.py` runs on one core. The parts of a meta-step are timed by themselves: the
environments alone, trajectories of a policy in them, and the whole step, with as many trajectories as a step has.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from twmaml.configuration.build import build_parts
from twmaml.configuration.config_files import configuration_folder
from twmaml.configuration.settings import read_settings
from twmaml.errors import ConfigurationError
from twmaml.meta_learning.chunk import train_chunk
from twmaml.meta_learning.learner import MetaLearner, RunState
from twmaml.tasks.control.rollouts import roll_out

ENVIRONMENTS = ("navigation", "cartpole", "pendulum", "half_cheetah", "ant")


def build(overrides: Sequence[str]) -> MetaLearner:
    """The parts that some overrides make."""
    with hydra.initialize_config_dir(configuration_folder(), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides))
    return build_parts(cfg, read_settings(cfg)).learner


def seconds_of(program: Callable[[Any], Any], argument: Any, blocks: int, seconds: float) -> np.ndarray:
    """Seconds of one call in each of some blocks."""
    # As the loop of a run is compiled.
    options: Any = {"xla_backend_optimization_level": 2}
    compiled = jax.jit(program).lower(argument).compile(options)
    jax.block_until_ready(compiled(argument))

    def time_calls(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(compiled(argument))
        return (time.perf_counter() - began) / calls

    calls = max(1, int(seconds / time_calls(1)))
    return np.array([time_calls(calls) for _ in range(blocks)])


def act_blindly(learner: MetaLearner, key_and_actions: tuple[Key[Array, ""], Array]) -> Array:
    """Rewards of the environments alone, with actions that no policy has chosen, [tasks, steps, trajectories, ...]."""
    environment: Any = learner.family.environment  # type: ignore[attr-defined]
    key, all_actions = key_and_actions

    def of_task(task: Array, key: Key[Array, ""], actions: Array) -> Array:
        parameters = environment.parameters(key, task)
        states, _ = jax.vmap(lambda key: environment.reset(key, parameters))(jax.random.split(key, learner.shots))
        keys = jax.random.split(key, actions.shape[:2])

        def step(states: Any, actions_and_keys: Any) -> tuple[Any, Array]:
            actions, keys = actions_and_keys
            then = jax.vmap(lambda key, state, action: environment.step(key, state, action, parameters))(
                keys, states, actions
            )
            return then.state, then.reward

        return jax.lax.scan(step, states, (actions, keys))[1]

    return jax.vmap(of_task)(_tasks(learner), jax.random.split(key, learner.meta_batch), all_actions)


def act(learner: MetaLearner, key: Key[Array, ""]) -> Array:
    """Rewards of the policy's trajectories."""
    environment: Any = learner.family.environment  # type: ignore[attr-defined]
    weights = learner.init(0).meta_params

    def of_task(task: Array, key: Key[Array, ""]) -> Array:
        parameters = environment.parameters(key, task)
        return roll_out(environment, parameters, partial(learner.model.apply, weights), key, learner.shots).rewards

    return jax.vmap(of_task)(_tasks(learner), jax.random.split(key, learner.meta_batch))


def _tasks(learner: MetaLearner) -> Array:
    return learner.family.grid.at(
        jax.random.uniform(jax.random.key(2), (learner.meta_batch, len(learner.family.grid.axes)))
    )


def main() -> None:
    """Prints a line for each environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS[:3], choices=ENVIRONMENTS)
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of each part")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a block")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="configuration")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in arguments.environments:
        try:
            learner = build([f"task={name}", "sampler=weighted", *arguments.set])
        except ConfigurationError as error:
            print(f"{name}: {error}")
            continue
        print(measure(name, learner, arguments.blocks, arguments.seconds))


def measure(name: str, learner: MetaLearner, blocks: int, seconds: float) -> str:
    """A line on one environment."""
    chunk = 1 if name in ("half_cheetah", "ant") else 10

    def train(state: RunState) -> Any:
        return train_chunk(learner, state, jnp.int32(chunk))[0].meta_params

    whole = seconds_of(train, learner.init(0), blocks, seconds) / chunk
    environment, key = learner.family.environment, jax.random.key(1)  # type: ignore[attr-defined]
    shape = (learner.meta_batch, environment.horizon, learner.shots)
    actions = jax.random.normal(key, (*shape, environment.actions))
    actions = (actions[..., 0] > 0).astype(jnp.int32) if environment.discrete else actions
    alone = seconds_of(partial(act_blindly, learner), (key, actions), blocks, seconds)
    acting = seconds_of(partial(act, learner), key, blocks, seconds)
    steps = np.prod(shape)
    shares = [1 - 2 * np.median(part) / np.median(whole) for part in (alone, acting)]  # support, and query
    trajectories = f"{learner.meta_batch} x {learner.shots} + {learner.queries} trajectories"
    return "\n".join(
        [
            f"{name}, {trajectories} of {environment.horizon} actions:",
            f"  {_spread(1 / whole)} meta-steps a second",
            f"  {_spread(steps / alone / 1e6)} million environment steps a second",
            f"  {_spread(steps / acting / 1e6)} million with a policy",
            f"  {shares[0]:.0%} of the time outside the environment, {shares[1]:.0%} outside of trajectories",
        ]
    )


def _spread(values: np.ndarray) -> str:
    return f"{np.median(values):.3g} [{values.min():.3g}, {values.max():.3g}]"


if __name__ == "__main__":
    main()
