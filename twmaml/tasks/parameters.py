"""The parameters of a task, as the fields of a dataclass say them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from twmaml.space.axis import Axis, Nuisance
from twmaml.space.grid import ParameterGrid

Parameters = dict[str, Any]
"""All parameters of a task by name, a number each; angles in radians."""


class Parametrised:
    """A frozen dataclass whose fields are the parameters of a task.

    A field is one axis of the grid if it is given as an axis (`Interval`, `Segments`), redrawn for each task if it is
    a `Nuisance`, otherwise fixed.
    """

    @property
    def grid(self) -> ParameterGrid:
        """One axis for each parameter that varies."""
        return ParameterGrid({name: value for name, value in vars(self).items() if isinstance(value, Axis)})

    def parameters(self, key: Key[Array, ""], task: Float[Array, " axes"]) -> Parameters:
        """All parameters of a task: those of the grid, those drawn anew, and the fixed ones."""
        drawn = {
            name: jax.random.uniform(jax.random.fold_in(key, i), (), jnp.float32, n.low * n.scale, n.high * n.scale)
            for i, (name, n) in enumerate(self._nuisances().items())
        }
        return {**vars(self), **drawn, **dict(zip(self.grid.names, task, strict=True))}

    def parameters_of(self, task: Mapping[str, float]) -> Parameters:
        """All parameters of a task that a user names.

        Args:
            task: every parameter that varies, in its configured unit.

        Raises:
            ValueError: if one is missing, or there is no such.
        """
        varying = {**self.grid.axes, **self._nuisances()}
        if {*task} != {*varying}:
            raise ValueError(f"a task needs {', '.join(varying)}. Got {', '.join(task) or 'nothing'}")
        return {**vars(self), **{name: jnp.float32(task[name] * varying[name].scale) for name in varying}}

    def largest(self, name: str) -> float:
        """The largest absolute value that a parameter can have."""
        return max(map(abs, self._ends(name)))

    def smallest(self, name: str) -> float:
        """The smallest value that a parameter can have."""
        return min(self._ends(name))

    def _ends(self, name: str) -> list[float]:
        value = getattr(self, name)
        if isinstance(value, Axis):
            with jax.ensure_compile_time_eval():  # it may be asked for inside a program
                return np.asarray(value.ends(jnp.array([0.0, 1.0])).value).tolist()
        return [value.low * value.scale, value.high * value.scale] if isinstance(value, Nuisance) else [value]

    def _nuisances(self) -> dict[str, Nuisance]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Nuisance)}
