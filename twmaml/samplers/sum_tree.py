"""Totals over sets of cells in a tree, through which a draw finds a cell without a look at all of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from twmaml.samplers.cells import draw_in_each

FAN_OUT = 32
"""Nodes, or cells, below a node."""


class Totals(NamedTuple):
    """Totals of a signal over sets of cells."""

    cells: Int[Array, "*sets"]
    unknown: Int[Array, "*sets"]
    """Cells without a signal yet."""
    total: Float[Array, "*sets"]
    """The sum of the known signals."""
    largest: Float[Array, "*sets"]
    """The largest known signal; minus infinity where none is known."""
    of_largest: Int[Array, "*sets"]
    """Cells that have it."""


Tree = tuple[Totals, ...]
"""The totals of the nodes of each level, the lowest first, in blocks of those with the same parent."""


def totals_of(signal: Float[Array, "*sets"], inside: Bool[Array, "*sets"] | bool = True) -> Totals:
    """The totals of single cells.

    Args:
        signal: of each; NaN where it is not known. What is above 1e30 counts as that, so that no sum can overflow.
        inside: whether it is a cell, and no filling at the end of a block.
    """
    known = inside & ~jnp.isnan(signal)
    signal = jnp.minimum(signal, 1e30)
    return Totals(
        cells=jnp.broadcast_to(jnp.int32(inside), signal.shape),
        unknown=jnp.int32(inside & jnp.isnan(signal)),
        total=jnp.where(known, signal, 0),
        largest=jnp.where(known, signal, -jnp.inf),
        of_largest=jnp.int32(known),
    )


def join(totals: Totals) -> Totals:
    """The totals of the union of the sets along the last axis.

    Sums are taken by halves, in an order that does not depend on the shape: a node is the same number, to the bit,
    wherever it is computed.
    """
    width = totals.total.shape[-1]
    if width == 1:
        return jax.tree.map(lambda each: each[..., 0], totals)
    a, b = (jax.tree.map(lambda each, h=h: each[..., h], totals) for h in (slice(width // 2), slice(width // 2, None)))
    largest = jnp.maximum(a.largest, b.largest)
    of_largest = jnp.where(a.largest == largest, a.of_largest, 0) + jnp.where(b.largest == largest, b.of_largest, 0)
    return join(Totals(a.cells + b.cells, a.unknown + b.unknown, a.total + b.total, largest, of_largest))


def build(signal: Float[Array, " cells"]) -> Tree:
    """The tree over all cells."""
    levels, nodes = [], totals_of(signal)
    while nodes.total.size > FAN_OUT:
        nodes = join(_in_blocks(nodes))
        levels.append(_in_blocks(nodes))
    return tuple(levels)


def _in_blocks(nodes: Totals) -> Totals:
    """Nodes in rows of the same parent, with empty sets at the end."""
    missing = -nodes.total.size % FAN_OUT
    filling = totals_of(jnp.zeros(missing, nodes.total.dtype), inside=False)
    return jax.tree.map(lambda some, none: jnp.concatenate([some, none]).reshape(-1, FAN_OUT), nodes, filling)


def root(tree: Tree) -> Totals:
    """The totals over all cells."""
    return jax.tree.map(lambda each: each[0], join(tree[-1]))


def whole_of(cells: Totals) -> Totals:
    """The same from those of every cell."""
    largest = jnp.max(cells.largest)
    of_largest = jnp.sum(cells.of_largest * (cells.largest == largest))
    return Totals(jnp.int32(cells.total.size), jnp.sum(cells.unknown), jnp.sum(cells.total), largest, of_largest)


def refresh(tree: Tree, signal: Float[Array, " cells"], cells: Int[Array, " tasks"]) -> Tree:
    """The tree after the signal of some cells has changed.

    The nodes above them are summed anew from what is below each, so nothing drifts, and equal cells do no harm.
    """
    levels, node = [], cells // FAN_OUT
    below = leaves(signal, _in_block(node))
    for level in tree:
        place = (node // FAN_OUT, node % FAN_OUT)
        level = jax.tree.map(lambda each, new, at=place: each.at[at].set(new), level, join(below))
        levels.append(level)
        node = node // FAN_OUT
        below = jax.tree.map(lambda each, row=node: each[row], level)
    return tuple(levels)


def leaves(signal: Float[Array, " cells"], cells: Int[Array, "*sets"]) -> Totals:
    """The totals of some cells; of no cell where there is none of that number."""
    return totals_of(signal.at[cells].get(mode="clip"), cells < signal.size)


def _in_block(block: Int[Array, " tasks"]) -> Int[Array, "tasks cells"]:
    return block[:, None] * FAN_OUT + jnp.arange(FAN_OUT)


def draw(
    key: Key[Array, ""],
    tree: Tree,
    signal: Float[Array, " cells"],
    probability: Callable[[Totals], Float[Array, "*sets"]],
    n: int,
) -> Int[Array, " tasks"]:
    """`n` independent cells, each found by going from the root to it, with a random number of its own at every level.

    Args:
        key: of the draw.
        tree: of the signal.
        signal: of every cell.
        probability: of sets of cells, by their totals; it adds up.
        n: how many.
    """
    bits = jax.random.bits(key, (len(tree) + 1, n, 1), jnp.uint32)
    node = jnp.zeros(n, jnp.int32)
    for depth, level in enumerate(reversed(tree)):
        below = jax.tree.map(lambda each, row=node: each[row], level)
        node = node * FAN_OUT + draw_in_each(bits[depth], probability(below))
    return node * FAN_OUT + draw_in_each(bits[-1], probability(leaves(signal, _in_block(node))))
