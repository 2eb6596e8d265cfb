"""Trajectories of a policy."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from twmaml.tasks.control.environment import DefinesSuccess, Environment, Paths, Transition
from twmaml.tasks.parameters import Parameters
from twmaml.types import Predict


@runtime_checkable
class Actions(Protocol):
    """A batch of distributions of actions: what a policy gives for a batch of observations."""

    def noise(self, key: Key[Array, ""], steps: int) -> Float[Array, "..."]:
        """The randomness of so many draws; asked of shapes alone."""
        ...

    def draw(self, noise: Float[Array, "..."]) -> Array:
        """The actions that some randomness leads to."""
        ...

    def log_prob(self, actions: Array) -> Float[Array, "*batch"]:
        """The logarithms of their probabilities or densities."""
        ...


class Rollouts(NamedTuple):
    """Trajectories of a policy on one task."""

    observations: Float[Array, "trajectories steps observations"]
    """Before each action."""
    actions: Array
    rewards: Float[Array, "trajectories steps"]
    """0 once the episode is over."""
    valid: Bool[Array, "trajectories steps"]
    """Marks the actions that were taken before the episode was over."""
    successes: Bool[Array, " trajectories"] | None
    """None of an environment that defines none."""

    @property
    def paths(self) -> Paths:
        """The part that figures show."""
        return Paths(self.observations, self.rewards, self.valid)

    @property
    def returns(self) -> Float[Array, " trajectories"]:
        """The sum of the rewards of each."""
        return jnp.sum(self.rewards, axis=1)


def roll_out(
    environment: Environment, task: Parameters, policy: Predict, key: Key[Array, ""], trajectories: int
) -> Rollouts:
    """Lets a policy act until the horizon. Nothing of it is differentiated.

    Raises:
        ValueError: if the policy's actions are not those of the environment.
    """
    reset_key, noise_key, step_key = jax.random.split(key, 3)
    reset_keys = jax.random.split(reset_key, trajectories)
    start = jax.vmap(lambda key: environment.reset(key, task))(reset_keys)
    form = jax.eval_shape(policy, start[1])
    _check_actions(environment, form, trajectories)
    noise = form.noise(noise_key, environment.horizon)  # of all steps at once: step by step it takes longer
    step_keys = jax.random.split(step_key, (environment.horizon, trajectories))

    def step(carry: Any, randomness: tuple[Array, Array]) -> tuple[Any, Any]:
        (state, observations), alive = carry
        noise, keys = randomness
        actions = jax.lax.stop_gradient(policy(observations).draw(noise))

        def act(key: Key[Array, ""], state: Any, action: Array) -> Transition:
            return environment.step(key, state, action, task)

        then = jax.vmap(act)(keys, state, actions)
        now = jax.tree.map(lambda new, old: _where(alive, new, old), (then.state, then.observation), carry[0])
        taken = (observations, actions, jnp.where(alive, then.reward, 0), alive)
        return (now, alive & ~then.done), taken

    (last, _), taken = jax.lax.scan(step, (start, jnp.ones(trajectories, bool)), (noise, step_keys))
    successes = None
    if isinstance(environment, DefinesSuccess):
        successes = jax.vmap(lambda state: environment.succeeded(state, task))(last[0])
    observations, actions, rewards, valid = (jnp.swapaxes(part, 0, 1) for part in taken)
    return Rollouts(observations, actions, rewards, valid, successes)


def _where(chosen: Bool[Array, " trajectories"], first: Array, second: Array) -> Array:
    return jnp.where(chosen.reshape(-1, *[1] * (first.ndim - 1)), first, second)


def _check_actions(environment: Environment, form: Any, trajectories: int) -> None:
    """Refuses a policy whose outputs, of which this is the form, are no actions of the environment."""
    wanted = f"one of {environment.actions} kinds" if environment.discrete else f"{environment.actions} real numbers"
    shape = (trajectories,) if environment.discrete else (trajectories, environment.actions)
    kind = jnp.integer if environment.discrete else jnp.floating
    if isinstance(form, Actions):
        drawn = jax.eval_shape(lambda form: form.draw(form.noise(jax.random.key(0), 1)[0]), form)
        if drawn.shape == shape and jnp.issubdtype(drawn.dtype, kind):
            return
    policy = "categorical_policy" if environment.discrete else "gaussian_policy"
    name = type(environment).__name__
    raise ValueError(f"an action of {name} is {wanted}, as model={policy} gives. Got {type(form).__name__}")
