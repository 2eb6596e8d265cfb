"""The base class of environments."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from twmaml.tasks.parameters import Parameters, Parametrised


class Transition(NamedTuple):
    """The result of an action."""

    state: Any
    observation: Float[Array, " observations"]
    reward: Float[Array, ""]
    done: Bool[Array, ""]
    """Whether the episode is over before its horizon. What comes after it does not count."""


class Paths(NamedTuple):
    """Trajectories of a policy on one task, as figures show them."""

    observations: Float[Array | np.ndarray, "trajectories steps observations"]
    """Before each action."""
    rewards: Float[Array | np.ndarray, "trajectories steps"]
    valid: Bool[Array | np.ndarray, "trajectories steps"]
    """Marks the actions that were taken before the episode was over."""

    def joined(self, values: Float[Array | np.ndarray, "trajectories steps *any"]) -> Float[np.ndarray, "all *any"]:
        """Values of all steps as one line that Matplotlib interrupts between trajectories."""
        known = np.where(self.valid.reshape(*self.valid.shape, *[1] * (values.ndim - 2)), values, np.nan)
        gap = np.full((len(known), 1, *known.shape[2:]), np.nan)
        return np.concatenate([known, gap], axis=1).reshape(-1, *known.shape[2:])

    def draw(self, axes: Any, values: Float[Array | np.ndarray, "trajectories steps"], label: str) -> None:
        """Draws a number over time, a curve for each trajectory, into Matplotlib's axes."""
        steps = np.broadcast_to(np.arange(values.shape[1], dtype=np.float64), values.shape)
        axes.plot(self.joined(steps), self.joined(values), linewidth=1.2, label=label)

    def until(self, time: int) -> "Paths":
        """The first steps."""
        return Paths(*(part[:, :time] for part in self))


class Environment(Parametrised, ABC):
    """A Markov decision process whose task parameters come from outside, and which never restarts by itself.

    A subclass is a frozen dataclass with the field `horizon`, the number of actions of an episode. Its other fields
    are task parameters (`Parametrised`), of which at least one varies.
    """

    horizon: int
    observations: int
    """Numbers of an observation; an attribute of the class."""
    actions: int
    """Numbers of an action, or if `discrete` kinds of action; an attribute of the class."""
    discrete = False
    """Whether an action is one of several kinds, 0, 1, ...; otherwise it is a vector."""

    def __post_init__(self) -> None:
        """Refuses an environment that does not keep what this class promises. Traces it; nothing is compiled.

        Raises:
            ValueError: with what it must have or return, or with the error of its own code.
        """
        name = type(self).__name__
        for attribute in ("observations", "actions"):
            if not isinstance(getattr(type(self), attribute, None), int):
                raise ValueError(f"{name} must have {attribute}, an integer, as an attribute of the class")
        task, key = self.grid.centres()[0], jax.random.key(0)
        action = jnp.int32(0) if self.discrete else jnp.zeros(self.actions)
        try:
            state, first = jax.eval_shape(lambda: self.reset(key, self.parameters(key, task)))
            then = jax.eval_shape(lambda state: self.step(key, state, action, self.parameters(key, task)), state)
        except Exception as error:
            raise ValueError(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
        if not isinstance(then, Transition):
            raise ValueError(f"{name}.step must return a Transition. Got {type(then).__name__}")
        if jax.tree.map(jnp.shape, then.state) != jax.tree.map(jnp.shape, state):
            raise ValueError(f"{name}.step must return a state of the form that reset gives")
        observed = (self.observations,)
        for what, value, shape in (
            ("the observation of reset", first, observed),
            ("the observation of step", then.observation, observed),
            ("the reward", then.reward, ()),
            ("done", then.done, ()),
        ):
            if jnp.shape(value) != shape:
                raise ValueError(f"{name}: {what} must have shape {shape}. Got {jnp.shape(value)}")

    @property
    @abstractmethod
    def return_range(self) -> tuple[float, float]:
        """The sums of rewards for which the queue's score is 1 and 0.

        A score is never negative: a sum above the larger one scores 0 however good it is. The smaller one only sets
        the scale.
        """

    @abstractmethod
    def reset(self, key: Key[Array, ""], task: Parameters) -> tuple[Any, Float[Array, " observations"]]:
        """The first state, which is any tree of arrays, and what is observed of it."""

    @abstractmethod
    def step(self, key: Key[Array, ""], state: Any, action: Array, task: Parameters) -> Transition:
        """The state that an action leads to. The numbers of a vector have no bounds: clip them where they act."""

    def draw_paths(self, axes: Any, task: Mapping[str, float], paths: Mapping[str, Paths]) -> None:
        """Draws trajectories into Matplotlib's axes: by default the rewards over time.

        Args:
            axes: to draw into.
            task: all parameters, as `step` has them.
            paths: by their label.
        """
        del task
        for label, path in paths.items():
            path.draw(axes, path.rewards, label)
        axes.set(xlabel="time step", ylabel="reward")

    def draw_moment(self, axes: Any, task: Mapping[str, float], path: Paths, time: int) -> None:
        """Draws a trajectory at a time step into Matplotlib's axes: by default what `draw_paths` does until then.

        Args:
            axes: to draw into.
            task: all parameters, as `step` has them.
            path: a single trajectory.
            time: index of the step.
        """
        self.draw_paths(axes, task, {"": path.until(time + 1)})


@runtime_checkable
class DefinesSuccess(Protocol):
    """An environment in which an episode can succeed."""

    def succeeded(self, state: Any, task: Parameters) -> Bool[Array, ""]:
        """Whether an episode has that ends in this state."""
        ...
