"""Checks that the parts of a job keep what their protocols promise. Told by tracing them; nothing is compiled."""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twmaml.adaptation.base import Adaptation
from twmaml.errors import ConfigurationError, innermost, one_line
from twmaml.samplers.additive import Additive
from twmaml.samplers.base import Report, Sampler, View
from twmaml.samplers.weighting import Weighting
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import empty_queue
from twmaml.statistics import LOGGED
from twmaml.tasks.base import TaskFamily


def check_signatures(key: str, part: Any, base: type) -> None:
    """Refuses a part of the user's own whose methods take other arguments than those of the base class.

    Raises:
        ConfigurationError: with the arguments that it must take.
    """
    for name, method in vars(base).items():
        own = getattr(type(part), name, None)
        if name.startswith("_") or not inspect.isfunction(method) or not inspect.isfunction(own):
            continue
        wanted, signature = [*inspect.signature(method).parameters], inspect.signature(own)
        try:
            signature.bind(*wanted)
        except TypeError:
            fits = False
        else:
            fits = not {"queue", "step"} & {*signature.parameters} - {*wanted}  # from before samplers had a view
        if not fits:
            raise ConfigurationError(f"{key}: {type(part).__name__}.{name}{signature} must take ({', '.join(wanted)})")


def check_adaptation(adaptation: Adaptation, family: TaskFamily) -> None:
    """Refuses an adaptation that does not say how many steps it takes, or cannot work with a family.

    Raises:
        ConfigurationError: with what it has instead.
    """
    steps = getattr(adaptation, "steps", None)  # which a base class only announces
    if not isinstance(steps, int) or steps < 0:
        raise ConfigurationError(f"adaptation: steps must be a number of inner steps. Got {steps}")
    if adaptation.same_data and family.on_policy:
        needs = f"{type(adaptation).__name__} needs the same data at each inner step"
        raise ConfigurationError(f"adaptation: {needs}, and the task collects it anew")


def check_sampler(sampler: Sampler, grid: ParameterGrid, tasks: int) -> None:
    """Refuses a sampler whose results have not the form that the loop counts on.

    Args:
        sampler: to look at.
        grid: of the tasks.
        tasks: in a meta-batch.

    Raises:
        ConfigurationError: with what it must return, and what it does.
    """
    _check_rule(sampler, "sampler", grid)
    key = jax.eval_shape(lambda: jax.random.key(0))
    view = jax.eval_shape(lambda: View(empty_queue(grid.size), _state("init", sampler.init(grid)), jnp.int32(0)))
    p = jax.eval_shape(lambda view: sampler.probabilities(grid, view), view)
    _expect("sampler: probabilities", p, (grid.size,), jnp.floating)
    metrics = jax.eval_shape(sampler.metrics, view)
    if not isinstance(metrics, Mapping):
        raise ConfigurationError(f"sampler: metrics must return numbers by name. Got {_form(metrics)}")
    for name, value in metrics.items():
        _expect(f"sampler: the metric {name}", value, (), jnp.number)
    draw = jax.eval_shape(lambda key, view: sampler.draw(key, grid, view, tasks), key, view)
    _expect("sampler: the tasks of a draw", draw.tasks, (tasks, len(grid.axes)), jnp.floating)
    _expect("sampler: the cells of a draw", draw.cells, (tasks,), jnp.integer)
    _expect("sampler: the weights of a draw", draw.weights, (tasks,), jnp.floating)
    report = Report(draw, draw.weights, draw.weights, view.queue)
    _expect("sampler: weigh", jax.eval_shape(sampler.weigh, report, view), (tasks,), jnp.floating)
    after = jax.eval_shape(
        lambda key, report, view: _state("update", sampler.update(key, grid, report, view)), key, report, view
    )
    if jax.tree.structure(after) != jax.tree.structure(view.own):
        raise ConfigurationError(
            "sampler: update must return a state like that of init. "
            f"Got {jax.tree.structure(after)} for {jax.tree.structure(view.own)}"
        )


def _state(method: str, state: Any) -> Any:
    """Passes on a state that a method of a sampler returns; refuses one that no checkpoint can hold."""
    for leaf in jax.tree.leaves(state):
        number = isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int)
        if not number or jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            raise ConfigurationError(f"sampler: {method} must return numbers or arrays of them. Got {_form(leaf)}")
    return state


def _check_rule(sampler: Sampler, key: str, grid: ParameterGrid) -> None:
    """Refuses a sampler, or the proposal that it draws by, that cannot work on a grid."""
    if isinstance(sampler, Weighting):
        check_signatures(f"{key}.proposal", sampler.proposal, Sampler)
        _check_rule(sampler.proposal, f"{key}.proposal", grid)
        return
    if (sampler.interpolate or sampler.continuous_only) and not grid.continuous:
        names = ", ".join(name for name, axis in grid.axes.items() if not axis.continuous)
        unusable = f"{key}: {type(sampler).__name__} cannot be used"
        what = f"{key}.interpolate=True" if sampler.interpolate else unusable
        raise ConfigurationError(f"{what}: there is nothing between the categories of {names}")
    if isinstance(sampler, Additive) and (signal := getattr(sampler, "signal", None)) not in ("losses", "deltas"):
        raise ConfigurationError(f"{key}: the attribute signal must be losses or deltas. Got {signal}")


_TAKEN = {
    "loss",
    "loss_std",
    "tasks_adapted",
    "tasks_trained",
    "diverged",
    *(f"{statistic.column}" for statistic in LOGGED),
}
"""Names of other columns of metrics.csv, after `train/` or a split."""


def check_outcome(outcome: Any, family: TaskFamily) -> None:
    """Refuses a task family whose outcomes, of which this is the form, are no single numbers.

    Raises:
        ConfigurationError: with what it must return, and what it does.
    """
    _expect("task: the loss of an outcome", outcome.loss, (), jnp.floating)
    _expect("task: the score of an outcome", outcome.score, (), jnp.floating)
    for name, value in outcome.metrics.items():
        if name in _TAKEN:
            raise ConfigurationError(f"task: a metric must not be called {name}, which is something else")
        _expect(f"task: the metric {name} of an outcome", value, (), jnp.number)
    for metric in family.metrics:
        if not re.fullmatch(r"[a-z]\w*", metric.key):  # part of the names of columns and arrays
            raise ConfigurationError(f"task: the key of a metric must be one word of small letters. Got {metric.key}")
        if metric.key not in outcome.metrics:
            raise ConfigurationError(f"task: an outcome must have the family's metric {metric.key}")


def check_pictures(pictures: Any) -> None:
    """Refuses pictures, of which these are the forms, that could not be saved.

    Raises:
        ConfigurationError: with what they must be.
    """
    if not isinstance(pictures, Mapping):
        raise ConfigurationError(f"task: picture must return arrays by name. Got {_form(pictures)}")
    if "tasks" in pictures:
        raise ConfigurationError("task: picture must not return tasks, as pictures.npz has others of that name")


def check_step(before: Any, after: Any) -> None:
    """Refuses parts with which a meta-step makes something else of the state than the next one takes.

    Raises:
        ConfigurationError: with the first number of which it changes the type or the shape.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(before)
    for (path, first), then in zip(leaves, jax.tree.leaves(after), strict=True):
        if (first.shape, first.dtype) != (then.shape, then.dtype):
            place = jax.tree_util.keystr(path)[1:]
            causes = {"sampler": "sampler", "opt_state": "optimizer"}
            cause = causes.get(place.partition("[")[0].partition(".")[0], "task, model and adaptation")
            raise ConfigurationError(
                f"{cause}: a meta-step must leave every number's type as it is; of {place} it makes {_form(first)} "
                f"into {_form(then)}"
            )


@contextmanager
def attributing_errors(parts: Mapping[str, Any]) -> Iterator[None]:
    """Attributes an error raised during tracing to the part, and the user's line, that caused it.

    Args:
        parts: of the job, by key.

    Raises:
        ConfigurationError: with the key and the reason.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        line = _whose(error, parts)
        if line is not None:
            raise ConfigurationError(line) from error
        if isinstance(error, ValueError | TypeError | OverflowError):
            raise ConfigurationError(f"task, model and adaptation do not fit together: {one_line(error)}") from error
        raise


def _whose(error: Exception, parts: Mapping[str, Any]) -> str | None:
    """A line on an error that came through code of the user's own parts; None if it did not."""
    packages = {key: type(part).__module__.partition(".")[0] for key, part in parts.items()}
    of_users: dict[str, list[str]] = {}
    for key, package in packages.items():
        if package != "twmaml":
            of_users.setdefault(package, []).append(key)
    place = innermost(error, lambda package: package in of_users)
    if place is None:
        return None
    package, line = place
    reason = one_line(error).partition(";")[0]  # JAX goes on about tracing
    return (
        f"{', '.join(of_users[package])}: {type(error).__name__}: {reason} ({line}); "
        "the variable HYDRA_FULL_ERROR=1 shows the whole traceback"
    )


def _expect(what: str, given: Any, shape: tuple[int, ...], kind: Any) -> None:
    if not isinstance(given, jax.ShapeDtypeStruct) or given.shape != shape or not jnp.issubdtype(given.dtype, kind):
        number = {jnp.floating: "floats", jnp.integer: "integers"}.get(kind, "numbers")
        wanted = f"{number} of shape {shape}" if shape else "one number"
        raise ConfigurationError(f"{what} must be {wanted}. Got {_form(given)}")


def _form(given: Any) -> str:
    """Type and shape as JAX writes them."""
    if not isinstance(given, jax.ShapeDtypeStruct | jax.Array):
        return f"a {type(given).__name__}"
    return f"{given.dtype}[{','.join(map(str, given.shape))}]"
