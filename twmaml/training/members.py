"""The runs that share programs: their parts, what sets them apart, and the devices that they are on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from twmaml.samplers.base import Sampler
from twmaml.training.devices import beside, everywhere, shard_runs
from twmaml.training.one_of import OneOf
from twmaml.training.parts import Parts


class Own(NamedTuple):
    """Whatever sets a run of a group apart from the others; those of all runs have a leading axis of runs."""

    sampler: Int[Array, ""]
    """The index of its sampler."""
    numbers: Mapping[str, Float[Array, ""]]
    """Numbers of the parts that all runs share, by key."""
    of_samplers: tuple[Mapping[str, Float[Array, ""]], ...]
    """Numbers of every sampler; only those of the run's own count."""


class Group:
    """The runs that share programs: their parts, their samplers, and where they stand in arrays of all runs.

    Where the devices do not divide the runs, the last run is repeated: states have more rows than there are runs.

    Args:
        parts: of each run; but for the sampler those of the first run are everybody's. Runs of one sampler should have
            the same object.
        seeds: of each run.
        numbers: of each run, instead of those in the parts, by key.
    """

    def __init__(self, parts: Sequence[Parts], seeds: Sequence[int], numbers: Sequence[Mapping[str, float]]) -> None:
        self.parts = parts[0]
        self.sharding = shard_runs(len(seeds), self.parts.learner.task_devices)
        self.judging = beside(self.sharding)  # where evaluations are computed
        self.rows = [*range(len(seeds)), *[len(seeds) - 1] * (-len(seeds) % self.sharding.mesh.shape["runs"])]
        self._of_samplers = list({id(each.learner.sampler): each for each in parts}.values())
        place = {id(each.learner.sampler): index for index, each in enumerate(self._of_samplers)}
        self.members = [place[id(each.learner.sampler)] for each in parts]
        self.seeds = np.array(seeds, np.uint32)[self.rows]
        rows = jax.tree.map(lambda *runs: np.array(runs)[self.rows], *self._own(numbers))
        self.own: Own = self.put(rows)
        self.own_judged: Own = jax.device_put(self.own, self.judging)
        self.data = self._put_data()

    def _own(self, numbers: Sequence[Mapping[str, float]]) -> list[Own]:
        """Whatever sets each run apart."""
        of_parts, of_samplers = (
            [{k: jnp.float32(n) for k, n in each.items() if k.startswith("sampler.") == own} for each in numbers]
            for own in (False, True)
        )
        # Of the samplers of other runs any numbers will do.
        any_of = [of_samplers[self.members.index(member)] for member in range(len(self._of_samplers))]
        return [
            Own(jnp.int32(member), of_parts[run], (*any_of[:member], of_samplers[run], *any_of[member + 1 :]))
            for run, member in enumerate(self.members)
        ]

    def _put_data(self) -> dict[str, Any]:
        """The data of training and of every split on the devices that need it, each array once."""
        placed: dict[int, dict[NamedSharding, Any]] = {}

        def put(sharding: NamedSharding, leaf: Any) -> Any:
            copies = placed.setdefault(id(leaf), {})
            if sharding not in copies:
                # A client takes the memory of another's array for its own if NumPy says where it is.
                copies[sharding] = jax.device_put(np.asarray([*copies.values(), leaf][0]), sharding)
            return copies[sharding]

        return {
            name: jax.tree.map(partial(put, everywhere(self.sharding if name == "train" else self.judging)), data)
            for name, data in self.parts.data.items()
        }

    @property
    def samplers(self) -> list[Sampler]:
        """The samplers, which several runs may have."""
        return [each.learner.sampler for each in self._of_samplers]

    def parts_of(self, own: Own) -> Parts:
        """The parts of a run that may be traced."""
        parts = self.parts.with_numbers(own.numbers)
        samplers = [
            each.with_numbers(numbers).learner.sampler
            for each, numbers in zip(self._of_samplers, own.of_samplers, strict=True)
        ]
        return replace(parts, learner=replace(parts.learner, sampler=OneOf(samplers, own.sampler)))

    def put(self, rows: Any) -> Any:
        """Arrays of all runs, spread over the devices."""
        return jax.device_put(rows, self.sharding)
