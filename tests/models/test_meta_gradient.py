"""The meta-gradient by hand equals autodiff, and takes its place only where it is the same."""

import re
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import make_learner_of
from twmaml.adaptation.maml import MAML
from twmaml.meta_learning.chunk import train_chunk
from twmaml.meta_learning.learner import MetaLearner
from twmaml.models.base import Batch
from twmaml.models.meta_gradient import MOST_STEPS
from twmaml.models.mlp import MLP
from twmaml.samplers.uniform import Uniform
from twmaml.space.axis import Interval
from twmaml.tasks.regression import Regression
from twmaml.tasks.sinusoid import Sinusoid
from twmaml.training.devices import TRAINING, compile_program
from twmaml.types import Outcome

LECUN = jax.nn.initializers.lecun_normal()
FAMILY = Sinusoid(Interval(0.5, 4.5, 4), Interval(0.0, 180.0, 5, "deg"), 1.0, -5.0, 5.0)


def by_autodiff(model, params, support, query, rates, first_order, weigh):
    def loss(params, x, y):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    def objective(params):
        def after_steps(x, y, query_x, query_y):
            adapted = params
            for rate in rates:
                gradient = jax.grad(loss)(adapted, x, y)
                gradient = jax.lax.stop_gradient(gradient) if first_order else gradient
                adapted = jax.tree.map(lambda p, g, rate=rate: p - rate * g, adapted, gradient)
            return loss(adapted, query_x, query_y)

        losses = jax.vmap(after_steps)(*support, *query)
        return jnp.sum(jax.lax.stop_gradient(weigh(losses)[0]) * losses), losses

    return jax.grad(objective, has_aux=True)(params)


STEPS_IN_FACTORS = {
    "widths": [24, 24],
    "activation": "tanh",
    "queries": 4,
    "inputs": 2,
    "outputs": 1,
    "first_order": False,
    "seed": 0,
}


@settings(max_examples=10)
@example(steps=3, shots=3, **STEPS_IN_FACTORS)  # all of them
@example(steps=3, shots=10, **STEPS_IN_FACTORS)  # the last
@given(
    widths=st.lists(st.sampled_from([1, 2, 5, 24]), max_size=3),
    steps=st.integers(0, 5),
    activation=st.sampled_from(["relu", "tanh", "sigmoid", "gelu", "silu", "elu", "selu", "softplus", "leaky_relu"]),
    shots=st.sampled_from([1, 3, 36]),
    queries=st.sampled_from([1, 4, 36]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 2),
    first_order=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_equals_autodiff_with_weights_that_depend_on_the_losses(
    widths, steps, activation, shots, queries, inputs, outputs, first_order, seed
):
    with jax.enable_x64(True):
        random = np.random.default_rng(seed)
        model = MLP(widths, activation, LECUN, outputs)
        params = model.init(jax.random.key(seed), jnp.zeros(inputs))
        params = jax.tree.map(lambda p: p.astype(jnp.float64) + 0.3 * random.normal(size=p.shape), params)
        support, query = (
            Batch(*(jnp.asarray(random.normal(size=(3, n, size))) for size in (inputs, outputs)))
            for n in (shots, queries)
        )

        def weigh(losses):
            return losses / jnp.sum(losses), losses.shape

        rates = [0.1 * 0.7**index for index in range(steps)]
        expected, losses = jax.jit(lambda p: by_autodiff(model, p, support, query, rates, first_order, weigh))(params)
        by_hand = jax.jit(lambda p: model.meta_gradient(p, support, query, rates, first_order, weigh))
        gradient, found_losses, besides = by_hand(params)
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * scale), gradient, expected)
        np.testing.assert_allclose(found_losses, losses, rtol=1e-10)
        assert besides == (3,)


class Absolute(Sinusoid):
    """Judged by another loss."""

    def outcome(self, predict, examples):
        loss = jnp.mean(jnp.abs(predict(examples.inputs) - examples.targets))
        return Outcome(loss=loss, score=loss, metrics={})


@dataclass(frozen=True)
class Spread(Regression):
    """Functions of the plane with three values."""

    slope: Interval
    x_low: float = -2.0
    x_high: float = 2.0
    noise: float = 0.1
    inputs = 2
    outputs = 3

    def target(self, parameters, x):
        return jnp.stack([parameters["slope"] * x[:, 0], jnp.sin(x[:, 1]), x[:, 0] * x[:, 1]], axis=1)


class Doubled(MAML):
    """Adapts twice as far."""

    def step(self, model, meta_params, fast, loss_of, key, index):
        return jax.tree.map(lambda p, q: 2 * q - p, fast, super().step(model, meta_params, fast, loss_of, key, index))

    last_step = step


class Shifted(MLP):
    """Gives something else than a perceptron."""

    def apply(self, params, inputs):
        return super().apply(params, inputs) + 1

    def factored_step(self, params, loss_of, key, learning_rate, first_order):
        return None


class NoWay:
    """A network without a way of its own."""

    def init(self, key, example_input):
        return MLP([4], "tanh", LECUN).init(key, example_input)

    def apply(self, params, inputs):
        return MLP([4], "tanh", LECUN).apply(params, inputs)


@pytest.mark.parametrize(
    ("changes", "applies"),
    [
        ({}, True),
        ({"adaptation": MAML(0.05, 1, first_order=True)}, True),
        ({"family": replace(FAMILY, noise=0.3)}, True),
        ({"family": Spread(Interval(0.5, 4.5, 4)), "model": MLP([4], "tanh", LECUN, 3)}, True),
        ({"family": Absolute(**vars(FAMILY))}, False),
        ({"adaptation": MAML(0.05, 3, decay=0.5)}, True),
        ({"adaptation": MAML(0.05, MOST_STEPS + 1)}, False),
        ({"adaptation": Doubled(0.05, 1)}, False),
        ({"model": Shifted([4], "tanh", LECUN)}, False),
        ({"model": NoWay()}, False),
        ({"tasks_at_once": 2}, False),
    ],
    ids=[
        "plain",
        "first order",
        "noise",
        "vectors",
        "loss",
        "steps",
        "many steps",
        "adaptation",
        "apply",
        "network",
        "blocks",
    ],
)
def test_a_meta_step_is_that_of_autodiff_and_by_hand_where_that_is_the_same(changes, applies, monkeypatch):
    learner = make_learner_of(**{"family": FAMILY, "adaptation": MAML(0.05, 1), **changes})
    state = learner.init(0)
    step = str(jax.make_jaxpr(lambda state: learner.meta_step(state)[0])(state))
    ours = jax.jit(partial(MetaLearner.meta_step, learner))(state)  # not the bound method, which jit would know again
    monkeypatch.setattr(type(learner.adaptation), "meta_gradient", lambda *_: None)
    theirs = jax.jit(partial(MetaLearner.meta_step, learner))(state)  # not the bound method, which jit would know again
    by_autodiff = str(jax.make_jaxpr(lambda state: learner.meta_step(state)[0])(state))
    assert (re.sub(r"0x\w+", "", step) != re.sub(r"0x\w+", "", by_autodiff)) == applies
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours[2], theirs[2])
    before, one, other = (
        jax.tree.leaves(each) for each in (state.meta_params, ours[0].meta_params, theirs[0].meta_params)
    )
    for old, a, b in zip(before, one, other, strict=True):
        np.testing.assert_allclose(a - old, b - old, atol=2e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the barriers are for CPUs")
def test_targets_are_computed_once_in_the_compiled_step():
    learner = make_learner_of(family=FAMILY, adaptation=MAML(0.05, 1), optimizer=optax.sgd(0.1), sampler=Uniform())
    for each in (learner, *(replace(learner, adaptation=MAML(0.05, steps)) for steps in (2, MOST_STEPS + 1))):
        lowered = jax.jit(partial(train_chunk, each)).lower(each.init(0), jnp.int32(0))
        text = compile_program(lowered, TRAINING).as_text()
        assert len(re.findall(r" sine\(", text)) == 2  # of support and query
