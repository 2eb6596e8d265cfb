"""Speed of control: meta-steps a second, where their time goes, and environment steps a second.

`python scripts/benchmark_control.py` runs on one core. The parts of a meta-step are timed by themselves: the
environments alone, trajectories of a policy in them, and the whole step, with as many trajectories as a step has.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_loops import CompiledLoop, clock, compose, in_turn, pin, spread, steps_in
from jaxtyping import Array, Key

from twmaml.configuration.build import Parts
from twmaml.errors import ConfigurationError
from twmaml.meta_learning.learner import MetaLearner
from twmaml.tasks.control.rollouts import roll_out
from twmaml.training.devices import TRAINING, compile_program

ENVIRONMENTS = ("navigation", "cartpole", "pendulum", "half_cheetah", "ant")


def seconds_of(program: Callable[[Any], Any], argument: Any, blocks: int, seconds: float) -> np.ndarray:
    """Seconds of one call in each of some blocks."""
    compiled = compile_program(jax.jit(program).lower(argument), TRAINING)
    jax.block_until_ready(compiled(argument))

    def time_calls(calls: int) -> float:
        began = clock()
        for _ in range(calls):
            jax.block_until_ready(compiled(argument))
        return (clock() - began) / calls

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
    pin(1)
    for name in arguments.environments:
        try:
            parts = compose([f"task={name}", "sampler=weighted", *arguments.set])
        except ConfigurationError as error:
            print(f"{name}: {error}")
            continue
        print(measure(name, parts, arguments.blocks, arguments.seconds))


def measure(name: str, parts: Parts, blocks: int, seconds: float) -> str:
    """A line on one environment."""
    learner, loop = parts.learner, CompiledLoop(parts)
    whole = 1 / in_turn({name: (loop, steps_in(loop, seconds))}, blocks)[name]
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
            f"  {spread(1 / whole)} meta-steps a second",
            f"  {spread(steps / alone / 1e6)} million environment steps a second",
            f"  {spread(steps / acting / 1e6)} million with a policy",
            f"  {shares[0]:.0%} of the time outside the environment, {shares[1]:.0%} outside of trajectories",
        ]
    )


if __name__ == "__main__":
    main()
