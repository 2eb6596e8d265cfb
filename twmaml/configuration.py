"""From a composed configuration to the objects of a job, and from a user's mistake to one clear line."""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import hydra
import jax
import jax.numpy as jnp
import optax
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from twmaml.adaptation import Adaptation
from twmaml.evaluation import Evaluation
from twmaml.models import Model
from twmaml.runner import MetaLearner
from twmaml.samplers import Fraction, Sampler
from twmaml.tasks.base import TaskFamily
from twmaml.tracking import WandbMode

Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of tasks or examples; more than the bound is a slip of the finger that would take the machine down."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]

_OTHER_KEYS = ("task", "sampler", "model", "adaptation", "optimizer", "epsilon")
"""Keys that are parts to build, or that parts refer to."""

_MOST_WEIGHTS = 1e9  # with gradient and optimiser state 16 GB

_STRICT = ConfigDict(strict=True, extra="forbid")


class ExpectedError(Exception):
    """Something that can go wrong without a fault in the program; its message tells all that there is to tell."""


class ConfigurationError(ExpectedError):
    """A mistake of the user's; the message is one line that names the key, the value and what is allowed."""


class SweepFailedError(ExpectedError):
    """Some jobs of a sweep have failed; the message lists each with its reason."""


@dataclass(frozen=True, config=_STRICT)
class EvaluationSettings:
    """The keys under `evaluation`; conf/train.yaml says what they mean."""

    every: PositiveInt
    steps: PositiveInt
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
        return [self.seed] if isinstance(self.seed, int) else self.seed


@plain_dataclass(frozen=True)
class Job:
    """What one job trains and how."""

    settings: Settings
    learner: MetaLearner
    evaluation: Evaluation


def configuration_folder() -> str:
    """The folder of the configuration groups: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


def register_resolvers() -> None:
    """What conf/train.yaml uses to name a run's folder: `s0` for one seed, `3seeds` for a list."""

    def seed_name(seed: Any) -> str:
        return f"{len(seed)}seeds" if OmegaConf.is_list(seed) else f"s{seed}"

    OmegaConf.register_new_resolver("seed_name", seed_name, replace=True)


def build_job(cfg: DictConfig) -> Job:
    """Builds and checks everything that a configuration describes; nothing is compiled.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    settings = read_settings(cfg)
    _check_epsilon(cfg)
    learner = MetaLearner(
        family=_build_part(cfg, "task", TaskFamily),
        sampler=_build_part(cfg, "sampler", Sampler),
        model=_build_part(cfg, "model", Model),
        adaptation=_build_part(cfg, "adaptation", Adaptation),
        optimizer=_build_optimizer(cfg),
        meta_batch=settings.meta_batch,
        shots=settings.shots,
        queries=settings.queries,
        task_devices=settings.devices.tasks,
    )
    weights = jax.eval_shape(learner.model.init, jax.random.key(0), learner.family.example_input)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    if count > _MOST_WEIGHTS:
        raise ConfigurationError(f"model: has {count:.3g} weights. At most {_MOST_WEIGHTS:.0e} are allowed")
    asked = settings.evaluation
    try:
        grid = learner.family.grid
        grid = grid.evaluation_grid() if asked.cells is None else grid.with_cells(asked.cells)
    except ValueError as error:
        raise ConfigurationError(f"evaluation.cells={asked.cells}: {_one_line(error)}") from error
    evaluation = Evaluation(learner, grid, asked.steps, asked.draws, asked.queries, asked.seed)
    try:
        alone = replace(learner, task_devices=1)
        jax.eval_shape(lambda: alone.meta_step(alone.init(0)))
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigurationError(f"task, model and adaptation do not fit together: {_one_line(error)}") from error
    return Job(settings, learner, evaluation)


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
            raise ConfigurationError(_first_invalid(error, prefix)) from error

    unknown = sorted(set(map(str, cfg)) - {*Settings.__dataclass_fields__, *_OTHER_KEYS})
    if unknown:
        raise ConfigurationError(f"{unknown[0]}: there is no such key{_suggest_key(unknown[0])}")
    for name in (*Settings.__dataclass_fields__, *_OTHER_KEYS):
        if name not in cfg:
            raise ConfigurationError(f"{name}: is missing")
    for name in ("evaluation", "wandb", "devices", "optimizer", "task", "sampler", "model", "adaptation"):
        if not OmegaConf.is_dict(cfg[name]):
            raise ConfigurationError(f"{name}={cfg[name]}: must be a group of keys")
    own = {name: as_plain(name) for name in Settings.__dataclass_fields__}
    own["evaluation"] = read(EvaluationSettings, own["evaluation"], "evaluation.")
    own["wandb"] = read(WandbSettings, own["wandb"], "wandb.")
    own["devices"] = read(DeviceSettings, own["devices"], "devices.")
    return read(Settings, own, "")


def _build_part(cfg: DictConfig, key: str, protocol: Any) -> Any:
    try:
        part = hydra.utils.instantiate(cfg[key], _convert_="all")
    except InstantiationException as error:
        raise ConfigurationError(_explain_instantiation(error, key)) from error
    if not isinstance(part, protocol):
        name = f"twmaml's {protocol.__name__}" if protocol.__module__.startswith("twmaml") else protocol.__name__
        raise ConfigurationError(f"{key}._target_={cfg[key].get('_target_')}: does not make a {name}")
    return part


def _build_optimizer(cfg: DictConfig) -> optax.GradientTransformation:
    """Optax checks its arguments only when an optimiser is used, so it is used here once, on one weight."""
    rate = cfg.optimizer.get("learning_rate", 1.0)
    if not OmegaConf.is_config(rate) and not (isinstance(rate, float | int) and 0 < rate < float("inf")):
        raise ConfigurationError(f"optimizer.learning_rate={rate}: must be a number above 0, or an optax schedule")
    optimizer = _build_part(cfg, "optimizer", optax.GradientTransformation)
    weight = jnp.zeros(1)
    try:
        jax.eval_shape(lambda: optimizer.update(weight, optimizer.init(weight), weight))
    except (TypeError, ValueError) as error:
        arguments = OmegaConf.to_container(cfg.optimizer, resolve=True)
        raise ConfigurationError(f"optimizer={arguments}: {_one_line(error)}") from error
    return optimizer


def _check_epsilon(cfg: DictConfig) -> None:
    """Refuses a wrong ε whichever sampler is chosen: one that is not used today may be in the next sweep."""
    greedy = {"_target_": "twmaml.samplers.EpsilonGreedy", "epsilon": cfg.epsilon}
    try:
        hydra.utils.instantiate(greedy, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        line = _first_invalid(cause, "") if isinstance(cause, ValidationError) else f"epsilon: {_one_line(error)}"
        raise ConfigurationError(line) from error


def _explain_instantiation(error: InstantiationException, key: str) -> str:
    match = re.search(r"full_key: (\S+)", str(error))
    full_key = match.group(1) if match else key
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return _first_invalid(cause, f"{full_key}.")
    head = str(error).splitlines()[0]
    target = re.search(r"'([^']+)'", head)
    if "locating target" in head and target:
        return f"{full_key}._target_={target.group(1)}: there is nothing of that name to import"
    return f"{full_key}: {_one_line(cause if cause is not None else error)}"


def _first_invalid(error: ValidationError, prefix: str) -> str:
    """One line for the first key that is wrong, as the user would write it."""
    # Alternatives of a union are tried one after the other; the first that has the right type says most.
    details = sorted(error.errors(), key=lambda d: d["type"].endswith("_type") or d["type"] == "dataclass_type")
    detail = details[0]
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    location = [part for part in detail["loc"] if isinstance(part, int) or re.fullmatch(r"[a-z_]\w*", part)]
    if detail["type"] == "value_error":
        names_its_field = re.match(r"[a-z_]+ must", message)
        return f"{prefix}{message}" if names_its_field or not prefix else f"{prefix.rstrip('.')}: {message}"
    key = prefix + ".".join(map(str, location[:1]))
    if detail["type"] == "unexpected_keyword_argument":
        return f"{key}: there is no such key"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    return f"{key}={detail['input']}: {message}"


def explain(error: BaseException) -> str | None:
    """The one line that tells the user what is wrong; None for an error that is not the user's."""
    if isinstance(error, ExpectedError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot write to {error.filename}: {error.strerror}"
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return "a group must be set to one of its choices (--help lists them)"
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return f"not enough memory: {_one_line(error)[:200]}"
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        return _explain_composition(error)
    return None


def _explain_composition(error: BaseException) -> str:
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        return _one_line(error.__cause__)
    text = "\n".join(filter(None, [str(error), str(error.__cause__ or "")]))
    if match := re.search(r"Could not (?:find|load) 'hydra/(launcher|sweeper)/(joblib|submitit|ray|optuna)", text):
        part, engine = match.groups()
        extra = {"submitit": "slurm"}.get(engine, engine)
        return f'hydra/{part}: {engine} is not installed; pip install -e ".[{extra}]"'
    if match := re.search(r"Could not find '([\w/-]+)/([^/']+)'", text):
        group, choice = match.groups()
        available = re.search(r"Available options in '[^']*':\n((?:\t\S+\n?)+)", text)
        options = available.group(1).split() if available else []
        return f"{group}={choice}: must be one of {', '.join(options)}{_suggest(choice, options)}"
    if match := re.search(r"Error merging override ([^\n]+)", text):
        return f"{match.group(1)}: is of another kind than what the key holds"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = next(filter(None, match.groups()))
        return f"{key}: there is no such key{_suggest_key(key)}"
    return _one_line(error)


def _suggest_key(key: str) -> str:
    keys = list(_all_keys(OmegaConf.load(Path(configuration_folder()) / "train.yaml")))
    return f"{_suggest(key, keys)} (--help lists the keys)"


def _all_keys(cfg: Any, prefix: str = "") -> Any:
    for key in cfg:
        if key not in ("defaults", "hydra"):
            yield f"{prefix}{key}"
            if OmegaConf.is_dict(cfg._get_node(key)):
                yield from _all_keys(cfg._get_node(key), f"{prefix}{key}.")


def _suggest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and "HYDRA_FULL_ERROR" not in line]
    return "; ".join(kept) or type(error).__name__


def help_text() -> str:
    """What `--help` shows: the groups with their choices and the run's own keys, a line on each."""
    folder = Path(configuration_folder())
    lines = [
        "twmaml: which tasks should a meta-learner train on?",
        "",
        "  python -m twmaml.train [GROUP=CHOICE ...] [KEY=VALUE ...]",
        "  python -m twmaml.train sampler=importance_delta task=sin3d seed=1",
        "  python -m twmaml.train experiment=maml_sine",
        "  python -m twmaml.train --multirun 'sampler=glob(*)' seed=0,1,2",
        "  python -m twmaml.train experiment=compare_samplers task=sin3d",
        "",
        "Groups (* is the default):",
    ]
    train = folder / "train.yaml"
    defaults = {k: v for d in OmegaConf.load(train).defaults if OmegaConf.is_dict(d) for k, v in d.items()}
    for group in ("task", "sampler", "model", "adaptation", "experiment", "hydra/launcher"):
        lines.append(f"  {group}")
        for path in sorted((folder / group).glob("*.yaml")):
            comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@" not in line]
            mark = "*" if defaults.get(group) == path.stem else " "
            lines.append(f"   {mark}{path.stem:<20} {comments[0][2:] if comments else ''}")
    lines += ["", "Keys, with their defaults:"]
    section = ""
    for line in train.read_text().splitlines():
        match = re.match(r"( *)([a-z_]+):\s*([^#]*?)\s*(?:# (.*))?$", line)
        if not match:
            continue
        indent, name, value, comment = match.groups()
        section = name if not indent else section
        if section in ("defaults", "hydra") or not comment:
            continue
        key = f"{section}.{name}" if indent else name
        lines.append(f"  {key + (f'={value}' if value else ''):<28} {comment or ''}".rstrip())
    lines += [
        "",
        "Every key of a chosen group can be set too: sampler.interpolate=true task.amplitude.cells=20 ...;",
        "`--cfg job` prints the whole configuration, `--hydra-help` tells of Hydra's own options.",
    ]
    return "\n".join(lines)
