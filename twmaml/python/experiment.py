"""An experiment composed in Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax
from omegaconf import OmegaConf

from twmaml.adaptation.base import Adaptation
from twmaml.configuration.build import KINDS, build_parts
from twmaml.configuration.composition import compose_configuration
from twmaml.configuration.settings import Settings, read_settings
from twmaml.errors import ConfigurationError
from twmaml.models.base import Model
from twmaml.python.runs import Runs
from twmaml.samplers.base import Sampler
from twmaml.tasks.base import TaskFamily
from twmaml.training.devices import check_machine
from twmaml.training.parts import Parts
from twmaml.training.process import prepare_jax


def compose(*overrides: str, **changes: Any) -> "Experiment":
    """An experiment as the command line composes and checks it.

    Args:
        overrides: as on the command line: `"task=sin2d"`, `"sampling.uniform_fraction=0.3"`.
        changes: by key, after the overrides: a number, a list or a mapping of what changes (`steps=3000`,
            `evaluation={"draws": 5}`), the name of a choice (`task="sin2d"`), or an object that is the part itself
            (`sampler=Oldest()`, `task`, `model`, `adaptation`, `optimizer`).

    Raises:
        ConfigurationError: for the first thing that is wrong, with the command line's line.
    """
    for each in overrides:
        if not isinstance(each, str):
            raise ConfigurationError(f'{each}: must be strings one by one, compose("task=sin2d", "sampler=weighted")')
    chosen = [f"{key}={value}" for key, value in changes.items() if isinstance(value, str)]
    given = {key: part for key, part in changes.items() if key in KINDS and not isinstance(part, str | Mapping)}
    values = {key: value for key, value in changes.items() if not isinstance(value, str) and key not in given}
    config, choices = compose_configuration([*overrides, *chosen], values)
    settings = read_settings(OmegaConf.create(config))
    prepare_jax(None, settings.devices.threads)
    parts = build_parts(OmegaConf.create(config), settings, given)
    names = [type(given[key]).__name__ if key in given else choices[key] for key in ("sampler", "task")]
    return Experiment({**config, **given}, " on ".join(names), settings, parts)


@dataclass(frozen=True, repr=False)
class Experiment:
    """The parts of an experiment, built and checked; `compose` makes one."""

    config: Mapping[str, Any]
    """As the command line composes it, interpolations resolved; an object that was given stands under its key."""
    title: str
    """The sampler and the task."""
    _settings: Settings
    _parts: Parts

    def __repr__(self) -> str:
        return f"<{self.title}: {self._settings.steps:,} meta-steps, seed {self._settings.seed}>"

    @property
    def family(self) -> TaskFamily:
        """The task family."""
        return self._parts.learner.family

    @property
    def sampler(self) -> Sampler:
        """The sampler."""
        return self._parts.learner.sampler

    @property
    def model(self) -> Model:
        """The network."""
        return self._parts.learner.model

    @property
    def adaptation(self) -> Adaptation:
        """The adaptation."""
        return self._parts.learner.adaptation

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser of the meta-parameters."""
        return self._parts.learner.optimizer

    def begin(self) -> Runs:
        """A run of each configured seed before its first meta-step, all of them compiled as one program.

        Raises:
            ConfigurationError: for what this machine is too small for, or cannot be done in memory.
            TrainingFailedError: if there is nothing finite to begin with.
        """
        patience = self._settings.evaluation.patience
        if patience is not None:
            raise ConfigurationError(f"evaluation.patience={patience}: ends no run in Python; must be null")
        check_machine(self._parts)
        return Runs(self.title, self._settings, self._parts)
