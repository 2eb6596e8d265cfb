from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from twmaml.space.axis import Interval, Nuisance
from twmaml.tasks.base import TaskFamily
from twmaml.tasks.quadratic import Quadratic
from twmaml.tasks.regression import Regression
from twmaml.tasks.sinusoid import Sinusoid

AMPLITUDE, PHASE, FREQUENCY = Interval(0.1, 5.0, 7), Interval(0.0, 180.0, 5, "deg"), Interval(0.5, 2.0, 3)


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        (Sinusoid(AMPLITUDE, PHASE, 1.0, -5.0, 5.0), (7, 5)),
        (Sinusoid(AMPLITUDE, PHASE, FREQUENCY, -5.0, 5.0), (7, 5, 3)),
        (Sinusoid(1.0, PHASE, FREQUENCY, -5.0, 5.0), (5, 3)),
        (Quadratic(AMPLITUDE, AMPLITUDE, 1.0, -5.0, 5.0), (7, 7)),
    ],
)
def test_a_parameter_is_an_axis_or_fixed(family, shape):
    assert family.grid.shape == shape
    assert isinstance(family, TaskFamily)


def collect(family, task, n):
    episode = family.episode(jax.random.key(1), task, ())
    return family.collect(jax.random.key(0), episode, "support", lambda x: x, n)


def test_data_is_the_function_of_the_task():
    family = Sinusoid(AMPLITUDE, PHASE, 1.5, -5.0, 5.0)
    task = jnp.array([2.0, 0.7])
    data = collect(family, task, 500)
    x = np.asarray(data.inputs, float)
    np.testing.assert_allclose(data.targets, 2 * np.sin(1.5 * x + 0.7), atol=1e-5)
    assert -5 <= x.min() < -4.9
    assert 4.9 < x.max() <= 5
    quadratic = Quadratic(AMPLITUDE, AMPLITUDE, 0.5, -5.0, 5.0)
    data = collect(quadratic, task, 50)
    x = np.asarray(data.inputs, float)
    np.testing.assert_allclose(data.targets, 2 * x**2 + 0.7 * x + 0.5, rtol=1e-5, atol=1e-4)


def test_the_loss_is_the_mean_squared_error_and_shapes_must_agree():
    family = Sinusoid(AMPLITUDE, PHASE, 1.0, -5.0, 5.0)
    data = collect(family, jnp.array([1.0, 0.0]), 9)
    outcome = family.outcome(lambda x: 0 * x, data)
    np.testing.assert_allclose(outcome.loss, np.mean(np.asarray(data.targets) ** 2), rtol=1e-6)
    assert outcome.score == outcome.loss
    with pytest.raises(ValueError, match="must have the same shape"):
        family.outcome(lambda x: x[:, 0], data)


def test_a_nuisance_is_drawn_anew_for_each_task_and_shared_by_its_support_and_query():
    family = Sinusoid(AMPLITUDE, Nuisance(0.0, 180.0, "deg"), 1.0, -5.0, 5.0)
    assert family.grid.names == ("amplitude",)
    keys = jax.random.split(jax.random.key(0), 2000)
    phases = np.asarray(jax.vmap(lambda key: family.episode(key, jnp.array([2.0]), ())["phase"])(keys))
    assert stats.kstest(phases, stats.uniform(0, np.pi).cdf).pvalue > 1e-3
    episode = family.episode(keys[0], jnp.array([2.0]), ())
    for part in ("support", "query"):
        data = family.collect(jax.random.key(1), episode, part, lambda x: x, 9)
        np.testing.assert_allclose(data.targets, 2 * np.sin(np.asarray(data.inputs, float) + phases[0]), atol=1e-5)


def targets_of(family, task, n):
    data = collect(family, task, n)
    return np.asarray(data.targets, float), 2 * np.sin(np.asarray(data.inputs, float))


@pytest.mark.parametrize("noise", [0.3, Interval(0.0, 1.0, 2), Nuisance(0.0, 1.0)])
def test_noise_is_gaussian_and_on_targets_only(noise):
    family = Sinusoid(AMPLITUDE, 0.0, 1.0, -5.0, 5.0, noise)
    task = jnp.array([2.0, 0.3] if isinstance(noise, Interval) else [2.0])
    deviation = family.episode(jax.random.key(1), task, ())["noise"]
    noisy, clean = targets_of(family, task, 5000)
    assert stats.kstest((noisy - clean)[:, 0] / float(deviation), "norm").pvalue > 1e-3
    silent = Sinusoid(AMPLITUDE, 0.0, 1.0, -5.0, 5.0)
    np.testing.assert_array_equal(collect(family, task, 9).inputs, collect(silent, task[:1], 9).inputs)


def test_without_noise_the_program_has_none():
    programs = [
        str(jax.make_jaxpr(lambda task, family=family: collect(family, task, 5))(jnp.array([2.0])))
        for family in (Sinusoid(AMPLITUDE, 0.0, 1.0, -5.0, 5.0, noise) for noise in (0.0, 0.1))
    ]
    assert ["erf_inv" in program for program in programs] == [False, True]
    assert len(programs[0]) < len(programs[1])


def test_a_function_of_vectors_has_examples_of_vectors():
    @dataclass(frozen=True)
    class Rotation(Regression):
        angle: Interval
        x_low: float = -1.0
        x_high: float = 1.0
        inputs = 2
        outputs = 2

        def target(self, parameters, x):
            sine, cosine = jnp.sin(parameters["angle"]), jnp.cos(parameters["angle"])
            return x @ jnp.array([[cosine, sine], [-sine, cosine]])

    family, task = Rotation(Interval(0.0, 180.0, 9, "deg")), jnp.array([0.5])
    data = collect(family, task, 7)
    assert family.example_input.shape == (2,)
    assert data.inputs.shape == data.targets.shape == (7, 2)
    np.testing.assert_allclose(jnp.linalg.norm(data.targets, axis=1), jnp.linalg.norm(data.inputs, axis=1), rtol=1e-5)
    outcome = family.outcome(lambda x: x, data)
    np.testing.assert_allclose(
        outcome.loss, np.mean((np.asarray(data.targets) - np.asarray(data.inputs)) ** 2), rtol=1e-5
    )
    assert family.picture(family.episode(jax.random.key(0), task, ()), data, lambda observe: observe) == {}
    own = family.support_of(data.inputs.tolist(), data.targets.tolist())
    np.testing.assert_array_equal(own.inputs, data.inputs)
