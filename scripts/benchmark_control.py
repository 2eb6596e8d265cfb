"""Speed of control: meta-steps a second, where their time goes, and environment steps a second.

`python scripts/benchmark_control.py` runs on one core. The parts of a meta-step are timed by themselves: the environments
alone, trajectories of a policy in them, and the whole step; all of them with as many trajectories as the step has.
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
from twmaml.meta_learning.learner import MetaLearner
from twmaml.tasks.control.rollouts import roll_out

ENVIRONMENTS = ("navigation", "cartpole", "pendulum", "half_cheetah", "ant")


def build(overrides: Sequence[str]) -> MetaLearner:
    """The parts that some overrides make."""
    with hydra.initialize_config_dir(configuration_folder(), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides))
    return build_parts(cfg, read_settings(cfg)).learner


def seconds_of(program: Callable[[Any], Any], argument: Any, blocks: int, seconds: float) -> list[float]:
    """Seconds of one call in each of some blocks."""
    compiled = jax.jit(program).lower(argument).compile()
    jax.block_until_ready(compiled(argument))

    def time_calls(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(compiled(argument))
        return (time.perf_counter() - began) / calls

    calls = max(1, int(seconds / time_calls(1)))
    return [time_calls(calls) for _ in range(blocks)]


def act_blindly(learner: MetaLearner, key: Key[Array, ""]) -> Array:
    """Rewards of the environments alone, with actions that no policy has chosen."""
    environment: Any = learner.family.environment  # type: ignore[attr-defined]
    shape = (environment.horizon, learner.shots) + (() if environment.discrete else (environment.actions,))

    def of_task(task: Array, key: Key[Array, ""]) -> Array:
        parameters = environment.parameters(key, task)
        actions = jnp.zeros(shape, jnp.int32 if environment.discrete else jnp.float32)
        states, _ = jax.vmap(lambda key: environment.reset(key, parameters))(jax.random.split(key, learner.shots))
        keys = jax.random.split(key, shape[:2])

        def step(states: Any, actions_and_keys: Any) -> tuple[Any, Array]:
            actions, keys = actions_and_keys
            then = jax.vmap(lambda key, state, action: environment.step(key, state, action, parameters))(
                keys, states, actions
            )
            return then.state, then.reward

        return jax.lax.scan(step, states, (actions, keys))[1]

    return jax.vmap(of_task)(_tasks(learner), jax.random.split(key, learner.meta_batch))


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
        state, key = learner.init(0), jax.random.key(1)

        def timed(program: Callable[[Any], Any], argument: Any) -> np.ndarray:
            return np.array(seconds_of(program, argument, arguments.blocks, arguments.seconds))

        chunk = 10 if name in ENVIRONMENTS[:3] else 1
        whole = timed(
            lambda state, learner=learner: train_chunk(learner, state, jnp.int32(chunk))[0].meta_params, state
        )
        alone, acting = (timed(partial(part, learner), key) for part in (act_blindly, act))
        whole = whole / chunk
        horizon: int = learner.family.environment.horizon  # type: ignore[attr-defined]
        steps = learner.meta_batch * learner.shots * horizon
        print(
            f"{name} ({learner.meta_batch} tasks x {learner.shots} + {learner.queries} trajectories x {horizon} actions): "
            f"{_spread(1 / whole)} meta-steps/s; {_spread(steps / alone / 1e6)} million environment steps/s alone, "
            f"{_spread(steps / acting / 1e6)} with the policy; outside the environment {1 - 2 * np.median(alone) / np.median(whole):.0%} "
            f"of the time, outside trajectories {1 - 2 * np.median(acting) / np.median(whole):.0%}"
        )


def _spread(values: np.ndarray) -> str:
    return f"{np.median(values):.3g} [{values.min():.3g}, {values.max():.3g}]"


if __name__ == "__main__":
    main()
