"""The families that runs are judged on: the training one, and versions of it."""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from omegaconf import OmegaConf

from twmaml.configuration.instantiation import build_part
from twmaml.configuration.settings import EvaluationSettings, SplitSettings
from twmaml.errors import ConfigurationError, one_line
from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.learner import MetaLearner
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import VALIDATION
from twmaml.tasks.base import TaskFamily

_MOST_TASKS = 1_000_000  # of an evaluation; they take minutes


def build_splits(
    learner: MetaLearner, task: Mapping[str, Any] | None, asked: EvaluationSettings
) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """The evaluation of every split, and the arrays of its family; those of training under `train`.

    Args:
        learner: with the training family.
        task: the configuration of that family; None of one that has none, of which there are no other versions.
        asked: the keys under `evaluation`.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    data = {"train": learner.family.data() if task is None else _data_of(learner.family, task)}
    counts = f"shots={learner.shots} queries={learner.queries}"
    _check_data(learner.family, data["train"], learner.shots, learner.queries, counts)
    evaluations = {}
    for name, split in asked.splits.items():
        family, own = learner.family, task
        if split.task:
            if task is None:
                raise ConfigurationError(f"evaluation.splits.{name}.task: cannot change a task that is an object")
            own = merge_task(task, split.task)
            family = _build_family(own, name)
        try:
            data[name] = _data_of(family, own) if split.task and own is not None else data["train"]
            own_learner = replace(learner, family=family, shots=split.shots or learner.shots)
            evaluation = _build_evaluation(own_learner, name, split, asked, learner.family)
            shots = "shots" if split.shots is None else f"evaluation.splits.{name}.shots"
            prefix = "evaluation" if split.queries is None else f"evaluation.splits.{name}"
            counts = f"{shots}={own_learner.shots} {prefix}.queries={evaluation.queries}"
            _check_data(family, data[name], own_learner.shots, evaluation.queries, counts)
        except ConfigurationError as error:
            raise ConfigurationError(f"evaluation.splits.{name}: {error}" if split.task else str(error)) from error
        evaluations[name] = replace(evaluation, data_note=family.relate_data(data[name], data["train"]))
    return evaluations, data


def _check_data(family: TaskFamily, data: Any, shots: int, queries: int, keys: str) -> None:
    try:
        family.check_data(data, shots, queries)
    except ValueError as error:
        raise ConfigurationError(f"{keys}: {one_line(error)}") from error


def fingerprint(data: Mapping[str, Any]) -> int:
    """A checksum of all arrays of some families, which are equal only if it is."""
    checksum = 0
    for arrays in data.values():
        for leaf in jax.tree.leaves(arrays):
            checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
    return checksum


_loaded: dict[str, Any] = {}


def _data_of(family: TaskFamily, task: Mapping[str, Any]) -> Any:
    """The arrays of a family, loaded once a process for all jobs that have the same."""
    key = json.dumps(task, sort_keys=True, default=str)
    if key not in _loaded:
        _loaded[key] = family.data()
    return _loaded[key]


def merge_task(task: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a split: the training one with changes; a value with `_target_` replaces what stands there."""
    merged = dict(task)
    for key, value in changes.items():
        there = merged.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping) and "_target_" not in value:
            value = merge_task(there, value)
        merged[key] = value
    return merged


def _build_family(task: Mapping[str, Any], name: str) -> TaskFamily:
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
        inside_cells=asked.inside_cells if split.inside_cells is None else split.inside_cells,
        queries=asked.queries if split.queries is None else split.queries,
        seed=_default_seed(name, asked.seed) if split.seed is None else split.seed,
        queue_grid=training.grid if agree else None,
    )


def _default_seed(name: str, seed: int) -> int:
    """The seed of a split that says none: evaluation's, but for `validation` the next one.

    Otherwise a run would be chosen by the very data that it is judged on where the two families are the same.
    """
    return (seed + 1) % 2**32 if name == VALIDATION else seed


def _ranges(grid: ParameterGrid) -> dict[str, Any]:
    """The axes without what only evaluation asks for."""
    return {name: axis.with_cells(axis.cells) for name, axis in grid.axes.items()}
