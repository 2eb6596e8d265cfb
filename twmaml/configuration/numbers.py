"""Real numbers of parts, which may be arguments of a program: jobs that differ in them only share it."""

import copy
from collections.abc import Mapping, Set
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import numpy as np

from twmaml.meta_learning.chunk import train_chunk
from twmaml.meta_learning.learner import MetaLearner
from twmaml.training.parts import Parts
from twmaml.types import Number

NUMBERED = ("sampler", "model", "adaptation", "optimizer")
"""The parts whose numbers may be arguments."""


def numbers_in(config: Mapping[str, Any]) -> dict[str, float]:
    """The real numbers of those parts that a configuration has, by key: `adaptation.learning_rate`."""
    leaves = [leaf for part in NUMBERED if part in config for leaf in _leaves(config[part], part)]
    return {key: value for key, value in leaves if type(value) is float}


def without_numbers(config: Mapping[str, Any], keys: Set[str]) -> dict[str, Any]:
    """A configuration with nothing under some keys."""

    def blank(node: Any, key: str) -> Any:
        if key in keys:
            return None
        return {name: blank(value, f"{key}.{name}") for name, value in node.items()} if _is_node(node) else node

    return {name: blank(value, name) for name, value in config.items()}


def renumber(nodes: Mapping[str, Any], learner: MetaLearner, numbers: Mapping[str, Number]) -> MetaLearner:
    """A learner with other numbers in its parts.

    Args:
        nodes: the configurations of its parts.
        learner: built from them.
        numbers: by key.

    Raises:
        ValueError: for a key that does not hold a real number of a part.
    """
    unknown = [key for key in numbers if key not in numbers_in(nodes)]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: is no real number of {', '.join(NUMBERED)}")
    parts = {part: _renumber(getattr(learner, part), nodes[part], own) for part, own in _nest(numbers).items()}
    return replace(learner, **parts)


def may_be_arguments(parts: Parts, others: Mapping[str, float]) -> set[str]:
    """The keys of those numbers around which the parts can be traced, and of which they keep nothing else.

    Args:
        parts: of one job.
        others: by key, a number that another job has there.
    """
    kept = {key: other for key, other in others.items() if _keeps_nothing_else(parts, key, other)}
    if not kept or _can_be_traced(parts, kept):
        return {*kept}
    together: dict[str, float] = {}  # as some may be traced only where others are plain numbers
    for key, other in kept.items():
        if _can_be_traced(parts, {**together, key: other}):
            together[key] = other
    return {*together}


def _leaves(node: Any, key: str) -> list[tuple[str, Any]]:
    if not _is_node(node):
        return [(key, node)]
    return [leaf for name, value in node.items() for leaf in _leaves(value, f"{key}.{name}")]


def _is_node(node: Any) -> bool:
    return isinstance(node, Mapping)


def _nest(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings in mappings instead of keys with dots."""
    nested: dict[str, Any] = {}
    for key, number in numbers.items():
        *path, name = key.split(".")
        inner = nested
        for each in path:
            inner = inner.setdefault(each, {})
        inner[name] = number
    return nested


def _renumber(built: Any, node: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
    """A copy of an object around other numbers; what has none of them as attributes, a schedule say, is made anew."""
    if not all(hasattr(built, name) for name in numbers):
        return hydra.utils.instantiate(node, _convert_="all", **numbers)
    changed = copy.copy(built)
    for name, number in numbers.items():
        inner = _renumber(getattr(built, name), node[name], number) if _is_node(number) else number
        object.__setattr__(changed, name, inner)  # past the checks of its class, which a job's own part has passed
    return changed


def _keeps_nothing_else(parts: Parts, key: str, other: float) -> bool:
    """Whether a part that is built with another number differs in that number only, and in nothing made of it."""
    ((part, numbers),) = _nest({key: other}).items()
    try:
        anew = hydra.utils.instantiate(parts.nodes[part], _convert_="all", **numbers)
        return _same(_renumber(getattr(parts.learner, part), parts.nodes[part], numbers), anew)
    except Exception:  # of a user's own part
        return False


def _can_be_traced(parts: Parts, numbers: Mapping[str, float]) -> bool:
    """Whether programs can have the numbers as arguments, and leave a state of the same form."""

    def programs(numbers: Mapping[str, Any]) -> Any:
        changed = parts.with_numbers(numbers)
        state = changed.learner.init(0)
        results = {
            name: each.results(state.meta_params, each.tasks(), parts.data[name])
            for name, each in changed.evaluations.items()
        }
        pictures = changed.evaluation.pictures(state.meta_params, parts.data["eval"])
        return state, *train_chunk(changed.learner, state, jnp.int32(1), parts.data["train"]), results, pictures

    arguments = {key: jnp.float32(number) for key, number in numbers.items()}
    try:
        return _form(jax.eval_shape(programs, arguments)) == _form(jax.eval_shape(partial(programs, numbers)))
    except Exception:  # a part decides by the number itself, say
        return False


def _form(results: Any) -> Any:
    leaves, structure = jax.tree.flatten(results)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _same(one: Any, other: Any) -> bool:  # noqa: PLR0911  one for each kind of thing
    """Whether two objects that were built alike are equal; functions are if they close over equal things."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, FunctionType):
        cells = [[cell.cell_contents for cell in each.__closure__ or ()] for each in (one, other)]
        return one.__code__ is other.__code__ and _same(one.__defaults__, other.__defaults__) and _same(*cells)
    if isinstance(one, partial):
        return all(_same(getattr(one, name), getattr(other, name)) for name in ("func", "args", "keywords"))
    if isinstance(one, np.ndarray | jax.Array):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return _same(vars(one), vars(other)) if hasattr(one, "__dict__") else bool(one == other)
