"""Exact draws of cells from a distribution."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32


def is_distribution(p: Float[Array, " cells"]) -> Bool[Array, ""]:
    """Whether no probability is negative or NaN and they sum to 1, up to what rounding may do to many."""
    return jnp.all(p >= 0) & (jnp.abs(jnp.sum(p) - 1) < 0.01)


def draw_cells(key: Key[Array, ""], p: Float[Array, " cells"], n: int) -> Int[Array, " tasks"]:
    """`n` independent cells from the distribution p, which need not be normalised.

    Two levels, each with its own random number: first a block of about √N cells, then a cell of the block. Both are
    drawn by 31-bit integers, whose cumulative sum is exact, so that every cell of positive probability has
    an interval of its own. A cumulative sum of floats over 10⁶ cells loses 4 % of them.
    """
    width = math.isqrt(p.size - 1) + 1
    blocks = jnp.pad(p, (0, -p.size % width)).reshape(-1, width)
    block_bits, cell_bits = jax.random.bits(key, (2, n, 1), jnp.uint32)
    block = _find(_thresholds(jnp.sum(blocks, axis=1)), block_bits)
    return block * width + draw_in_each(cell_bits, blocks[block])


def draw_in_each(bits: UInt32[Array, "tasks 1"], p: Float[Array, "tasks choices"]) -> Int[Array, " tasks"]:
    """A choice from each of several distributions, which need not be normalised, by a random number for each."""
    return _find(_thresholds(p), bits)


def _thresholds(p: Float[Array, "*tasks choices"]) -> UInt32[Array, "*tasks choices"]:
    """The cumulative distribution in integers: strictly increasing wherever p is positive."""
    share = p / jnp.sum(p, axis=-1, keepdims=True)
    # Rounded up: a positive share is at least 1, and all shares together stay below 2**32.
    return jnp.cumsum(jnp.ceil(share * 2.0**31).astype(jnp.uint32), axis=-1)


def _find(thresholds: UInt32[Array, "*tasks choices"], bits: UInt32[Array, "tasks 1"]) -> Int[Array, " tasks"]:
    """The index on which each random number falls, in the one distribution or in one for each number."""
    number = _high_product(bits, thresholds[..., -1:])
    return jnp.sum(thresholds <= number, axis=-1, dtype=jnp.int32)


def _high_product(a: UInt32[Array, "..."], b: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """floor(a * b / 2**32), without 64-bit integers: for random bits a, a number from 0 ... b - 1."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a_high * b_low + ((a_low * b_low) >> 16)
    return a_high * b_high + (middle >> 16) + ((a_low * b_high + (middle & 0xFFFF)) >> 16)
