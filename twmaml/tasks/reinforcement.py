"""Meta-reinforcement learning: policies that are adapted to an environment by policy gradients."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from twmaml.space.grid import ParameterGrid
from twmaml.tasks.base import AdaptationPath, Part, TaskFamily
from twmaml.tasks.control.advantages import discounted_sums, generalised_advantages, linear_baseline, standardised
from twmaml.tasks.control.environment import DefinesSuccess, Environment, Paths
from twmaml.tasks.control.estimators import ESTIMATORS
from twmaml.tasks.control.rollouts import Rollouts, roll_out
from twmaml.tasks.parameters import Parameters
from twmaml.types import Metric, Outcome, Predict

_RETURN = Metric("return", "return", higher_is_better=True, logarithmic=False)
_SUCCESS = Metric("success", "success rate", higher_is_better=True, logarithmic=False)

_SHOWN = 3
"""Trajectories in a picture."""

Share = Annotated[float, Field(ge=0, le=1)]


class Episode(NamedTuple):
    """A task, and the key of its picture."""

    parameters: Parameters
    key: Key[Array, ""]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class ReinforcementLearning(TaskFamily):
    """Versions of an environment, to each of which a policy is adapted by its own trajectories.

    `shots` and `queries` are numbers of trajectories. Support is collected anew before each inner step by the policy
    that is adapted so far, query by the adapted one. The loss is minus a surrogate of the return, over the number of
    actions; its value says nothing. The score is the shortfall of the mean return: how far below the upper end of
    the environment's `return_range` it is, in units of that range.

    Args:
        environment: whose task parameters are the axes.
        discount: of rewards, a time step, in the advantages; returns are reported without.
        trace: λ of the advantages: 1 takes the rewards as they were, less the baseline; 0 only the next reward.
        standardise: bring the advantages of each task to mean 0 and standard deviation 1. That makes the inner learning
            rate one for all tasks and rewards, but how far off a task is does not show in its gradient any more.
        estimator: the surrogate; `low_variance_curvature` or `dice`.

    References:
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, section 3.2, algorithm 3.
    """

    environment: Environment
    discount: Share = 0.99
    trace: Share = 1.0
    standardise: bool = True
    estimator: Literal["low_variance_curvature", "dice"] = "low_variance_curvature"

    on_policy = True
    evaluated_at_once = 20
    score = Metric("loss", "shortfall of the return", logarithmic=False)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The return, and the rate of success where the environment says what that is."""
        return (_RETURN, _SUCCESS) if isinstance(self.environment, DefinesSuccess) else (_RETURN,)

    @property
    def grid(self) -> ParameterGrid:
        """The environment's task parameters."""
        return self.environment.grid

    @property
    def example_input(self) -> Float[Array, " observations"]:
        """One observation."""
        return jnp.zeros(self.environment.observations)

    @property
    def outputs(self) -> int:
        """A number for each of an action, or for each kind."""
        return self.environment.actions

    @property
    def protocol(self) -> str:
        """The length of an episode."""
        return f"{self.environment.horizon:,} actions an episode"

    def episode(self, key: Key[Array, ""], task: Float[Array, " axes"], data: PyTree[Array]) -> Episode:
        """All parameters of a task."""
        del data
        parameters_key, picture_key = jax.random.split(key)
        return Episode(self.environment.parameters(parameters_key, task), picture_key)

    def collect(self, key: Key[Array, ""], episode: Episode, part: Part, predict: Predict, n: int) -> Rollouts:
        """`n` trajectories of the policy."""
        del part
        return roll_out(self.environment, episode.parameters, predict, key, n)

    def outcome(self, predict: Predict, examples: Rollouts) -> Outcome:
        """Minus the surrogate as loss, the shortfall of the return as score, and the undiscounted return."""
        valid, rewards = examples.valid, examples.rewards
        values = linear_baseline(examples.observations, discounted_sums(rewards, self.discount), valid)
        advantages = generalised_advantages(rewards, values, valid, self.discount, self.trace)
        log_probs = predict(examples.observations).log_prob(examples.actions)
        if self.standardise:
            advantages = standardised(advantages, valid)
        surrogate = ESTIMATORS[self.estimator](log_probs, advantages, valid)
        mean_return = jnp.mean(examples.returns)
        low, high = self.environment.return_range
        metrics = {_RETURN.key: mean_return}
        if examples.successes is not None:
            metrics[_SUCCESS.key] = jnp.mean(examples.successes)
        return Outcome(
            loss=-surrogate / jnp.sum(valid), score=jnp.maximum((high - mean_return) / (high - low), 0), metrics=metrics
        )

    def picture(self, episode: Episode, support: None, path: AdaptationPath) -> dict[str, Array]:
        """Some trajectories after each inner step."""
        del support

        def observe(predict: Predict) -> dict[str, Any]:
            return roll_out(self.environment, episode.parameters, predict, episode.key, _SHOWN).paths._asdict()

        numbers = {name: value for name, value in episode.parameters.items() if isinstance(value, Array | float | int)}
        return {**path(observe), **{f"task.{name}": jnp.asarray(value) for name, value in numbers.items()}}

    def draw_picture(self, axes: Any, picture: Mapping[str, np.ndarray]) -> None:
        """Trajectories after no, one and all inner steps, as the environment draws them."""
        task = {name.removeprefix("task."): float(value) for name, value in picture.items() if "." in name}
        last = len(picture["rewards"]) - 1
        paths = {
            f"after {k} inner step{'' if k == 1 else 's'}": Paths(*(picture[name][k] for name in Paths._fields))
            for k in sorted({0, 1, last})
        }
        self.environment.draw_paths(axes, task, paths)
        fading = dict(zip(paths, np.linspace(0.3, 1, len(paths)).tolist(), strict=True))
        for line in axes.lines:  # tells them apart where they have one colour, that of a sampler
            line.set_alpha(fading.get(line.get_label(), 1))

    def inputs_of(self, x: Any) -> Float[Array, "*batch observations"]:
        """Observations as a policy takes them."""
        return jnp.asarray(x, jnp.float32)

    def support_of(self, x: Any, y: Any) -> NoReturn:
        """Refuses: a policy adapts to an environment."""
        raise NotImplementedError("a policy adapts to an environment: adapt_in(environment, task, steps)")
