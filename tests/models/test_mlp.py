from functools import partial

import flax.linen as nn
import hydra
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from twmaml.meta_learning.chunk import train_chunk
from twmaml.models.base import Model
from twmaml.models.mlp import MLP


class LinenNetwork(nn.Module):
    features: int

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(1)(nn.tanh(nn.Dense(self.features)(inputs)))


def test_the_mlp_is_the_network_it_says():
    model = MLP([5, 3], "relu", jax.nn.initializers.lecun_normal(), outputs=2)
    params = model.init(jax.random.key(0), jnp.zeros(4))
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    (w1, b1), (w2, b2), (w3, b3) = ((np.asarray(w), np.asarray(b)) for w, b in params)
    by_hand = np.maximum(np.maximum(x @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)), by_hand, rtol=1e-4, atol=1e-5)
    assert isinstance(model, Model)


def test_biases_start_at_zero_or_are_drawn_as_the_weights_of_their_layer():
    pytorchs = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    zero, drawn = (MLP([2000, 1000], "relu", pytorchs, 500, bias) for bias in ("zero", "as_weights"))
    key, example = jax.random.key(0), jnp.zeros(4)
    for layer, same in zip(drawn.init(key, example), zero.init(key, example), strict=True):
        np.testing.assert_array_equal(layer.weight, same.weight)
        assert not same.bias.any()
        bound = 1 / np.sqrt(layer.weight.shape[0])
        assert stats.kstest(layer.bias, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
        assert not np.isin(layer.bias, layer.weight).all()


def test_an_example_of_any_shape_is_a_vector():
    model = MLP([5], "relu", jax.nn.initializers.lecun_normal(), outputs=2)
    images = jax.random.normal(jax.random.key(0), (7, 4, 3, 1))
    params = model.init(jax.random.key(1), images[0])
    assert params[0].weight.shape == (12, 5)
    flat = model.apply(params, images.reshape(7, 12))
    np.testing.assert_array_equal(model.apply(params, images), flat)
    stepped = model.factored_step(
        params, lambda predict, _: jnp.mean(predict(images) ** 2), jax.random.key(0), 0.1, False
    )
    assert stepped is not None
    plain = jax.grad(lambda params: jnp.mean(model.apply(params, images) ** 2))(params)
    plain = jax.tree.map(lambda p, g: p - 0.1 * g, params, plain)
    np.testing.assert_allclose(model.apply(stepped, images), model.apply(plain, images), rtol=1e-4, atol=1e-5)


def test_a_flax_linen_module_plugs_in_by_its_target(make_learner):
    model = hydra.utils.instantiate({"_target_": "tests.models.test_mlp.LinenNetwork", "features": 16})
    assert isinstance(model, Model)
    learner = make_learner(model=model)
    state = learner.init(0)
    train = jax.jit(partial(train_chunk, learner))
    _, early = train(state, jnp.int32(20))
    state, _ = train(state, jnp.int32(2000))
    _, late = train(state, jnp.int32(100))
    assert late.metrics["train/loss"] < 0.7 * early.metrics["train/loss"]


@pytest.mark.parametrize(
    "changes",
    [{"widths": [0]}, {"widths": ["a"]}, {"activation": "rellu"}, {"outputs": 0}, {"weight_init": 3}, {"bias": "one"}],
)
def test_a_wrong_argument_is_refused(changes):
    arguments = {"widths": [4], "activation": "relu", "weight_init": jax.nn.initializers.zeros, **changes}
    with pytest.raises(ValidationError):
        MLP(**arguments)
