import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twmaml.adaptation.base import adapt, adaptation_path
from twmaml.adaptation.maml import MAML
from twmaml.models.factored import SteppedDense
from twmaml.models.mlp import MLP

ROWS = 3


@pytest.fixture(params=["dense", "factored", "mixed"])
def model(request):
    """Widths at which no layer, the hidden layer, or several layers keep their step in factors."""
    widths = {"dense": [4, 4], "factored": [12, 12], "mixed": [4, 16, 16]}[request.param]
    return MLP(widths, "tanh", jax.nn.initializers.lecun_normal())


def _problem(model, key):
    keys = jax.random.split(key, 4)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), model.init(keys[0], jnp.zeros(1)))
    support, query = (jax.random.uniform(k, (2, ROWS, 1), jnp.float64, -2, 2) for k in keys[1:3])
    direction = jax.tree.map(lambda p: jax.random.normal(keys[3], p.shape, jnp.float64), params)

    def loss_of(data, predict, _):
        return jnp.mean((predict(data[0]) - data[1]) ** 2)

    return params, direction, partial(loss_of, support), partial(loss_of, query)


def _query_loss(maml, model, loss_of, query_loss, params):
    adapted = adapt(maml, model, params, loss_of, jax.random.key(0), maml.steps)
    return query_loss(partial(model.apply, adapted), None)


def _move(params, direction, size):
    return jax.tree.map(lambda p, d: p + size * d, params, direction)


def _slope(gradient, direction):
    return sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_second_order_meta_gradient_equals_finite_differences(model, steps):
    with jax.enable_x64(True):
        params, direction, loss_of, query_loss = _problem(model, jax.random.key(steps))
        loss = partial(_query_loss, MAML(0.05, steps), model, loss_of, query_loss)
        slope = _slope(jax.grad(loss)(params), direction)
        h = 1e-5
        numeric = (loss(_move(params, direction, h)) - loss(_move(params, direction, -h))) / (2 * h)
        np.testing.assert_allclose(slope, numeric, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_first_order_meta_gradient_is_the_gradient_at_the_adapted_weights(model, steps):
    with jax.enable_x64(True):
        params, direction, loss_of, query_loss = _problem(model, jax.random.key(steps))
        maml = MAML(0.05, steps, first_order=True)
        slope = _slope(jax.grad(partial(_query_loss, maml, model, loss_of, query_loss))(params), direction)
        path = adaptation_path(maml, model, params, loss_of, jax.random.key(0), steps, observe=lambda p: p)
        adapted = jax.tree.map(lambda leaf: leaf[-1], path)
        h = 1e-5
        up, down = (query_loss(partial(model.apply, _move(adapted, direction, s)), None) for s in (h, -h))
        np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6)
        second_order = jax.grad(partial(_query_loss, MAML(0.05, steps), model, loss_of, query_loss))(params)
        assert abs(slope - _slope(second_order, direction)) > 1e-3 * abs(slope)  # the two do differ


@pytest.mark.parametrize("steps", [1, 2])
def test_adapt_and_the_path_agree_with_gradient_descent_by_hand(model, steps):
    with jax.enable_x64(True):
        params, _, loss_of, query_loss = _problem(model, jax.random.key(7))
        by_hand = params
        losses = [query_loss(partial(model.apply, params), None)]
        for _ in range(steps):
            gradient = jax.grad(lambda p: loss_of(partial(model.apply, p), None))(by_hand)
            by_hand = _move(by_hand, gradient, -0.05)
            losses.append(query_loss(partial(model.apply, by_hand), None))
        maml = MAML(0.05, steps)
        np.testing.assert_allclose(_query_loss(maml, model, loss_of, query_loss, params), losses[-1], rtol=1e-12)
        path = adaptation_path(
            maml,
            model,
            params,
            loss_of,
            jax.random.key(0),
            steps,
            observe=lambda p: query_loss(partial(model.apply, p), None),
        )
        np.testing.assert_allclose(path, losses, rtol=1e-12)


def test_a_step_is_kept_in_factors_only_where_they_are_smaller():
    model = MLP([4, 16, 16], "relu", jax.nn.initializers.lecun_normal())
    params = model.init(jax.random.key(0), jnp.zeros(1))
    x = jnp.ones((ROWS, 1))
    stepped = model.factored_step(params, lambda predict, _: jnp.sum(predict(x)), jax.random.key(0), 0.1, False)
    assert stepped is not None
    # Rows 3: 1x4 needs 15 numbers against 4, 4x16 60 against 64, 16x16 96 against 256, 16x1 51 against 16.
    assert [isinstance(layer, SteppedDense) for layer in stepped] == [False, True, True, False]


def test_a_loss_of_several_calls_falls_back_to_the_plain_step():
    model = MLP([16, 16], "tanh", jax.nn.initializers.lecun_normal())
    params = model.init(jax.random.key(0), jnp.zeros(1))
    x = jnp.linspace(-1, 1, ROWS)[:, None]

    def twice(predict, _):
        return jnp.mean(predict(x) ** 2) + jnp.mean(predict(2 * x) ** 2)

    assert model.factored_step(params, twice, jax.random.key(0), 0.1, False) is None
    adapted = adapt(MAML(0.1, 1), model, params, twice, jax.random.key(0), 1)
    gradient = jax.grad(lambda p: twice(partial(model.apply, p), None))(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), adapted, _move(params, gradient, -0.1))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_a_learning_rate_must_be_positive(rate):
    with pytest.raises(ValueError, match=r"greater than 0|finite"):
        MAML(rate, 1)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_learning_rate_decays_over_the_inner_steps(model, steps):
    with jax.enable_x64(True):
        params, _, loss_of, query_loss = _problem(model, jax.random.key(3))
        maml = MAML(0.05, steps, decay=0.5)
        adapted = adapt(maml, model, params, loss_of, jax.random.key(0), steps)
        by_hand = params
        for k in range(steps):
            gradient = jax.grad(lambda p: loss_of(partial(model.apply, p), None))(by_hand)
            by_hand = jax.tree.map(lambda p, g, rate=0.05 * 0.5**k: p - rate * g, by_hand, gradient)
        losses = [query_loss(partial(model.apply, p), None) for p in (adapted, by_hand)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
        path = adaptation_path(maml, model, params, loss_of, jax.random.key(0), steps, observe=lambda p: p)
        last = jax.tree.map(lambda leaf: leaf[-1], path)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), last, by_hand)


def test_without_decay_the_program_is_that_of_a_constant_rate(model):
    with jax.enable_x64(True):
        params, _, loss_of, _ = _problem(model, jax.random.key(3))

        def program(maml):
            text = str(jax.make_jaxpr(lambda p: adapt(maml, model, p, loss_of, jax.random.key(0), 3))(params))
            return re.sub(r"0x\w+", "", text)  # addresses of functions

        assert program(MAML(0.05, 3, decay=1.0)) == program(MAML(0.05, 3))
        assert program(MAML(0.05, 3, decay=0.5)) != program(MAML(0.05, 3))
