"""A run's own keys, read and checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from twmaml.configuration.config_files import suggest_key
from twmaml.configuration.explain import first_invalid
from twmaml.errors import ConfigurationError
from twmaml.statistics import VALIDATION
from twmaml.storage.wandb_run import WandbMode
from twmaml.training.plan import Plan
from twmaml.types import InnerSteps

Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""A number of tasks or examples; more than the bound is a slip of the finger that would take the machine down."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]

_OTHER_KEYS = ("task", "sampler", "model", "adaptation", "optimizer", "figures")
"""Keys that are parts to build, or that parts refer to."""

STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=STRICT)
class SplitSettings:
    """The keys under one of `evaluation.splits`: what differs from `task` and from `evaluation`."""

    task: Mapping[str, Any] = field(default_factory=dict)
    cells: Sequence[PositiveInt] | None = None
    draws: Count | None = None
    inside_cells: bool | None = None
    shots: Count | None = None
    queries: Count | None = None
    seed: Seed | None = None


@dataclass(frozen=True, config=STRICT)
class EvaluationSettings:
    """The keys under `evaluation`; conf/train.yaml says what they mean."""

    every: PositiveInt
    steps: Annotated[InnerSteps, Field(ge=1)]
    cells: Sequence[PositiveInt] | None
    draws: Count
    inside_cells: bool
    queries: Count
    seed: Seed
    splits: Mapping[str, SplitSettings]
    patience: PositiveInt | None

    def __post_init__(self) -> None:
        for name in self.splits:
            if not re.fullmatch(r"[a-z]\w*", name) or name in ("train", "queue", "sampler", "weights"):
                raise ValueError(f"splits.{name}: a split must have another name, of small letters")
        object.__setattr__(self, "splits", {"eval": SplitSettings(), **self.splits})


@dataclass(frozen=True, config=STRICT)
class WandbSettings:
    """The keys under `wandb`."""

    mode: WandbMode
    project: str
    group: str | None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project, re.DOTALL):  # W&B's rule
            raise ValueError(f"project must have 1 to 128 characters, none of / \\ # ? % :. Got {self.project}")


@dataclass(frozen=True, config=STRICT)
class DeviceSettings:
    """The keys under `devices`."""

    tasks: PositiveInt
    tasks_at_once: PositiveInt | None
    memory_gib: PositiveFloat | None
    threads: PositiveInt | None


@dataclass(frozen=True, config=STRICT)
class CheckpointSettings:
    """The keys under `checkpoint`."""

    every: PositiveInt
    keep: PositiveInt


@dataclass(frozen=True, config=STRICT)
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
    sampling: Mapping[str, Any]
    """Numbers that samplers refer to."""

    def __post_init__(self) -> None:
        listed = isinstance(self.seed, list) and len(self.seed) > 0
        if not all(type(seed) is int and 0 <= seed < 2**32 for seed in (self.seed if listed else [self.seed])):
            raise ValueError(f"seed={self.seed}: must be an integer from 0 to 2**32 - 1, or a list of such")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seed={list(self.seeds)}: a seed may be listed only once")
        if self.evaluation.patience is not None and VALIDATION not in self.evaluation.splits:
            raise ValueError(
                f"evaluation.patience={self.evaluation.patience}: needs a split to judge by, "
                f"+evaluation.splits.{VALIDATION}={{}}; must be null without"
            )

    @property
    def plan(self) -> Plan:
        """When training does what."""
        periods = self.log_every, self.evaluation.every, self.figures_every, self.checkpoint.every
        return Plan(self.steps, *periods, keep=self.checkpoint.keep, patience=self.evaluation.patience)

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds as a list, of one if a single one is configured."""
        return listed(self.seed)


def listed(seed: int | Sequence[int]) -> Sequence[int]:
    """The seeds of a job, whose key `seed` is a number or a list."""
    return [seed] if isinstance(seed, int) else seed


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
    for name in ("evaluation", "checkpoint", "wandb", "devices", "sampling", *_OTHER_KEYS):
        if not OmegaConf.is_dict(cfg[name]):
            raise ConfigurationError(f"{name}={cfg[name]}: must be a group of keys")
    own = {name: as_plain(name) for name in Settings.__dataclass_fields__}
    splits = own["evaluation"].get("splits")
    if isinstance(splits, dict):
        own["evaluation"]["splits"] = {
            name: read(SplitSettings, split, f"evaluation.splits.{name}.") if isinstance(split, dict) else split
            for name, split in splits.items()
        }
    own["evaluation"] = read(EvaluationSettings, own["evaluation"], "evaluation.")
    own["checkpoint"] = read(CheckpointSettings, own["checkpoint"], "checkpoint.")
    own["wandb"] = read(WandbSettings, own["wandb"], "wandb.")
    own["devices"] = read(DeviceSettings, own["devices"], "devices.")
    return read(Settings, own, "")
