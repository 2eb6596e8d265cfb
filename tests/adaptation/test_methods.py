"""The field's adaptations: their meta-gradients, and what each leaves of a network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pydantic import ValidationError

from twmaml.adaptation.anil import ANIL
from twmaml.adaptation.base import adapt, adaptation_path, bind
from twmaml.adaptation.cavia import CAVIA
from twmaml.adaptation.imaml import IMAML
from twmaml.adaptation.maml import MAML
from twmaml.adaptation.maml_pp import MAMLPlusPlus
from twmaml.adaptation.meta_curvature import MetaCurvature
from twmaml.adaptation.meta_sgd import MetaSGD
from twmaml.adaptation.reptile import Reptile
from twmaml.meta_learning.chunk import train_chunk
from twmaml.models.conv4 import Conv4
from twmaml.models.mlp import MLP
from twmaml.models.policy import GaussianPolicy
from twmaml.models.resnet12 import ResNet12
from twmaml.types import Outcome

NETWORK = MLP([6, 5], "tanh", jax.nn.initializers.lecun_normal())
METHODS = {
    "meta_sgd": partial(MetaSGD, 0.1, spread=0.8, decay=0.7),
    "anil": partial(ANIL, 0.1),
    "anil_first": partial(ANIL, 0.1, head=[0, "2.bias"]),
    "cavia": partial(CAVIA, 0.5, size=3),
    "meta_curvature": partial(MetaCurvature, 0.1),
}


def loss_of(data, predict, _):
    return jnp.mean((predict(data[0]) - data[1]) ** 2)


def problem(adaptation, seed, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(seed), 4)
    # Away from zero, where a context of zeros has no gradient by the weights that it meets.
    meta_params = jax.tree.map(
        lambda p: p.astype(dtype) + 0.05, adaptation.init(keys[0], NETWORK, jnp.zeros(1, jnp.float32))
    )
    support, query = (jax.random.uniform(k, (2, 4, 1), dtype, -2, 2) for k in keys[1:3])
    return meta_params, support, query, keys[3]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_the_meta_gradient_equals_finite_differences(name, steps):
    adaptation = METHODS[name](steps=steps)
    with jax.enable_x64(True):
        meta_params, support, query, key = problem(adaptation, steps)
        direction = jax.tree.map(lambda p: jax.random.normal(key, p.shape, jnp.float64), meta_params)

        def meta_loss(meta_params):
            fast = adapt(adaptation, NETWORK, meta_params, partial(loss_of, support), key, steps)
            return loss_of(query, bind(adaptation, NETWORK, meta_params, fast), None)

        gradient = jax.grad(meta_loss)(meta_params)
        slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        h = 1e-5
        up, down = (jax.tree.map(lambda p, d, s=s: p + s * d, meta_params, direction) for s in (h, -h))
        np.testing.assert_allclose(slope, (meta_loss(up) - meta_loss(down)) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_equal_rates_are_those_of_maml(steps):
    adaptation, maml = MetaSGD(0.1, steps), MAML(0.1, steps)
    meta_params, support, _, key = problem(adaptation, 0, jnp.float32)
    meta_params = meta_params._replace(rates=jax.tree.map(lambda r: jnp.full_like(r, 0.1), meta_params.rates))
    x = jnp.linspace(-2, 2, 5)[:, None]
    fast = adapt(adaptation, NETWORK, meta_params, partial(loss_of, support), key, steps)
    expected = adapt(maml, NETWORK, meta_params.weights, partial(loss_of, support), key, steps)
    np.testing.assert_allclose(NETWORK.apply(fast, x), NETWORK.apply(expected, x), rtol=1e-5, atol=1e-6)


def objective_of(adaptation, meta_params, support, query, key, meta_step):
    def judge(fast):
        loss = loss_of(query, bind(adaptation, NETWORK, meta_params, fast), None)
        return Outcome(loss, loss, {})

    return adaptation.objective(NETWORK, meta_params, partial(loss_of, support), judge, key, jnp.int32(meta_step))[0]


@pytest.mark.parametrize("first_order", [False, True])
def test_maml_pp_is_maml_when_its_losses_have_faded(first_order):
    adaptation = MAMLPlusPlus(0.1, 3, 100, second_order_from=500 if first_order else 0)
    maml = MAML(0.1, 3, first_order)
    with jax.enable_x64(True):
        meta_params, support, query, key = problem(adaptation, 0)
        meta_params = meta_params._replace(rates=jax.tree.map(lambda r: jnp.full_like(r, 0.1), meta_params.rates))
        gradient = jax.grad(lambda mp: objective_of(adaptation, mp, support, query, key, 100))(meta_params).weights
        expected = jax.grad(lambda mp: objective_of(maml, mp, support, query, key, 100))(meta_params.weights)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), gradient, expected)


@pytest.mark.parametrize("meta_step", [0, 40])
def test_the_meta_gradient_of_maml_pp_equals_finite_differences(meta_step):
    adaptation = MAMLPlusPlus(0.1, 3, 100)
    with jax.enable_x64(True):
        meta_params, support, query, key = problem(adaptation, meta_step)
        direction = jax.tree.map(lambda p: jax.random.normal(key, p.shape, jnp.float64), meta_params)
        objective = jax.jit(lambda mp: objective_of(adaptation, mp, support, query, key, meta_step))
        gradient = jax.grad(objective)(meta_params)
        slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        h = 1e-5
        up, down = (jax.tree.map(lambda p, d, s=s: p + s * d, meta_params, direction) for s in (h, -h))
        np.testing.assert_allclose(slope, (objective(up) - objective(down)) / (2 * h), rtol=1e-5)


def test_the_losses_of_the_earlier_steps_fade():
    adaptation = MAMLPlusPlus(0.1, 4, 100)
    np.testing.assert_allclose(adaptation.shares(jnp.int32(0)), [0.25] * 4)
    np.testing.assert_allclose(adaptation.shares(jnp.int32(50)), [0.125, 0.125, 0.125, 0.625])
    np.testing.assert_allclose(adaptation.shares(jnp.int32(1000)), [0, 0, 0, 1])


def test_steps_beyond_those_of_training_take_the_last_rate():
    adaptation = MAMLPlusPlus(0.1, 2, 100)
    meta_params, support, _, key = problem(adaptation, 0, jnp.float32)
    rates = jax.tree.map(lambda r: jnp.array([0.2, 0.05]), meta_params.rates)
    arguments = (NETWORK, meta_params._replace(rates=rates), meta_params.weights, partial(loss_of, support), key)
    late, second = (adaptation.step(*arguments, index) for index in (7, 1))
    jax.tree.map(np.testing.assert_array_equal, late, second)


def test_without_curvature_it_is_maml():
    adaptation, maml = MetaCurvature(0.1, 3), MAML(0.1, 3)
    for network, example in ((NETWORK, jnp.zeros(1)), (Conv4(filters=2, outputs=3, layers=2), jnp.zeros((8, 8, 1)))):
        meta_params = adaptation.init(jax.random.key(0), network, example)
        x = jax.random.normal(jax.random.key(1), (4, *example.shape))

        def loss(predict, _, x=x):
            return jnp.mean(predict(x) ** 2)

        fast = adapt(adaptation, network, meta_params, loss, jax.random.key(0), 3)
        expected = adapt(maml, network, meta_params.weights, loss, jax.random.key(0), 3)
        np.testing.assert_allclose(network.apply(fast, x), network.apply(expected, x), rtol=1e-4, atol=1e-6)


def test_the_implicit_gradient_is_that_of_where_adapting_ends():
    # As the inner minimum is reached and the conjugate gradients have as many steps as there are weights.
    adaptation = IMAML(0.2, 400, proximity=1.0, conjugate_steps=200)
    with jax.enable_x64(True):
        meta_params, support, query, key = problem(adaptation, 3)
        direction = jax.tree.map(lambda p: jax.random.normal(key, p.shape, jnp.float64), meta_params)
        gradient = jax.grad(lambda mp: objective_of(adaptation, mp, support, query, key, 0))(meta_params)
        slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))

        @jax.jit
        def ends_at(meta_params):
            fast = adapt(adaptation, NETWORK, meta_params, partial(loss_of, support), key, 400)
            return loss_of(query, bind(adaptation, NETWORK, meta_params, fast), None)

        h = 1e-5
        up, down = (jax.tree.map(lambda p, d, s=s: p + s * d, meta_params, direction) for s in (h, -h))
        np.testing.assert_allclose(slope, (ends_at(up) - ends_at(down)) / (2 * h), rtol=1e-4)


def test_rates_start_in_their_range_and_are_learned(make_learner):
    learner = make_learner(adaptation=MetaSGD(0.02, 1, spread=0.5), optimizer=optax.adam(1e-3))
    state = learner.init(0)
    before = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.meta_params.rates)])
    assert ((before >= 0.01) & (before <= 0.03)).all()
    assert np.ptp(before) > 0.01
    state, _ = jax.jit(partial(train_chunk, learner))(state, jnp.int32(30))
    after = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.meta_params.rates)])
    assert (after != before).mean() > 0.9


def test_only_the_head_is_adapted_and_all_is_learned(make_learner):
    adaptation = ANIL(0.1, 2)
    meta_params, support, _, key = problem(adaptation, 0, jnp.float32)
    fast = adapt(adaptation, NETWORK, meta_params, partial(loss_of, support), key, 2)
    assert fast.keys() == {"2.weight", "2.bias"}
    assert all((fast[name] != meta_params.head[name]).any() for name in fast)
    learner = make_learner(adaptation=adaptation)
    before = learner.init(0)
    after = jax.jit(learner.meta_step)(before)[0]
    moved = [
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (after.meta_params, before.meta_params)), strict=True)
    ]
    assert all(moved)


@pytest.mark.parametrize(
    ("network", "example", "head"),
    [
        (Conv4(filters=2, outputs=3, layers=2), jnp.zeros((8, 8, 1)), {"head.weight", "head.bias"}),
        (ResNet12(filters=[2, 2, 2, 2], outputs=3), jnp.zeros((16, 16, 1)), {"head.weight", "head.bias"}),
        (
            GaussianPolicy([4], "tanh", jax.nn.initializers.lecun_normal(), 2),
            jnp.zeros(3),
            {"network.1.weight", "network.1.bias"},
        ),
    ],
)
def test_every_network_has_a_head(network, example, head):
    adaptation = ANIL(0.1, 1)
    meta_params = adaptation.init(jax.random.key(0), network, example)
    assert meta_params.head.keys() == head
    whole, parts = (
        network.apply(network.init(jax.random.key(0), example), example[None]),
        adaptation.predict(network, meta_params, adaptation.start(meta_params), example[None]),
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(("head", "said"), [(["3"], "=3: "), (["2", "2.w"], "=2.w: "), ([], "=null: ")])
def test_a_head_that_is_not_there_is_refused(head, said):
    with pytest.raises(ValueError, match=said + "must begin the name of a weight: 0.weight"):
        ANIL(0.1, 1, head).init(jax.random.key(0), NETWORK, jnp.zeros(1))


def test_without_a_context_the_network_is_not_adapted():
    adaptation = CAVIA(0.5, 3, 0)
    weights, support, _, key = problem(adaptation, 0, jnp.float32)
    fast = adapt(adaptation, NETWORK, weights, partial(loss_of, support), key, 3)
    x = jnp.linspace(-2, 2, 5)[:, None]
    np.testing.assert_array_equal(adaptation.predict(NETWORK, weights, fast, x), NETWORK.apply(weights, x))


def test_a_context_begins_at_zero_and_is_all_that_is_adapted():
    adaptation = CAVIA(0.5, 2, 4)
    weights, support, _, key = problem(adaptation, 0, jnp.float32)
    path = adaptation_path(
        adaptation, NETWORK, weights, partial(loss_of, support), key, 2, observe=lambda context: context
    )
    assert path.shape == (3, 4)
    assert (path[0] == 0).all()
    assert (path[1] != 0).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MetaSGD(0.1, 1, spread=2.0), "less than or equal to 1"),
        (lambda: CAVIA(0.1, 1, -1), "greater than or equal to 0"),
        (lambda: Reptile(0.0, 1), "greater than 0"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(build, message):
    with pytest.raises(ValidationError, match=message):
        build()


def test_a_context_needs_vectors():
    with pytest.raises(ValueError, match=r"vectors only, not to inputs of shape \(8, 8, 1\)"):
        CAVIA(0.1, 1, 2).init(jax.random.key(0), Conv4(filters=2), jnp.zeros((8, 8, 1)))
