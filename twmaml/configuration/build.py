"""From a composed configuration to its objects, and from a user's mistake to one clear line."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import optax
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from twmaml.adaptation.base import Adaptation
from twmaml.configuration.explain import explain_instantiation
from twmaml.configuration.instantiation import build_model, build_part, check_kind
from twmaml.configuration.numbers import NUMBERED, renumber
from twmaml.configuration.part_checks import (
    attributing_errors,
    check_adaptation,
    check_outcome,
    check_pictures,
    check_sampler,
    check_signatures,
    check_step,
)
from twmaml.configuration.settings import Settings
from twmaml.configuration.splits import build_splits, fingerprint
from twmaml.errors import ConfigurationError, one_line
from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.learner import MetaLearner
from twmaml.models.base import Model
from twmaml.samplers.base import Sampler
from twmaml.tasks.base import TaskFamily
from twmaml.training.memory import Need, least_bytes
from twmaml.training.parts import Parts

_MOST_WEIGHTS = 1e9  # with gradient and optimiser state 16 GB


KINDS: Mapping[str, Any] = {
    "task": TaskFamily,
    "sampler": Sampler,
    "model": Model,
    "adaptation": Adaptation,
    "optimizer": optax.GradientTransformation,
}
"""The parts of a learner by key, and what each has to be."""


def build_parts(cfg: DictConfig, settings: Settings, given: Mapping[str, Any] | None = None) -> Parts:
    """Builds and checks everything that a configuration describes; nothing is compiled.

    Args:
        cfg: the configuration.
        settings: read from it.
        given: parts by key that are there already, whatever the configuration says of them.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    given = given or {}
    for key, part in given.items():
        check_kind(part, key, KINDS[key])

    def part(key: str) -> Any:
        if key in given:
            return given[key]
        return _build_optimizer(cfg) if key == "optimizer" else build_part(cfg, key, KINDS[key])

    family = part("task")
    learner = MetaLearner(
        family=family,
        sampler=part("sampler"),
        model=given["model"] if "model" in given else build_model(cfg, family),
        adaptation=part("adaptation"),
        optimizer=part("optimizer"),
        meta_batch=settings.meta_batch,
        shots=settings.shots,
        queries=settings.queries,
        task_devices=settings.devices.tasks,
        tasks_at_once=settings.devices.tasks_at_once,
    )
    parts = _check_parts(learner)
    plain_task: Any = None if "task" in given else OmegaConf.to_container(cfg.task)
    evaluations, data = build_splits(learner, plain_task, settings.evaluation)
    figures = {name: _build_figure(cfg, name) for name in cfg.figures}
    with attributing_errors(parts):
        meta_params = jax.eval_shape(
            lambda: learner.adaptation.init(jax.random.key(0), learner.model, family.example_input)
        )
    _check_optimizer(cfg, learner, meta_params)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(meta_params))
    if count > _MOST_WEIGHTS:
        raise ConfigurationError(f"model: has {count:.3g} weights. At most {_MOST_WEIGHTS:.0e} are allowed")
    with attributing_errors(parts):
        needs = _check_programs(learner, evaluations, data, f"model (of {count:.3g} weights)")
    built = [key for key in NUMBERED if key not in given]
    nodes: dict[str, Any] = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in built}
    if "outputs" in nodes.get("model", {}):
        nodes["model"]["outputs"] = family.outputs
    return Parts(learner, evaluations, data, fingerprint(data), figures, needs, nodes, renumber)


def _check_parts(learner: MetaLearner) -> dict[str, Any]:
    """The parts by key, each of which keeps what its base class promises."""
    parts = {key: learner.family if key == "task" else getattr(learner, key) for key in KINDS}
    for key in ("task", "sampler", "adaptation"):
        check_signatures(key, parts[key], KINDS[key])
    check_adaptation(learner.adaptation, learner.family)
    with attributing_errors(parts):
        check_sampler(learner.sampler, learner.family.grid, learner.meta_batch)
    return parts


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

    def judge(meta_params: Any, key: Any, step: Any, data: Any) -> Any:
        return alone.adapt_and_judge(meta_params, key, task, data, step)[1]

    check_outcome(jax.eval_shape(judge, state.meta_params, state.key, state.step, data["train"]), learner.family)
    training, (after, *_) = jax.make_jaxpr(alone.meta_step, return_shape=True)(state, data["train"])
    check_step(state, after)
    batch = f"meta_batch={learner.meta_batch} shots={learner.shots} queries={learner.queries}"
    inner = f"adaptation.steps={learner.adaptation.steps} task.*.cells={[*learner.family.grid.shape]}"
    needs = [Need("training", least_bytes(training), f"{batch} {inner} {network}")]
    for name, evaluation in evaluations.items():
        tasks = jax.eval_shape(evaluation.tasks)
        judging = jax.make_jaxpr(evaluation.results)(state.meta_params, tasks, data[name])
        cells = f"evaluation.cells={[*evaluation.grid.shape]} evaluation.draws={evaluation.draws}"
        shots = evaluation.learner.shots
        of_data = f"evaluation.queries={evaluation.queries} evaluation.steps={evaluation.steps} shots={shots}"
        check_pictures(jax.eval_shape(evaluation.pictures, state.meta_params, data[name])[1])
        needs.append(Need("evaluating", least_bytes(judging), f"{cells} {of_data} {network}"))
    return needs


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
