"""Transitions of pendulums: those of the equations, chosen without overlap."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twmaml.space.axis import Interval
from twmaml.tasks.pendulum_dynamics import PendulumDynamics

FAMILY = PendulumDynamics(Interval(0.4, 1.6, 3, "kg"), Interval(0.4, 1.6, 3, "m"), 200, "state")
MASS, LENGTH = 0.4, 0.5


def episode_of(family, key=0):
    return family.episode(jax.random.key(key), jnp.array([MASS, LENGTH]), ())


def test_an_episode_follows_the_equations_of_gymnasiums_pendulum():
    inputs, targets = (np.asarray(each, float) for each in episode_of(FAMILY).all)
    assert (inputs.shape, targets.shape) == ((200, 4), (200, 3))
    np.testing.assert_array_equal(inputs[1:, :3], targets[:-1])
    cosine, sine, speed, torque = inputs.T
    assert abs(speed[0]) <= 1
    assert 1.9 < abs(torque).max() <= 2
    faster = speed + (3 * 10 / (2 * LENGTH) * sine + 3 / (MASS * LENGTH**2) * torque) * 0.05
    clipped = np.clip(faster, -8, 8)
    assert 0 < (clipped != faster).sum() < 100
    angle = np.arctan2(sine, cosine) + clipped * 0.05
    np.testing.assert_allclose(targets, np.stack([np.cos(angle), np.sin(angle), clipped], axis=1), atol=1e-4)


def test_a_change_is_the_difference_of_two_states():
    inputs, targets = episode_of(FAMILY).all
    change = episode_of(replace(FAMILY, predicts="change")).all
    np.testing.assert_array_equal(change.inputs, inputs)
    np.testing.assert_allclose(change.targets, targets - inputs[:, :3], atol=1e-6)


@pytest.mark.parametrize("equal_lots", [False, True])
def test_no_transition_is_in_support_and_query(equal_lots):
    episode = episode_of(FAMILY)
    if equal_lots:
        episode = episode._replace(lots=jnp.zeros(200))
    support = FAMILY.examples(jax.random.key(1), episode, "support", 10).inputs
    query = FAMILY.examples(jax.random.key(1), episode, "query", 190).inputs
    assert len(np.unique(np.concatenate([support, query]), axis=0)) == 200
    assert len({tuple(np.asarray(episode_of(FAMILY, key).chosen("support", 10))) for key in range(5)}) == 5


def test_a_task_decides_how_much_a_torque_does():
    """The prediction of a network that knows the formula has no loss on its own task, and one on another."""

    def outcome(mass):
        def predict(x):
            speed = x[:, 2] + (15 / LENGTH * x[:, 1] + 3 / (mass * LENGTH**2) * x[:, 3]) * 0.05
            speed = jnp.clip(speed, -8, 8)
            angle = jnp.arctan2(x[:, 1], x[:, 0]) + speed * 0.05
            return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed], axis=1)

        query = FAMILY.collect(jax.random.key(1), episode_of(FAMILY), "query", predict, 100)
        return float(FAMILY.outcome(predict, query).score)

    assert outcome(MASS) < 1e-8
    assert outcome(1.5) > 0.01
