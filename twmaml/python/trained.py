"""A trained initialisation: from the folder of a run, adapted to data or in an environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from omegaconf import OmegaConf

from twmaml.adaptation.base import Adaptation, adapt, bind
from twmaml.configuration.instantiation import TRUSTED, build_model, build_part, refuse_foreign
from twmaml.errors import ConfigurationError
from twmaml.models.base import Model
from twmaml.storage.checkpoint import CheckpointError, newest, unpack
from twmaml.storage.validation import best_checkpoint
from twmaml.tasks.base import TaskFamily
from twmaml.tasks.control.environment import Environment, Paths
from twmaml.tasks.control.rollouts import Rollouts, roll_out
from twmaml.tasks.reinforcement import ReinforcementLearning
from twmaml.types import Fast, MetaParams, Predict


class Trained(NamedTuple):
    """A trained initialisation."""

    family: TaskFamily
    network: Model
    adaptation: Adaptation
    meta_params: MetaParams
    step: int
    """Meta-steps that it was trained for."""
    shots: int
    """Support examples of a task, or trajectories, that it was trained with."""

    @property
    def predict(self) -> Predict:
        """The network before adapting: inputs -> outputs."""
        return self._bind(self.adaptation.start(self.meta_params))

    def adapt(self, x: Any, y: Any, steps: int) -> Predict:
        """The network after so many inner steps on examples of a task: inputs -> outputs.

        Args:
            x: inputs of the examples.
            y: their targets.
            steps: inner steps.

        Raises:
            NotImplementedError: if the family cannot adapt to arrays.
        """
        support = self.family.support_of(x, y)

        def loss_of(predict: Predict, _: Any) -> Array:
            return self.family.outcome(predict, support).loss

        key = jax.random.key(0)
        return self._bind(adapt(self.adaptation, self.network, self.meta_params, loss_of, key, steps))

    def adapt_in(
        self,
        environment: Environment,
        task: Mapping[str, float],
        steps: int,
        trajectories: int | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Predict:
        """The policy after so many inner steps in an environment: observations -> distributions of actions.

        Args:
            environment: where it collects trajectories: `family.environment`, or one of your own.
            task: the parameters of the environment that vary, in their configured units.
            steps: inner steps.
            trajectories: of each inner step; as many as in training if None.
            key: of the trajectories; always the same if None.

        Raises:
            NotImplementedError: if what was trained is no policy.
            ValueError: for a task that is none of the environment's.
        """
        if not isinstance(self.family, ReinforcementLearning):
            raise NotImplementedError(f"{type(self.family).__name__} adapts to examples: adapt(x, y, steps)")
        family, parameters = self.family, environment.parameters_of(task)
        count = self.shots if trajectories is None else trajectories

        def loss_of(predict: Predict, key: Key[Array, ""]) -> Array:
            return family.outcome(predict, roll_out(environment, parameters, predict, key, count)).loss

        key = jax.random.key(0) if key is None else key
        return self._bind(adapt(self.adaptation, self.network, self.meta_params, loss_of, key, steps))

    def _bind(self, fast: Fast) -> Predict:
        network = bind(self.adaptation, self.network, self.meta_params, fast)
        return lambda x: network(self.family.inputs_of(x))

    @property
    def model(self) -> NoReturn:
        """Says what took the place of `trained.model.apply(params, x)`."""
        raise ConfigurationError("trained.model.apply(params, x) is now predict(x), where predict = trained.adapt(...)")


def load(folder: str | Path, trust: Sequence[str] = (), best: bool = False) -> Trained:
    """The trained initialisation in the folder of a run, from its newest whole checkpoint or its best.

    Args:
        folder: of the run.
        trust: modules besides twmaml's own that a family, a model or an adaptation may come from. Their code runs.
        best: takes the checkpoint of the best evaluation on the split `validation`.

    Raises:
        CheckpointError, ConfigurationError: if there is none that can be used.
    """
    folder = Path(folder)
    checkpoint = best_checkpoint(folder) if best else newest([folder])[0]
    if checkpoint is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    cfg = OmegaConf.create(checkpoint.notes.config)
    for key in ("task", "model", "adaptation"):
        refuse_foreign(checkpoint.notes.config[key], (*TRUSTED, *(f"{module}." for module in trust)))
    family = build_part(cfg, "task", TaskFamily)
    model = build_model(cfg, family)
    adaptation = build_part(cfg, "adaptation", Adaptation)
    shapes = jax.eval_shape(lambda: adaptation.init(jax.random.key(0), model, family.example_input))
    meta_params = unpack({"meta_params": shapes}, checkpoint.arrays)["meta_params"]
    meta_params = jax.tree.map(jnp.asarray, meta_params)
    return Trained(family, model, adaptation, meta_params, checkpoint.notes.step, cfg.shots)


def save_animation(
    path: str | Path, environment: Environment, task: Mapping[str, float], rollouts: Rollouts, trajectory: int = 0
) -> None:
    """Writes a trajectory as a GIF: a frame for each step until the episode is over.

    Args:
        path: of the file, which must end in `.gif`.
        environment: draws a frame.
        task: the parameters of the environment that vary, in their configured units.
        rollouts: of a policy on the task.
        trajectory: which of them.
    """
    from twmaml.figures.animation import save_gif  # noqa: PLC0415  brings Matplotlib

    parameters = {n: float(v) for n, v in environment.parameters_of(task).items() if isinstance(v, Array | float | int)}
    shown = Paths(*(np.asarray(part)[trajectory, None] for part in rollouts.paths))

    def draw(axes: Any, time: int) -> None:
        environment.draw_moment(axes, parameters, shown, time)

    save_gif(Path(path), draw, int(shown.valid.sum()), per_second=20)
