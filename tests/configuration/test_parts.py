"""Parts around numbers that are arguments of a program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configuration.test_build import build
from twmaml.meta_learning.chunk import train_chunk

SMALL = ("model.widths=[8]", "meta_batch=4", "shots=3", "queries=3", "evaluation.cells=[2,2]", "evaluation.steps=1")
NUMBERS = {"adaptation.learning_rate": 0.03, "sampler.uniform_fraction": 0.4, "optimizer.learning_rate": 0.02}


def train(parts):
    state, _ = train_chunk(parts.learner, parts.learner.init(0), jnp.int32(8))
    return state.meta_params, state.queue.losses


def test_parts_around_arrays_train_as_parts_that_were_built_with_those_numbers():
    parts = build("sampler=weighted", *SMALL)
    program = jax.jit(lambda numbers: train(parts.with_numbers(numbers)))
    found = program({key: jnp.float32(value) for key, value in NUMBERS.items()})
    built = build("sampler=weighted", *SMALL, *(f"{key}={value}" for key, value in NUMBERS.items()))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, jax.jit(lambda: train(built))())
    others = program({key: jnp.float32(value / 2) for key, value in NUMBERS.items()})
    assert not np.allclose(found[0][0].weight, others[0][0].weight)
    assert (parts.learner.adaptation.learning_rate, parts.learner.sampler.uniform_fraction) == (0.01, 0.1)  # type: ignore[attr-defined]


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
