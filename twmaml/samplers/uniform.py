"""Uniform sampling."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.samplers.base import Sampler
from twmaml.space.priority_queue import PriorityQueue
from twmaml.types import Step


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Uniform(Sampler):
    """p = 1/N: every cell alike; the queue is kept but not used."""

    def probabilities(self, queue: PriorityQueue, step: Step) -> Float[Array, " cells"]:
        """1/N."""
        del step
        return jnp.full(queue.losses.shape, 1 / queue.losses.size)
