"""Several samplers in one program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from twmaml.samplers.base import Draw, Sampler
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import PriorityQueue
from twmaml.types import Step


@plain_dataclass(frozen=True)
class OneOf(Sampler):
    """One of several samplers, chosen by a number that may be traced: so runs of different samplers share a program.

    What they give has the same types whichever is chosen, as numbers of 32 bits.

    Args:
        samplers: to choose from.
        index: of the one that draws.
    """

    samplers: Sequence[Sampler]
    index: Int[Array, ""]

    def probabilities(self, queue: PriorityQueue, step: Step) -> Float[Array, " cells"]:
        """Those of the chosen one."""

        def probabilities_of(sampler: Sampler) -> Callable[..., Array]:
            return lambda queue, step: jnp.float32(sampler.probabilities(queue, step))

        return jax.lax.switch(self.index, [probabilities_of(each) for each in self.samplers], queue, step)

    def metrics(self, step: Step) -> Mapping[str, Array]:
        """What any of them wants logged; NaN where the chosen one does not."""
        names = {name for each in self.samplers for name in each.metrics(step)}

        def metrics_of(sampler: Sampler) -> Callable[[Step], dict[str, Array]]:
            return lambda step: {name: jnp.float32(sampler.metrics(step).get(name, jnp.nan)) for name in names}

        return jax.lax.switch(self.index, [metrics_of(each) for each in self.samplers], step)

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, queue: PriorityQueue, step: Step, n: int) -> Draw:
        """The draw of the chosen one."""

        def draws_of(sampler: Sampler) -> Callable[..., Draw]:
            def draw(key: Key[Array, ""], queue: PriorityQueue, step: Step) -> Draw:
                tasks, cells, weights = sampler.draw(key, grid, queue, step, n)
                return Draw(jnp.float32(tasks), jnp.int32(cells), jnp.float32(weights))

            return draw

        return jax.lax.switch(self.index, [draws_of(each) for each in self.samplers], key, queue, step)
