"""From a composed configuration to the objects of a job, and from a user's mistake to one clear line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import hydra
import jax
import jax.numpy as jnp
import optax
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from twmaml.adaptation import Adaptation
from twmaml.conf_files import suggest_key
from twmaml.contracts import check_outcome, check_sampler, check_step, telling_where
from twmaml.errors import ConfigurationError, explain_instantiation, first_invalid, one_line
from twmaml.evaluation import Evaluation
from twmaml.memory import least_bytes
from twmaml.models import Model
from twmaml.runner import MetaLearner
from twmaml.samplers import Fraction, Sampler
from twmaml.tasks.base import TaskFamily
from twmaml.tracking import WandbMode
from twmaml.types import InnerSteps, Params

Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of tasks or examples; more than the bound is a slip of the finger that would take the machine down."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]

_OTHER_KEYS = ("task", "sampler", "model", "adaptation", "optimizer", "epsilon")
"""Keys that are parts to build, or that parts refer to."""

_MOST_WEIGHTS = 1e9  # with gradient and optimiser state 16 GB

_MOST_TASKS = 1_000_000  # of an evaluation; they take minutes

_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class EvaluationSettings:
    """The keys under `evaluation`; conf/train.yaml says what they mean."""

    every: PositiveInt
    steps: Annotated[InnerSteps, Field(ge=1)]
    cells: Sequence[PositiveInt] | None
    draws: Count
    queries: Count
    seed: Seed


@dataclass(frozen=True, config=_STRICT)
class WandbSettings:
    """The keys under `wandb`."""

    mode: WandbMode
    project: str
    group: str | None


@dataclass(frozen=True, config=_STRICT)
class DeviceSettings:
    """The keys under `devices`."""

    tasks: PositiveInt
    memory_gib: PositiveFloat | None


@dataclass(frozen=True, config=_STRICT)
class CheckpointSettings:
    """The keys under `checkpoint`."""

    every: PositiveInt
    keep: PositiveInt


@dataclass(frozen=True, config=_STRICT)
class Settings:
    """A run's own keys, besides the groups."""

    seed: Any
    steps: Annotated[int, Field(ge=1, lt=2**31)]
    meta_batch: Count
    shots: Count
    queries: Count
    log_every: PositiveInt
    figures_every: PositiveInt | None
    evaluation: EvaluationSettings
    checkpoint: CheckpointSettings
    wandb: WandbSettings
    devices: DeviceSettings
    uniform_fraction: Fraction

    def __post_init__(self) -> None:
        listed = isinstance(self.seed, list) and len(self.seed) > 0
        if not all(type(seed) is int and 0 <= seed < 2**32 for seed in (self.seed if listed else [self.seed])):
            raise ValueError(f"seed={self.seed}: must be an integer from 0 to 2**32 - 1, or a list of such")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seed={list(self.seeds)}: a seed may be listed only once")

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds as a list, of one if a single one is configured."""
        return listed(self.seed)


def listed(seed: int | Sequence[int]) -> Sequence[int]:
    """The seeds of a job, whose key `seed` is a number or a list."""
    return [seed] if isinstance(seed, int) else seed


class Need(NamedTuple):
    """What a part of a run takes of the memory."""

    what: str
    least_bytes: float
    keys: str
    """Those that it depends on, with their values."""


@plain_dataclass(frozen=True)
class Job:
    """What a configuration describes but for the seed, built."""

    learner: MetaLearner
    evaluation: Evaluation
    needs: Sequence[Need]


def build_job(cfg: DictConfig) -> Job:
    """Builds and checks everything that a configuration describes; nothing is compiled.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    settings = read_settings(cfg)
    _check_epsilon(cfg)
    learner = MetaLearner(
        family=build_part(cfg, "task", TaskFamily),
        sampler=build_part(cfg, "sampler", Sampler),
        model=build_part(cfg, "model", Model),
        adaptation=build_part(cfg, "adaptation", Adaptation),
        optimizer=_build_optimizer(cfg),
        meta_batch=settings.meta_batch,
        shots=settings.shots,
        queries=settings.queries,
        task_devices=settings.devices.tasks,
    )
    parts = {
        "task": learner.family,
        "sampler": learner.sampler,
        "model": learner.model,
        "adaptation": learner.adaptation,
        "optimizer": learner.optimizer,
    }
    with telling_where(parts):
        check_sampler(learner.sampler, learner.family.grid, learner.meta_batch)
        weights = jax.eval_shape(learner.model.init, jax.random.key(0), learner.family.example_input)
        jax.eval_shape(learner.adaptation.init, weights)
    _check_optimizer(cfg, learner, weights)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    if count > _MOST_WEIGHTS:
        raise ConfigurationError(f"model: has {count:.3g} weights. At most {_MOST_WEIGHTS:.0e} are allowed")
    asked = settings.evaluation
    try:
        grid = learner.family.grid
        grid = grid.evaluation_grid() if asked.cells is None else grid.with_cells(asked.cells)
    except ValueError as error:
        key = "task: evaluation_cells of the axes" if asked.cells is None else f"evaluation.cells={asked.cells}"
        raise ConfigurationError(f"{key}: {one_line(error)}") from error
    evaluation = Evaluation(learner, grid, asked.steps, asked.draws, asked.queries, asked.seed)
    cells = f"evaluation.cells={[*grid.shape]} evaluation.draws={asked.draws}"
    if grid.size * asked.draws > _MOST_TASKS:
        raise ConfigurationError(
            f"{cells}: make {grid.size * asked.draws} evaluation tasks. At most {_MOST_TASKS} are allowed"
        )
    alone = replace(learner, task_devices=1)
    network = f"model (of {count:.3g} weights)"
    with telling_where(parts):
        state = jax.eval_shape(lambda: alone.init(0))
        task = jnp.zeros(len(grid.axes))
        check_outcome(jax.eval_shape(alone.adapted_outcome, state.meta_params, state.key, task))
        training, (after, *_) = jax.make_jaxpr(alone.meta_step, return_shape=True)(state)
        check_step(state, after)
        judging = jax.make_jaxpr(lambda state: evaluation.losses(state.meta_params, evaluation.tasks()))(state)
    batch = f"meta_batch={learner.meta_batch} shots={learner.shots} queries={learner.queries}"
    inner = f"adaptation.steps={learner.adaptation.steps} task.*.cells={[*learner.family.grid.shape]}"
    data = f"evaluation.queries={asked.queries} evaluation.steps={asked.steps} shots={learner.shots}"
    needs = [
        Need("training", least_bytes(training), f"{batch} {inner} {network}"),
        Need("evaluating", least_bytes(judging), f"{cells} {data} {network}"),
    ]
    return Job(learner, evaluation, needs)


def read_settings(cfg: DictConfig) -> Settings:
    """Reads and checks a run's own keys.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """

    def as_plain(node: str) -> Any:
        return OmegaConf.to_container(cfg[node], resolve=True) if OmegaConf.is_config(cfg[node]) else cfg[node]

    def read(cls: Any, keys: dict[str, Any], prefix: str) -> Any:
        try:
            return cls(**keys)
        except ValidationError as error:
            raise ConfigurationError(first_invalid(error, prefix)) from error

    unknown = sorted(set(map(str, cfg)) - {*Settings.__dataclass_fields__, *_OTHER_KEYS})
    if unknown:
        raise ConfigurationError(f"{unknown[0]}: there is no such key{suggest_key(unknown[0])}")
    for name in (*Settings.__dataclass_fields__, *_OTHER_KEYS):
        if name not in cfg:
            raise ConfigurationError(f"{name}: is missing")
    for name in ("evaluation", "checkpoint", "wandb", "devices", "optimizer", "task", "sampler", "model", "adaptation"):
        if not OmegaConf.is_dict(cfg[name]):
            raise ConfigurationError(f"{name}={cfg[name]}: must be a group of keys")
    own = {name: as_plain(name) for name in Settings.__dataclass_fields__}
    own["evaluation"] = read(EvaluationSettings, own["evaluation"], "evaluation.")
    own["checkpoint"] = read(CheckpointSettings, own["checkpoint"], "checkpoint.")
    own["wandb"] = read(WandbSettings, own["wandb"], "wandb.")
    own["devices"] = read(DeviceSettings, own["devices"], "devices.")
    return read(Settings, own, "")


def build_part(cfg: DictConfig, key: str, protocol: Any) -> Any:
    """Builds what stands under a key, which must be what the protocol says.

    Raises:
        ConfigurationError: if it is not.
    """
    try:
        part = hydra.utils.instantiate(cfg[key], _convert_="all")
    except InstantiationException as error:
        raise ConfigurationError(explain_instantiation(error, key)) from error
    if not isinstance(part, protocol):
        name = f"twmaml's {protocol.__name__}" if protocol.__module__.startswith("twmaml") else protocol.__name__
        members = {*protocol.__annotations__, *vars(protocol)} if getattr(protocol, "_is_protocol", False) else {}
        missing = sorted(each for each in members if not each.startswith("_") and not hasattr(part, each))
        lacks = f"; it has no {', '.join(missing)}" if missing else ""
        raise ConfigurationError(f"{key}._target_={cfg[key].get('_target_')}: does not make a {name}{lacks}")
    return part


def _build_optimizer(cfg: DictConfig) -> optax.GradientTransformation:
    rate = cfg.optimizer.get("learning_rate", 1.0)
    if not OmegaConf.is_config(rate) and not (isinstance(rate, float | int) and 0 < rate < 3.4e38):
        raise ConfigurationError(
            f"optimizer.learning_rate={rate}: must be a number above 0 and below 3.4e38, or an optax schedule"
        )
    return build_part(cfg, "optimizer", optax.GradientTransformation)


def _check_optimizer(cfg: DictConfig, learner: MetaLearner, weights: Params) -> None:
    """Optax checks its arguments only when an optimiser is used, so it is used here once."""
    optimizer = learner.optimizer

    def use(weights: Params) -> Any:
        meta_params = learner.adaptation.init(weights)
        return optimizer.update(meta_params, optimizer.init(meta_params), meta_params)

    try:
        jax.eval_shape(use, weights)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        arguments = OmegaConf.to_container(cfg.optimizer, resolve=True)
        raise ConfigurationError(f"optimizer={arguments}: {one_line(error)}") from error


def _check_epsilon(cfg: DictConfig) -> None:
    """Refuses a wrong ε whichever sampler is chosen: one that is not used today may be in the next sweep."""
    greedy = {"_target_": "twmaml.samplers.EpsilonGreedy", "epsilon": cfg.epsilon}
    try:
        hydra.utils.instantiate(greedy, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        line = first_invalid(cause, "") if isinstance(cause, ValidationError) else f"epsilon: {one_line(error)}"
        raise ConfigurationError(line) from error
