"""From a composed configuration to its objects, and from a user's mistake to one clear line."""

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import optax
from hydra.errors import InstantiationException
from jaxtyping import Array, Float, PyTree
from omegaconf import DictConfig, OmegaConf

from twmaml.adaptation.base import Adaptation
from twmaml.configuration.explain import explain_instantiation
from twmaml.configuration.part_checks import (
    attributing_errors,
    check_outcome,
    check_sampler,
    check_signatures,
    check_step,
)
from twmaml.configuration.settings import EvaluationSettings, Settings, SplitSettings
from twmaml.errors import ConfigurationError, one_line
from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.learner import MetaLearner
from twmaml.models.base import Model
from twmaml.samplers.base import Sampler
from twmaml.space.grid import ParameterGrid
from twmaml.tasks.base import TaskFamily
from twmaml.training.memory import Need, least_bytes

_MOST_WEIGHTS = 1e9  # with gradient and optimiser state 16 GB

_MOST_TASKS = 1_000_000  # of an evaluation; they take minutes


@plain_dataclass(frozen=True)
class Parts:
    """The parts of a run, but for the seed."""

    learner: MetaLearner
    evaluations: Mapping[str, Evaluation]
    """By the name of the split."""
    data: Mapping[str, PyTree[Array]]
    """Arrays of the families by the name of the split; those of training under `train`."""
    figures: Mapping[str, Callable[..., Any]]
    """Figures of the user's own by name."""
    needs: Sequence[Need]
    optimizer: DictConfig

    @property
    def evaluation(self) -> Evaluation:
        """The split `eval`."""
        return self.evaluations["eval"]

    def with_numbers(self, numbers: Mapping[str, Float[Array, ""]]) -> "Parts":
        """The same parts around arrays, which may be arguments of a program; nothing is checked.

        Args:
            numbers: by key, as on the command line: `adaptation.learning_rate`.

        Raises:
            ValueError: for a key that does not hold a real number of a part: it needs a program of its own.
        """
        learner = self.learner
        arguments = {key.partition(".")[2]: n for key, n in numbers.items() if key.startswith("optimizer.")}
        if arguments:
            factory = hydra.utils.instantiate(self.optimizer, _partial_=True, _convert_="all")
            learner = replace(learner, optimizer=factory(**arguments))
        for key, number in numbers.items():
            part, _, path = key.partition(".")
            if part in ("sampler", "model", "adaptation"):
                learner = replace(learner, **{part: _with_number(getattr(learner, part), path, number, key)})
            elif part != "optimizer":
                raise ValueError(f"{key}: is no number of a sampler, a model, an adaptation or an optimizer")
        evaluations = {
            name: replace(each, learner=replace(learner, family=each.learner.family))
            for name, each in self.evaluations.items()
        }
        return replace(self, learner=learner, evaluations=evaluations)


def _with_number(part: Any, path: str, number: Any, key: str) -> Any:
    name, _, rest = path.partition(".")
    value = getattr(part, name, None)
    if not rest and type(value) is not float:
        raise ValueError(f"{key}: {value!r} is not a real number")
    changed = copy.copy(part)
    object.__setattr__(changed, name, _with_number(value, rest, number, key) if rest else number)
    return changed


def build_parts(cfg: DictConfig, settings: Settings) -> Parts:
    """Builds and checks everything that a configuration describes; nothing is compiled.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    family = build_part(cfg, "task", TaskFamily)
    learner = MetaLearner(
        family=family,
        sampler=build_part(cfg, "sampler", Sampler),
        model=build_model(cfg, family),
        adaptation=build_part(cfg, "adaptation", Adaptation),
        optimizer=_build_optimizer(cfg),
        meta_batch=settings.meta_batch,
        shots=settings.shots,
        queries=settings.queries,
        task_devices=settings.devices.tasks,
    )
    parts = _check_parts(learner)
    data = {"train": _data_of(family, cfg.task)}
    evaluations = {}
    for name, split in settings.evaluation.splits.items():
        of_split = merge_task(OmegaConf.to_container(cfg.task), split.task)
        own = _build_split(of_split, name) if split.task else family
        data[name] = _data_of(own, of_split) if split.task else data["train"]
        evaluations[name] = _build_evaluation(replace(learner, family=own), name, split, settings.evaluation, family)
    figures = {name: _build_figure(cfg, name) for name in cfg.figures}
    with attributing_errors(parts):
        weights = jax.eval_shape(learner.model.init, jax.random.key(0), family.example_input)
        meta_params = jax.eval_shape(
            lambda: learner.adaptation.init(jax.random.key(0), learner.model, family.example_input)
        )
    _check_optimizer(cfg, learner, meta_params)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    if count > _MOST_WEIGHTS:
        raise ConfigurationError(f"model: has {count:.3g} weights. At most {_MOST_WEIGHTS:.0e} are allowed")
    with attributing_errors(parts):
        needs = _check_programs(learner, evaluations, data, f"model (of {count:.3g} weights)")
    return Parts(learner, evaluations, data, figures, needs, cfg.optimizer)


def build_model(cfg: DictConfig, family: TaskFamily) -> Model:
    """Builds the network; `model.outputs: null` takes what the family needs.

    Raises:
        ConfigurationError: if it is none, or has another number of outputs.
    """
    if "outputs" in cfg.model and cfg.model.outputs is None:
        cfg = OmegaConf.merge(cfg, {"model": {"outputs": family.outputs}})  # type: ignore[assignment]
    model = build_part(cfg, "model", Model)
    if cfg.model.get("outputs", family.outputs) != family.outputs:
        raise ConfigurationError(
            f"model.outputs={cfg.model.outputs}: must be {family.outputs}, which the task needs, or null for that"
        )
    return model


def _check_parts(learner: MetaLearner) -> dict[str, Any]:
    """The parts by key, each of which keeps what its base class promises."""
    parts = {
        "task": learner.family,
        "sampler": learner.sampler,
        "model": learner.model,
        "adaptation": learner.adaptation,
        "optimizer": learner.optimizer,
    }
    for key, base in (("task", TaskFamily), ("sampler", Sampler), ("adaptation", Adaptation)):
        check_signatures(key, parts[key], base)
    with attributing_errors(parts):
        check_sampler(learner.sampler, learner.family.grid, learner.meta_batch)
    return parts


_loaded: dict[str, Any] = {}


def _data_of(family: TaskFamily, task: Any) -> Any:
    """The arrays of a family, loaded once a process for all jobs that have the same."""
    key = json.dumps(OmegaConf.to_container(task) if OmegaConf.is_config(task) else task, sort_keys=True, default=str)
    if key not in _loaded:
        _loaded[key] = family.data()
    return _loaded[key]


def merge_task(task: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a split: the training one with changes; a value with `_target_` replaces what stands there."""
    merged = dict(task)
    for key, value in changes.items():
        there = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(there, Mapping) and "_target_" not in value
        merged[key] = merge_task(there, value) if nested else value
    return merged


def _build_split(task: Mapping[str, Any], name: str) -> TaskFamily:
    """The family of a split."""
    key = f"evaluation.splits.{name}.task"
    try:
        return build_part(OmegaConf.create({"task": task}), "task", TaskFamily)
    except ConfigurationError as error:
        raise ConfigurationError(re.sub(r"^task", key, str(error))) from error


def _build_evaluation(
    learner: MetaLearner, name: str, split: SplitSettings, asked: EvaluationSettings, training: TaskFamily
) -> Evaluation:
    """A split, judged as `evaluation` says where it says nothing of its own."""
    grid = learner.family.grid
    agree = _ranges(grid) == _ranges(training.grid)
    cells = asked.cells if split.cells is None else split.cells
    prefix = "evaluation" if split.cells is None else f"evaluation.splits.{name}"
    try:
        grid = grid.evaluation_grid() if cells is None else grid.with_cells(cells)
    except ValueError as error:
        key = "task: evaluation_cells of the axes" if cells is None else f"{prefix}.cells={cells}"
        raise ConfigurationError(f"{key}: {one_line(error)}") from error
    draws = asked.draws if split.draws is None else split.draws
    if grid.size * draws > _MOST_TASKS:
        raise ConfigurationError(
            f"evaluation.cells={[*grid.shape]} evaluation.draws={draws}: make {grid.size * draws} evaluation tasks. "
            f"At most {_MOST_TASKS} are allowed"
        )
    return Evaluation(
        learner=learner,
        grid=grid,
        steps=asked.steps,
        draws=draws,
        queries=asked.queries if split.queries is None else split.queries,
        seed=asked.seed if split.seed is None else split.seed,
        queue_grid=training.grid if agree else None,
    )


def _ranges(grid: ParameterGrid) -> dict[str, Any]:
    """The axes without what only evaluation asks for."""
    return {name: axis.with_cells(axis.cells) for name, axis in grid.axes.items()}


def _build_figure(cfg: DictConfig, name: str) -> Callable[..., Any]:
    """A figure of the user's own: `_target_` is a function of the data of a run."""
    if not OmegaConf.is_dict(cfg.figures[name]) or "_target_" not in cfg.figures[name]:
        raise ConfigurationError(f"figures.{name}={cfg.figures[name]}: must have a _target_, a function of the data")
    try:
        return hydra.utils.instantiate(cfg.figures[name], _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise ConfigurationError(explain_instantiation(error, f"figures.{name}")) from error


def _check_programs(
    learner: MetaLearner, evaluations: Mapping[str, Evaluation], data: Mapping[str, Any], network: str
) -> list[Need]:
    """Traces what will be compiled: the form of its results, and the memory that it takes at least."""
    alone = replace(learner, task_devices=1)
    state = jax.eval_shape(lambda: alone.init(0))
    task = jnp.zeros(len(learner.family.grid.axes))

    def judge(meta_params: Any, key: Any, step: Any) -> Any:
        return alone.adapt_and_judge(meta_params, key, task, data["train"], step)[1]

    check_outcome(jax.eval_shape(judge, state.meta_params, state.key, state.step), learner.family)
    training, (after, *_) = jax.make_jaxpr(alone.meta_step, return_shape=True)(state, data["train"])
    check_step(state, after)
    batch = f"meta_batch={learner.meta_batch} shots={learner.shots} queries={learner.queries}"
    inner = f"adaptation.steps={learner.adaptation.steps} task.*.cells={[*learner.family.grid.shape]}"
    needs = [Need("training", least_bytes(training), f"{batch} {inner} {network}")]
    for name, evaluation in evaluations.items():
        tasks = jax.eval_shape(evaluation.tasks)
        judging = jax.make_jaxpr(evaluation.results)(state.meta_params, tasks, data[name])
        cells = f"evaluation.cells={[*evaluation.grid.shape]} evaluation.draws={evaluation.draws}"
        of_data = f"evaluation.queries={evaluation.queries} evaluation.steps={evaluation.steps} shots={learner.shots}"
        needs.append(Need("evaluating", least_bytes(judging), f"{cells} {of_data} {network}"))
    return needs


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


def refuse_foreign(part: Any, trusted: tuple[str, ...]) -> None:
    """Refuses a configuration that would run other code than it may."""
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else []:
        refuse_foreign(value, trusted)
    target = part.get("_target_") if isinstance(part, dict) else None
    if target is None:
        return
    # A trusted module may have imported others: what counts is also where the thing itself is defined.
    if not str(target).startswith(trusted) or not f"{hydra.utils.get_object(str(target)).__module__}.".startswith(
        trusted
    ):
        raise ConfigurationError(f"{target}: is not twmaml's own; load(folder, trust=[MODULE]) runs it all the same")


def _build_optimizer(cfg: DictConfig) -> optax.GradientTransformation:
    rate = cfg.optimizer.get("learning_rate", 1.0)
    if not OmegaConf.is_config(rate) and not (isinstance(rate, float | int) and 0 < rate < 3.4e38):
        raise ConfigurationError(
            f"optimizer.learning_rate={rate}: must be a number above 0 and below 3.4e38, or an optax schedule"
        )
    return build_part(cfg, "optimizer", optax.GradientTransformation)


def _check_optimizer(cfg: DictConfig, learner: MetaLearner, meta_params: Any) -> None:
    """Optax checks its arguments only when an optimiser is used, so it is used here once."""
    optimizer = learner.optimizer

    def use(meta_params: Any) -> Any:
        return optimizer.update(meta_params, optimizer.init(meta_params), meta_params)

    try:
        jax.eval_shape(use, meta_params)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        arguments = OmegaConf.to_container(cfg.optimizer, resolve=True)
        raise ConfigurationError(f"optimizer={arguments}: {one_line(error)}") from error
