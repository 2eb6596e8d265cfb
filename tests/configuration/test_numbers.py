"""Numbers of parts that are arguments of a program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configuration.test_build import build
from twmaml.configuration.numbers import may_be_arguments
from twmaml.meta_learning.chunk import train_chunk

SMALL = ("model.widths=[8]", "meta_batch=4", "shots=3", "queries=3", "evaluation.cells=[2,2]", "evaluation.steps=1")
NUMBERS = {
    "adaptation.learning_rate": 0.03,
    "sampler.epsilon.end_value": 0.4,
    "optimizer.learning_rate.init_value": 0.02,
}
PARTS = (
    "sampler=epsilon_greedy",
    "~optimizer.learning_rate",
    "+optimizer.learning_rate._target_=optax.cosine_decay_schedule",
)
PARTS = (*PARTS, "+optimizer.learning_rate.init_value=0.001", "+optimizer.learning_rate.decay_steps=20")


def train(parts):
    state, _ = train_chunk(parts.learner, parts.learner.init(0), jnp.int32(8))
    return state.meta_params, state.queue.losses


def test_parts_around_arrays_train_as_parts_that_were_built_with_those_numbers():
    parts = build(*PARTS, *SMALL)
    program = jax.jit(lambda numbers: train(parts.with_numbers(numbers)))
    found = program({key: jnp.float32(value) for key, value in NUMBERS.items()})
    given = {key.replace("sampler", "sampling"): value for key, value in NUMBERS.items()}
    built = build(*PARTS, *SMALL, *(f"{key}={value}" for key, value in given.items()))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, jax.jit(lambda: train(built))())
    others = program({key: jnp.float32(value / 2) for key, value in NUMBERS.items()})
    assert not np.allclose(found[0][0].weight, others[0][0].weight)
    assert parts.learner.adaptation.learning_rate == 0.01  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["adaptation.steps", "sampler.nope", "task.amplitude", "model.activation", "steps"])
def test_what_shapes_a_program_is_no_argument_of_it(key):
    with pytest.raises(ValueError, match=key):
        build("sampler=weighted", *SMALL).with_numbers({key: jnp.float32(1)})


def test_the_numbers_reach_what_judges_too():
    parts = build("sampler=weighted", *SMALL, "+evaluation.splits.wide.task.x_high=6.0")
    changed = parts.with_numbers({"adaptation.learning_rate": jnp.float32(0.03)})
    for name, each in changed.evaluations.items():
        assert float(each.learner.adaptation.learning_rate) == pytest.approx(0.03)  # type: ignore[attr-defined]
        assert each.learner.family is parts.evaluations[name].learner.family


MODULE = """
from dataclasses import dataclass
import jax.numpy as jnp
from twmaml.samplers.base import Sampler

@dataclass(frozen=True)
class Tempered(Sampler):
    power: float
    base: float
    shown: float
    threshold: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "table", jnp.arange(1, 5) ** self.power)
        base = self.base
        object.__setattr__(self, "rule", lambda x: x + base)

    def probabilities(self, grid, view):
        p = self.rule(self.table) * (2 if self.threshold > 0.4 else 1) * (1 + self.shown)
        return p / p.sum()
"""


def test_a_number_is_an_argument_where_a_part_neither_decides_by_it_nor_keeps_what_it_made_of_it(tmp_path, monkeypatch):
    (tmp_path / "tempered_sampler.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    numbers = ["power=1.5", "base=0.5", "shown=0.5", "threshold=0.5"]
    own = ["sampler._target_=tempered_sampler.Tempered", *(f"+sampler.{each}" for each in numbers)]
    init = "+model.weight_init={_target_: jax.nn.initializers.truncated_normal, stddev: 0.1}"
    tiny = ["task.amplitude.cells=2", "task.phase.cells=2", init, *SMALL]
    parts = build("sampler=uniform", *own, *tiny)
    others = {f"sampler.{name}": 0.7 for name in ("power", "base", "shown", "threshold")}
    others |= {"adaptation.learning_rate": 0.02, "adaptation.decay": 0.9, "optimizer.learning_rate": 0.02}
    others["model.weight_init.stddev"] = 0.2
    refused = {"sampler.power", "sampler.base", "sampler.threshold", "adaptation.decay"}
    assert may_be_arguments(parts, others) == {*others} - refused
    assert may_be_arguments(parts, {"optimizer.learning_rate": 0.02}) == {"optimizer.learning_rate"}


JOINT = """
from dataclasses import dataclass
from twmaml.samplers.uniform import Uniform

@dataclass(frozen=True)
class Either(Uniform):
    first: float
    second: float

    def probabilities(self, grid, view):
        plain = [x for x in (self.first, self.second) if isinstance(x, float)]
        if not plain:
            raise TypeError("one of the two must be a number")
        return super().probabilities(grid, view) + 0 * (self.first + self.second)
"""


def test_numbers_that_cannot_be_arguments_together_are_not(tmp_path, monkeypatch):
    (tmp_path / "either_sampler.py").write_text(JOINT)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["sampler._target_=either_sampler.Either", "+sampler.first=0.1", "+sampler.second=0.1"]
    parts = build("sampler=uniform", *own, *SMALL)
    assert may_be_arguments(parts, {"sampler.first": 0.2, "sampler.second": 0.2}) == {"sampler.first"}
