"""The task-parameter space cut into equal cells, and the way from a cell to a task and back."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from twmaml.space.axis import Axis, Ends


class ParameterGrid:
    """The product of several axes; a cell is a flat index in row-major order.

    Args:
        axes: the axes by name, slowest-varying first.
    """

    def __init__(self, axes: Mapping[str, Axis]) -> None:
        if not axes:
            raise ValueError("at least one task parameter must be an axis, otherwise there is only one task")
        self.axes = dict(axes)
        self.shape = tuple(axis.cells for axis in self.axes.values())
        self.size = math.prod(self.shape)
        if self.size > np.iinfo(np.int32).max:
            raise ValueError(f"a grid may have at most 2**31 - 1 cells. Got {self.size}, shape {self.shape}")
        self.continuous = all(axis.continuous for axis in self.axes.values())

    @property
    def scale(self) -> Float[np.ndarray, " axes"]:
        """Configured units inside a task, of each axis: radians for degrees."""
        return np.array([axis.scale for axis in self.axes.values()], np.float32)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the task parameters, in the order of a task's entries."""
        return tuple(self.axes)

    def with_cells(self, cells: Sequence[int]) -> "ParameterGrid":
        """The same ranges cut into other numbers of cells.

        Raises:
            ValueError: if there is not one positive number for each axis.
        """
        if len(cells) != len(self.axes):
            raise ValueError(f"needs one number for each of the axes {', '.join(self.axes)}. Got {list(cells)}")
        pairs = zip(self.axes.items(), cells, strict=True)
        return ParameterGrid({name: axis.with_cells(n) for (name, axis), n in pairs})

    def evaluation_grid(self) -> "ParameterGrid":
        """The grid of the evaluation tasks that the axes ask for."""
        return self.with_cells([axis.cells_in_evaluation for axis in self.axes.values()])

    def at(self, position: Float[Array, "tasks axes"]) -> Float[Array, "tasks axes"]:
        """The tasks at positions, which run from 0 to 1 along each axis."""
        pieces = [axis.ends(position[:, i]) for i, axis in enumerate(self.axes.values())]
        # One operation over all axes: what a program makes of each number does not depend on the others' kinds.
        columns = (
            [jnp.broadcast_to(part, position.shape[:1]) for part in parts] for parts in zip(*pieces, strict=True)
        )
        return Ends(*(jnp.stack(column, axis=1) for column in columns)).value

    def position(self, tasks: Float[Array, "tasks axes"]) -> Float[Array, "tasks axes"]:
        """The inverse of `at`; outside of 0 ... 1 for a task outside of the range."""
        return jnp.stack([axis.position(tasks[:, i]) for i, axis in enumerate(self.axes.values())], axis=1)

    def centres(self) -> Float[Array, "cells axes"]:
        """The task at the centre of every cell."""
        return self._place(jnp.arange(self.size, dtype=jnp.int32), jnp.float32(0.5))

    def sample_in(self, key: Key[Array, ""], cells: Int[Array, " tasks"]) -> Float[Array, "tasks axes"]:
        """Tasks drawn uniformly inside the given cells."""
        offset = jax.random.uniform(key, (cells.shape[0], len(self.shape)))
        if not self.continuous:
            offset = jnp.where(jnp.array([axis.continuous for axis in self.axes.values()]), offset, 0.5)
        return self._place(cells, offset)

    def sample_around(self, key: Key[Array, ""], cells: Int[Array, " tasks"]) -> Float[Array, "tasks axes"]:
        """Tasks drawn from the hat functions of the given cells, folded back at the ends of the range.

        A hat falls linearly from the centre of its cell to the centres of the neighbours. The hats add up to
        one everywhere, so a cell drawn in proportion to its value, followed by this, is an exact draw from
        the multilinear interpolation of the values (`interpolate`).
        """
        first, second = jax.random.uniform(key, (2, cells.shape[0], len(self.shape)))
        position = self._unravel(cells) + first + second - 0.5
        shape = jnp.array(self.shape, jnp.float32)
        folded = jnp.where(position < 0, -position, position)
        folded = jnp.where(folded > shape, 2 * shape - folded, folded)
        return self.at(folded / shape)

    def locate(self, tasks: Float[Array, "tasks axes"]) -> Int[Array, " tasks"]:
        """The cell that holds each task; a task outside belongs to the nearest cell."""
        inside = jnp.floor(self._position(tasks)).astype(jnp.int32)
        index = jnp.clip(inside, 0, jnp.array(self.shape, jnp.int32) - 1)
        return self._ravel(index)

    def interpolate(
        self, value: Callable[[Int[Array, " tasks"]], Float[Array, " tasks"]], tasks: Float[Array, "tasks axes"]
    ) -> Float[Array, " tasks"]:
        """Multilinear interpolation of the values of cells at their centres; constant beyond the outermost centres."""
        position = self._position(tasks) - 0.5
        below = jnp.floor(position)
        fraction = position - below
        total = jnp.zeros(tasks.shape[0])
        for corner in np.ndindex(*(2,) * len(self.shape)):
            upper = jnp.array(corner, jnp.int32)
            index = jnp.clip(below.astype(jnp.int32) + upper, 0, jnp.array(self.shape, jnp.int32) - 1)
            share = jnp.prod(jnp.where(upper == 1, fraction, 1 - fraction), axis=1)
            total = total + share * value(self._ravel(index))
        return total

    def _unravel(self, cells: Int[Array, " tasks"]) -> Float[Array, "tasks axes"]:
        return jnp.stack(jnp.unravel_index(cells, self.shape), axis=1).astype(jnp.float32)

    def _ravel(self, index: Int[Array, "tasks axes"]) -> Int[Array, " tasks"]:
        strides = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        return jnp.sum(index * jnp.array(strides, jnp.int32), axis=1, dtype=jnp.int32)

    def _place(self, cells: Int[Array, " tasks"], offset: Float[Array, "..."]) -> Float[Array, "tasks axes"]:
        return self.at((self._unravel(cells) + offset) / jnp.array(self.shape, jnp.float32))

    def _position(self, tasks: Float[Array, "tasks axes"]) -> Float[Array, "tasks axes"]:
        return self.position(tasks) * jnp.array(self.shape, jnp.float32)
