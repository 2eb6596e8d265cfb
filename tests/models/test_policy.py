"""Policies give distributions of actions, of which draws and log-probabilities agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from twmaml.models.base import Model, SupportsFactoredStep
from twmaml.models.policy import Categorical, CategoricalPolicy, Gaussian, GaussianPolicy
from twmaml.tasks.control.rollouts import Actions

LECUN = jax.nn.initializers.lecun_normal()


def test_densities_are_those_of_scipy():
    mean, log_std, actions = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    ours = Gaussian(jnp.asarray(mean), jnp.asarray(log_std)).log_prob(jnp.asarray(actions))
    theirs = stats.norm.logpdf(actions, mean, np.exp(log_std)).sum(axis=-1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_probabilities_of_all_kinds_add_up_to_one():
    logits = jax.random.normal(jax.random.key(0), (5, 3)) * 4
    policy = Categorical(logits)
    every = jnp.stack([policy.log_prob(jnp.full(5, kind)) for kind in range(3)])
    np.testing.assert_allclose(jnp.exp(every).sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(policy.mode, jnp.argmax(every, axis=0))


def test_draws_follow_the_log_probabilities():
    policy = Categorical(jnp.log(jnp.array([0.2, 0.5, 0.3])))
    drawn = policy.draw(policy.noise(jax.random.key(0), 20_000))
    counts = np.bincount(np.asarray(drawn), minlength=3)
    assert stats.chisquare(counts, 20_000 * np.array([0.2, 0.5, 0.3])).pvalue > 1e-3
    normal = Gaussian(jnp.array([1.0]), jnp.array([-1.0]))
    drawn = np.asarray(normal.draw(normal.noise(jax.random.key(1), 5_000)))[:, 0]
    assert stats.kstest(drawn, "norm", (1.0, np.exp(-1.0))).pvalue > 1e-3


@pytest.mark.parametrize(
    "policy", [GaussianPolicy([3], "tanh", LECUN, 2, -0.5), CategoricalPolicy([3], "tanh", LECUN, 2)]
)
def test_a_policy_is_a_model_whose_outputs_are_distributions(policy):
    assert isinstance(policy, Model)
    assert not isinstance(policy, SupportsFactoredStep)
    given = policy.apply(policy.init(jax.random.key(0), jnp.zeros(4)), jnp.ones((7, 5, 4)))
    assert isinstance(given, Actions)
    assert isinstance(given, Gaussian | Categorical)
    assert given.log_prob(given.mode).shape == (7, 5)


def test_the_standard_deviation_is_a_weight():
    policy = GaussianPolicy([3], "tanh", LECUN, 2, log_std=-0.5)
    weights = policy.init(jax.random.key(0), jnp.zeros(4))
    np.testing.assert_array_equal(weights.log_std, [-0.5, -0.5])
    gradient = jax.grad(lambda w: policy.apply(w, jnp.ones((1, 4))).log_prob(jnp.zeros((1, 2)))[0])(weights)
    assert (np.asarray(gradient.log_std) != 0).all()
