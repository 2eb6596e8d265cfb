"""Parts of the user's own that do not keep their protocol: one line says which, what was wanted and what came."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.configuration.test_build import build, mistake
from twmaml.adaptation.base import Adaptation
from twmaml.configuration.part_checks import attributing_errors
from twmaml.samplers.additive import Additive
from twmaml.samplers.base import Draw, Sampler
from twmaml.samplers.uniform import Uniform
from twmaml.tasks.sinusoid import Sinusoid
from twmaml.types import Metric, Outcome

CELLS = 49 * 36


@dataclass(frozen=True)
class FaultySampler(Sampler):
    fault: str = ""

    def probabilities(self, grid, view: Any):
        p = jnp.full(grid.size, 1 / grid.size)
        faulty: dict[str, Any] = {
            "a column": lambda: p[:, None],
            "one cell less": lambda: p[1:],
            "integers": lambda: jnp.ones(p.size, int),
            "nothing": lambda: None,
            "a typing error": lambda: view.queue.loses,
            "python's if": lambda: p if view.step > 0 else 2 * p,
        }
        return faulty.get(self.fault, lambda: p)()

    def metrics(self, view) -> Any:
        match self.fault:
            case "a metric of many numbers":
                return {"temperature": jnp.ones(3)}
            case "a list of metrics":
                return [view.step]
            case "an error in metrics":
                raise KeyError("temperature")
        return {}

    def draw(self, key, grid, view, n):
        tasks, cells, weights = super().draw(key, grid, view, n)
        return Draw(tasks, cells, jnp.mean(weights) if self.fault == "one weight" else weights)

    def weigh(self, report, view):
        return report.losses[:3] if self.fault == "three weights of a batch" else super().weigh(report, view)

    def init(self, grid) -> Any:
        states = {"a shorter state": jnp.zeros(3), "a key": jax.random.key(0), "a word": {"name": "oldest"}}
        return states.get(self.fault, super().init(grid))

    def update(self, key, grid, report, view):
        match self.fault:
            case "a state out of nothing":
                return report.scores
            case "a shorter state":
                return view.own[:2]
        return super().update(key, grid, report, view)


@dataclass(frozen=True)
class AdditiveSampler(Additive):
    """Announces no signal, or one that the queue does not have."""

    def shares(self, part, whole, view):
        return part.cells / whole.cells


@dataclass(frozen=True)
class OldSampler(Sampler):
    """As samplers were written before they had a view."""

    def probabilities(self, queue, step):  # pyright: ignore[reportIncompatibleMethodOverride]
        return jnp.full(queue.losses.size, 1 / queue.losses.size)


@dataclass(frozen=True)
class FaultyTask(Sinusoid):
    fault: str = ""

    def outcome(self, predict, examples):
        loss = super().outcome(predict, examples).loss
        score = loss[None] if self.fault == "a score in brackets" else loss
        if self.fault == "a metric of a taken name":
            return Outcome(loss, loss, {"loss": loss})
        metrics = (
            {"errors": (predict(examples.inputs) - examples.targets)} if self.fault == "a metric an example" else {}
        )
        return Outcome(loss, score, metrics)

    def target(self, parameters, x):
        return parameters["height" if self.fault == "a wrong name" else "amplitude"] * x


def counting_in_floats(**_):
    update: Any = lambda updates, count, params=None: (updates, count + 1.0)  # noqa: E731
    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def of_shape(shape):
    return f" must be floats of shape ({CELLS},). Got {shape}"


@pytest.mark.parametrize(
    ("part", "fault", "line"),
    [
        ("sampler", "a column", f"probabilities{of_shape(f'float32[{CELLS},1]')}"),
        ("sampler", "one cell less", f"probabilities{of_shape(f'float32[{CELLS - 1}]')}"),
        ("sampler", "integers", f"probabilities{of_shape(f'int32[{CELLS}]')}"),
        ("sampler", "nothing", f"probabilities{of_shape('a NoneType')}"),
        (
            "sampler",
            "a typing error",
            "AttributeError: 'PriorityQueue' object has no attribute 'loses' (test_part_checks.py",
        ),
        ("sampler", "python's if", "TracerBoolConversionError: Attempted boolean conversion of traced array"),
        ("sampler", "a metric of many numbers", "the metric temperature must be one number. Got float32[3]"),
        ("sampler", "a list of metrics", "metrics must return numbers by name. Got a list"),
        ("sampler", "an error in metrics", "KeyError: 'temperature' (test_part_checks.py"),
        ("sampler", "one weight", "the weights of a draw must be floats of shape (25,). Got float32[]"),
        ("sampler", "three weights of a batch", "weigh must be floats of shape (25,). Got float32[3]"),
        ("sampler", "a key", "init must return numbers or arrays of them. Got key<fry>[]"),
        ("sampler", "a word", "init must return numbers or arrays of them. Got a str"),
        ("sampler", "a shorter state", "a meta-step must leave every number's type as it is; of sampler it makes"),
        ("sampler", "a state out of nothing", "update must return a state like that of init"),
        ("task", "a score in brackets", "the score of an outcome must be one number. Got float32[1]"),
        ("task", "a metric an example", "the metric errors of an outcome must be one number. Got float32[10,1]"),
        ("task", "a metric of a taken name", "a metric must not be called loss"),
        ("task", "a wrong name", "KeyError: 'height' (test_part_checks.py"),
    ],
)
def test_a_part_that_does_not_keep_its_protocol(part, fault, line):
    target = f"{part}._target_={__name__}.Faulty{part.title()}"
    build("sampler=uniform", target)
    assert mistake("sampler=uniform", target, f"+{part}.fault={fault!r}").startswith(f"{part}: {line}")


def test_an_optimizer_whose_state_changes_its_type():
    line = mistake(f"optimizer._target_={__name__}.counting_in_floats")
    assert line.startswith("optimizer: a meta-step must leave every number's type as it is; of opt_state it makes")


def test_a_fault_of_no_user_is_not_blamed_on_one():
    with pytest.raises(KeyError), attributing_errors({"sampler": Uniform()}):
        raise KeyError("a bug")


def test_a_sampler_as_it_was_written_before_is_told_the_new_arguments():
    line = mistake(f"sampler._target_={__name__}.OldSampler")
    assert line == "sampler: OldSampler.probabilities(self, queue, step) must take (self, grid, view)"


@pytest.mark.parametrize("signal", [None, "visits"])
def test_an_additive_sampler_has_a_signal_of_the_queue(signal, monkeypatch):
    if signal is not None:
        monkeypatch.setattr(AdditiveSampler, "signal", signal, raising=False)
    line = mistake(f"sampler._target_={__name__}.AdditiveSampler")
    assert line == f"sampler: the attribute signal must be losses or deltas. Got {signal}"


def test_there_is_nothing_to_interpolate_between_categories():
    kinds = "{_target_: twmaml.space.axis.Categories, names: [a, b]}"
    line = mistake("sampler=delta", "sampler.interpolate=true", "task=quadratic", f"task.b={kinds}")
    assert line.startswith(("sampler.interpolate=True: there is nothing between the categories of b", "task.b"))


@dataclass(frozen=True)
class WithMore(Sampler):
    """Methods that take more than they must, or anything."""

    def probabilities(self, grid, view, temperature=1.0):
        return jnp.full(grid.size, temperature / grid.size)

    def metrics(self, *views: Any, **others: Any):
        return {}


def test_a_method_may_take_more_than_it_must():
    build(f"sampler._target_={__name__}.WithMore")


@dataclass(frozen=True)
class Stepless(Adaptation):
    def step(self, model, meta_params, fast, loss_of, key, index):
        return fast


@dataclass(frozen=True)
class FaultyPicture(Sinusoid):
    fault: str = ""

    def picture(self, episode, support, path) -> Any:
        faulty: dict[str, Any] = {
            "a list": lambda: [jnp.zeros(3)],
            "tasks": lambda: {"tasks": jnp.zeros(3)},
            "an error": lambda: {"x": episode["height"]},
        }
        return faulty[self.fault]()


@dataclass(frozen=True)
class FaultyMetric(Sinusoid):
    metrics = (Metric("mean error", "mean error"),)


def test_an_adaptation_must_say_how_many_steps_it_takes():
    keys = ("learning_rate", "first_order", "decay", "steps")
    without = [f"adaptation._target_={__name__}.Stepless", *(f"~adaptation.{key}" for key in keys)]
    assert mistake(*without) == "adaptation: steps must be a number of inner steps. Got None"


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("a list", "task: picture must return arrays by name. Got a list"),
        ("tasks", "task: picture must not return tasks"),
        ("an error", "task: KeyError: 'height' (test_part_checks.py"),
    ],
)
def test_a_picture_is_tried_before_anything_is_trained(fault, line):
    assert mistake(f"task._target_={__name__}.FaultyPicture", f"+task.fault={fault}").startswith(line)


def test_the_key_of_a_metric_is_part_of_names():
    line = mistake(f"task._target_={__name__}.FaultyMetric")
    assert line == "task: the key of a metric must be one word of small letters. Got mean error"
