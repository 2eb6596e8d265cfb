import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twmaml.space.axis import Interval
from twmaml.tasks.base import TaskFamily
from twmaml.tasks.quadratic import Quadratic
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


def test_data_is_the_function_of_the_task():
    family = Sinusoid(AMPLITUDE, PHASE, 1.5, -5.0, 5.0)
    task = jnp.array([2.0, 0.7])
    data = family.collect(jax.random.key(0), task, lambda x: x, 500)
    x = np.asarray(data.inputs, float)
    np.testing.assert_allclose(data.targets, 2 * np.sin(1.5 * x + 0.7), atol=1e-5)
    assert -5 <= x.min() < -4.9
    assert 4.9 < x.max() <= 5
    quadratic = Quadratic(AMPLITUDE, AMPLITUDE, 0.5, -5.0, 5.0)
    data = quadratic.collect(jax.random.key(0), task, lambda x: x, 50)
    x = np.asarray(data.inputs, float)
    np.testing.assert_allclose(data.targets, 2 * x**2 + 0.7 * x + 0.5, rtol=1e-5, atol=1e-4)


def test_the_loss_is_the_mean_squared_error_and_shapes_must_agree():
    family = Sinusoid(AMPLITUDE, PHASE, 1.0, -5.0, 5.0)
    data = family.collect(jax.random.key(0), jnp.array([1.0, 0.0]), lambda x: x, 9)
    outcome = family.outcome(lambda x: 0 * x, data)
    np.testing.assert_allclose(outcome.loss, np.mean(np.asarray(data.targets) ** 2), rtol=1e-6)
    assert outcome.score == outcome.loss
    with pytest.raises(ValueError, match="must have the same shape"):
        family.outcome(lambda x: x[:, 0], data)
