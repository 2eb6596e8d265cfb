"""Convolutional networks: both forms of a convolution are one, and what normalisation makes depend on what."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twmaml.adaptation.base import adapt
from twmaml.adaptation.maml import MAML
from twmaml.models.base import Model
from twmaml.models.conv4 import Conv4
from twmaml.models.convolution import convolve, max_pool
from twmaml.models.resnet12 import ResNet12

NETWORKS: dict[str, Any] = {
    "stride": Conv4(filters=3, outputs=4, layers=2),
    "max_pool": Conv4(filters=3, outputs=4, downsample="max_pool", features="flatten", layers=2),
    "resnet12": ResNet12(filters=[3], outputs=4),
}


@pytest.mark.parametrize(
    ("height", "width", "channels", "size", "stride"),
    [(28, 28, 1, 3, 2), (7, 4, 3, 3, 1), (5, 6, 2, 1, 1), (5, 9, 1, 5, 3), (1, 2, 4, 2, 2), (4, 4, 2, 3, 3)],
)
def test_the_product_over_patches_is_the_librarys_convolution(height, width, channels, size, stride):
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.normal(size=(2, height, width, channels)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(size, size, channels, 3)), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")
    librarys = jax.lax.conv_general_dilated(inputs, kernel, (stride, stride), "SAME", dimension_numbers=numbers)
    ours = convolve(inputs, kernel, stride, "float32")
    assert ours.shape == librarys.shape
    np.testing.assert_allclose(ours, librarys, atol=1e-5, rtol=1e-5)


def test_half_precision_is_near_and_comes_back_single():
    random = np.random.default_rng(0)
    inputs, kernel = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((2, 6, 6, 3), (3, 3, 3, 4)))
    whole, half = (convolve(inputs, kernel, 1, precision) for precision in ("float32", "bfloat16"))
    assert half.dtype == jnp.float32
    assert 0 < jnp.max(jnp.abs(whole - half)) < 0.3


def test_pooling_takes_the_largest_of_four():
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 3)), jnp.float32)
    pooled = max_pool(inputs)
    assert pooled.shape == (2, 2, 2, 3)
    assert pooled[1, 1, 0, 2] == inputs[1, 2:4, 0:2, 2].max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_only_with_batch_statistics_does_a_prediction_depend_on_other_images(name, norm):
    model = type(NETWORKS[name])(**{**vars(NETWORKS[name]), "norm": norm})
    images = jax.random.normal(jax.random.key(0), (5, 16, 16, 2))
    params = jax.jit(model.init)(jax.random.key(1), images[0])
    assert ("(transductive)" in model.protocol) == (norm == "batch")
    apply = jax.jit(model.apply)
    alone, together = apply(params, images[:3]), apply(params, images)[:3]
    assert together.shape == (3, 4)
    assert isinstance(model, Model)
    assert np.allclose(alone, together, atol=1e-4) == (norm == "layer")


def test_what_is_no_image_or_too_small_is_refused():
    for model, shape in ((Conv4(), (1,)), (Conv4(downsample="max_pool"), (15, 28, 1)), (ResNet12(), (8, 8, 3))):
        with pytest.raises(ValueError, match=r"takes images"):
            model.init(jax.random.key(0), jnp.zeros(shape))
    Conv4().init(jax.random.key(0), jnp.zeros((2, 2, 1)))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_counts(name):
    model = NETWORKS[name]
    images = jax.random.normal(jax.random.key(0), (5, 16, 16, 2))
    params = jax.jit(model.init)(jax.random.key(1), images[0])
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(model.apply(params, images) ** 3)))(params)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_meta_gradient_equals_finite_differences(name):
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (2, 6, 8, 8, 1), jnp.float64)
        labels = jnp.arange(6) % 4
        model = NETWORKS[name]
        params = jax.tree.map(lambda p: p.astype(jnp.float64), jax.jit(model.init)(jax.random.key(1), images[0, 0]))
        direction = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape, p.dtype), params)

        def loss_of(images, predict, _):
            return -jnp.mean(jax.nn.log_softmax(predict(images))[jnp.arange(6), labels])

        def meta_loss(size):
            moved = jax.tree.map(lambda p, d: p + size * d, params, direction)
            adapted = adapt(MAML(0.1, 2), model, moved, partial(loss_of, images[0]), jax.random.key(0), 2)
            return loss_of(images[1], partial(model.apply, adapted), None)

        meta_loss, h = jax.jit(meta_loss), 1e-6
        numeric = (meta_loss(h) - meta_loss(-h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(meta_loss)(0.0), numeric, rtol=1e-5, atol=1e-8)
