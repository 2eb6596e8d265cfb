"""The tasks of a meta-batch, shared among devices."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class TaskShare(NamedTuple):
    """The part of a meta-batch that one device computes; of several, inside a mesh with an axis `tasks`."""

    tasks: int
    devices: int

    def own(self, batch: Any) -> Any:
        """The part of arrays with a leading axis of tasks that is this device's; the last devices' parts are padded."""
        if self.devices == 1:
            return batch
        return jax.tree.map(lambda leaf: leaf[self._index() % self.tasks], batch)

    def weights(self, weights: Float[Array, " tasks"]) -> Float[Array, " share"]:
        """The same part of the weights; padding counts for nothing."""
        if self.devices == 1:
            return weights
        return jnp.where(self._index() < self.tasks, weights[self._index() % self.tasks], 0)

    def gather(self, parts: Any) -> Any:
        """The arrays of all tasks, from every device's part."""
        if self.devices == 1:
            return parts
        return jax.tree.map(lambda leaf: leaf[: self.tasks], jax.lax.all_gather(parts, "tasks", tiled=True))

    def total(self, sums: Any) -> Any:
        """The sum over all tasks, from every device's."""
        return sums if self.devices == 1 else jax.lax.psum(sums, "tasks")

    def _index(self) -> Array:
        share = math.ceil(self.tasks / self.devices)
        return jax.lax.axis_index("tasks") * share + jnp.arange(share)
