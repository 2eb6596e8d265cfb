"""The loop's random numbers are JAX's own, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twmaml.meta_learning.random_numbers import as_loop_key, loop_key

DRAWS = {
    "bits": lambda key: jax.random.bits(key, (5, 3)),
    "few bits": lambda key: jax.random.bits(key, (5,), jnp.uint8),
    "uniform": lambda key: jax.random.uniform(key, (7, 2)),
    "normal": lambda key: jax.random.normal(key, ()),
    "permutation": lambda key: jax.random.permutation(key, 9),
    "randint": lambda key: jax.random.randint(key, (4,), 0, 1000),
    "gumbel": lambda key: jax.random.gumbel(key, (3,)),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 2**31 - 1)),
    "vmap": lambda key: jax.vmap(lambda each: jax.random.uniform(each, (2,)))(jax.random.split(key, 3)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_every_draw_is_that_of_jax(draw, seed):
    ours, theirs = (jax.jit(draw)(key_of(jnp.uint32(seed))) for key_of in (loop_key, jax.random.key))
    np.testing.assert_array_equal(ours, theirs)


def test_wide_numbers_are_those_of_jax():
    with jax.enable_x64(True):
        ours, theirs = (jax.random.bits(key, (3,), jnp.uint64) for key in (loop_key(5), jax.random.key(5)))
    np.testing.assert_array_equal(ours, theirs)


def test_a_key_comes_back_from_its_data():
    key = jax.random.split(loop_key(3), 2)
    again = as_loop_key(np.asarray(jax.random.key_data(key)))
    assert again.dtype == key.dtype
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(key))
