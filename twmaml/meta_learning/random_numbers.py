"""Random numbers of the loop: JAX's own generator, bit by bit the same, in a form that is faster on a CPU."""

import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Key, UInt, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def loop_key(seed: int | UInt32[Array, ""]) -> Key[Array, ""]:
    """The key that all randomness of a run follows from: that of `jax.random.key`, and so are all numbers drawn by it.

    On a CPU its generator is written out: JAX's runs a loop of five trips for every draw, which in a step as short as
    ours is a tenth of the time.
    """
    return jax.random.key(seed, impl=_generator())


def as_loop_key(data: UInt32[Array | np.ndarray, "*runs 2"]) -> Key[Array, "*runs"]:
    """The keys whose data (`jax.random.key_data`) was saved."""
    return jax.random.wrap_key_data(jnp.asarray(data), impl=_generator())


def _generator() -> Hashable | None:
    return _WRITTEN_OUT if jax.default_backend() == "cpu" else None


@jax.jit  # so that the text of a program holds it once for each shape
def _threefry(
    key: UInt32[Array, "2"], high: UInt32[Array, "*shape"], low: UInt32[Array, "*shape"]
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Threefry-2x32 with 20 rounds.

    References:
        Salmon, Moraes, Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3, section 4.2.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = high + keys[0], low + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    # Once, not in everything that reads them.
    return jax.lax.optimization_barrier((x, y))


def _counters(shape: tuple[int, ...]) -> tuple[Array, Array]:
    if math.prod(shape) >= 2**32:
        raise ValueError(f"at most 2**32 - 1 random numbers can be drawn at once. Got shape {shape}")
    low = jax.lax.iota(np.uint32, math.prod(shape)).reshape(shape)
    return jnp.zeros_like(low), low


def _seed(seed: Array) -> UInt32[Array, "2"]:
    wide = jnp.asarray(seed)
    high = jax.lax.shift_right_logical(wide, jnp.asarray(32, wide.dtype)) if wide.dtype.itemsize == 8 else 0
    return jnp.stack([jnp.asarray(high, jnp.uint32), wide.astype(jnp.uint32)])


def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "*shape 2"]:
    return jnp.stack(_threefry(key, *_counters(shape)), axis=-1)


def _fold_in(key: UInt32[Array, "2"], data: int | Array) -> UInt32[Array, "2"]:
    return jnp.stack(_threefry(key, jnp.uint32(0), jnp.asarray(data).astype(jnp.uint32)))


def _random_bits(key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]) -> UInt[Array, "*shape"]:
    high, low = _threefry(key, *_counters(shape))
    if bit_width == 64:
        return (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


_WRITTEN_OUT: Hashable = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_written_out",
    tag="fry",
)
