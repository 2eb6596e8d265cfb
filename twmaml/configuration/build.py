"""From a composed configuration to its objects, and from a user's mistake to one clear line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import optax
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from twmaml.adaptation.base import Adaptation
from twmaml.configuration.explain import explain_instantiation, first_invalid
from twmaml.configuration.part_checks import check_outcome, check_sampler, check_step, telling_where
from twmaml.configuration.settings import Settings
from twmaml.errors import ConfigurationError, one_line
from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.learner import MetaLearner
from twmaml.models.base import Model
from twmaml.samplers.base import Sampler
from twmaml.tasks.base import TaskFamily
from twmaml.training.memory import Need, least_bytes
from twmaml.types import Params

_MOST_WEIGHTS = 1e9  # with gradient and optimiser state 16 GB

_MOST_TASKS = 1_000_000  # of an evaluation; they take minutes


@plain_dataclass(frozen=True)
class Parts:
    """Whatever a configuration describes but for the seed, built."""

    learner: MetaLearner
    evaluation: Evaluation
    needs: Sequence[Need]


def build_parts(cfg: DictConfig, settings: Settings) -> Parts:
    """Builds and checks everything that a configuration describes; nothing is compiled.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
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
    return Parts(learner, evaluation, needs)


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
    greedy = {"_target_": "twmaml.samplers.epsilon_greedy.EpsilonGreedy", "epsilon": cfg.epsilon}
    try:
        hydra.utils.instantiate(greedy, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        line = first_invalid(cause, "") if isinstance(cause, ValidationError) else f"epsilon: {one_line(error)}"
        raise ConfigurationError(line) from error
