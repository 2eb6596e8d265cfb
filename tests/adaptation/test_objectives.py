"""Adaptations that are no MAML: what is differentiated, and what is adapted, is theirs to say."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.examples import example
from twmaml.adaptation.base import adapt, adaptation_path, bind
from twmaml.adaptation.maml import MAML
from twmaml.adaptation.reptile import Reptile
from twmaml.meta_learning.chunk import train_chunk
from twmaml.models.mlp import MLP
from twmaml.samplers.proportional import Proportional


def updates_are_gradients():
    """An optimiser that adds the gradient itself, so that a meta-step shows it."""
    return optax.GradientTransformation(lambda params: (), lambda updates, state, params=None: (updates, state))


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_gradient_of_reptile_is_the_weighted_mean_of_what_adapting_moved(steps, make_learner):
    reptile = Reptile(0.05, steps)
    learner = make_learner(
        Proportional("losses", True, uniform_fraction=0.3), adaptation=reptile, optimizer=updates_are_gradients()
    )
    step, before = jax.jit(learner.meta_step), learner.init(0)
    for _ in range(2):  # until weights differ
        before = step(before)[0]._replace(meta_params=before.meta_params)
    after, draw, outcomes = step(before)
    gradient = jax.tree.map(lambda new, old: new - old, after.meta_params, before.meta_params)
    _, tasks_key = jax.random.split(jax.random.fold_in(before.key, before.step))
    moved = []
    for key, task in zip(jax.random.split(tasks_key, learner.meta_batch), draw.tasks, strict=True):
        support_key, adapt_key, _ = jax.random.split(key, 3)
        episode = learner.episode(key, task, ())
        loss_of = learner.loss_of(episode, learner.collect_support(support_key, episode))
        adapted = adapt(reptile, learner.model, before.meta_params, loss_of, adapt_key, steps)
        moved.append(jax.tree.map(lambda p, f: p - f, before.meta_params, adapted))
    assert np.ptp(draw.weights) > 0
    expected = jax.tree.map(lambda *each: sum(w * m for w, m in zip(draw.weights, each, strict=True)) / 6, *moved)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-6), gradient, expected)
    assert (np.asarray(outcomes.score) > 0).all()


def test_reptile_learns(make_learner):
    learner = make_learner(adaptation=Reptile(0.05, 5), optimizer=optax.adam(1e-2), shots=8, queries=8)
    train = jax.jit(partial(train_chunk, learner))
    state, first = train(learner.init(0), jnp.int32(50))
    state, _ = train(state, jnp.int32(1000))
    _, last = train(state, jnp.int32(50))
    assert last.metrics["train/loss"] < 0.8 * first.metrics["train/loss"]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_through_a_context_equals_finite_differences(steps):
    adaptation = example("context", "Context")(learning_rate=0.1, steps=steps, size=3)
    model = MLP([6], "tanh", jax.nn.initializers.lecun_normal())
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(steps), 5)
        init = adaptation.init(keys[0], model, jnp.zeros(1))
        meta_params = jax.tree.map(lambda p: p.astype(jnp.float64) + 0.1, init)
        direction = jax.tree.map(lambda p: jax.random.normal(keys[1], p.shape, jnp.float64), meta_params)
        support, query = (jax.random.uniform(k, (2, 4, 1), jnp.float64, -2, 2) for k in keys[2:4])

        def loss_of(data, predict, _):
            return jnp.mean((predict(data[0]) - data[1]) ** 2)

        def meta_loss(meta_params):
            fast = adapt(adaptation, model, meta_params, partial(loss_of, support), keys[4], steps)
            assert fast.shape == (3,)  # the context, and nothing else
            return loss_of(query, bind(adaptation, model, meta_params, fast), None)

        def moved(size):
            return jax.tree.map(lambda p, d: p + size * d, meta_params, direction)

        gradient = jax.grad(meta_loss)(meta_params)
        slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        h = 1e-5
        np.testing.assert_allclose(slope, (meta_loss(moved(h)) - meta_loss(moved(-h))) / (2 * h), rtol=1e-6)
        path = adaptation_path(
            adaptation, model, meta_params, partial(loss_of, support), keys[4], steps, observe=lambda fast: fast
        )
        assert path.shape == (steps + 1, 3)
        assert (path[0] == meta_params[1]).all()


class CountingSteps(MAML):
    """Notes the index of each inner step in what it adapts."""

    def step(self, model, meta_params, fast, loss_of, key, index):
        return fast + 10.0**index


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_inner_step_knows_its_index(steps):
    counting = CountingSteps(0.1, steps)
    model = MLP([2], "tanh", jax.nn.initializers.lecun_normal())
    arguments = (model, jnp.float32(0), lambda predict, key: jnp.float32(0), jax.random.key(0), steps)
    assert float(adapt(counting, *arguments)) == float("1" * steps)
    path = adaptation_path(counting, *arguments, observe=lambda fast: fast)
    assert [float(value) for value in path] == [0, *(float("1" * k) for k in range(1, steps + 1))]


def test_weights_may_depend_on_the_losses_and_no_gradient_flows_through_them(make_learner):
    class WorstOnly(Proportional):
        def weigh(self, report, view):
            return jnp.float32(len(report.losses)) * (report.losses == jnp.max(report.losses))

    learner = make_learner(WorstOnly("losses", False), optimizer=updates_are_gradients())
    state = learner.init(0)
    after, draw, outcomes = jax.jit(learner.meta_step)(state)
    worst = int(np.argmax(outcomes.loss))
    assert np.asarray(draw.weights).tolist() == [6.0 * (i == worst) for i in range(6)]
    _, tasks_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    key = jax.random.split(tasks_key, 6)[worst]

    def loss(meta_params):
        return learner.adapt_and_judge(meta_params, key, draw.tasks[worst], (), state.step)[0]

    expected = jax.jit(jax.grad(loss))(state.meta_params)
    gradient = jax.tree.map(lambda new, old: new - old, after.meta_params, state.meta_params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient, expected)
    shared = replace(learner, sampler=Proportional("losses", False))
    assert not np.allclose(jax.jit(shared.meta_step)(state)[0].meta_params[0].weight, after.meta_params[0].weight)
