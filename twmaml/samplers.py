"""The samplers: rules that turn the queue into a distribution over cells, and the draw from it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from twmaml.grid import ParameterGrid
from twmaml.priority_queue import PriorityQueue
from twmaml.types import PositiveReal, Schedule, Step

Fraction = Annotated[float, Field(ge=0, le=1)]


class Draw(NamedTuple):
    """The tasks of one meta-batch, their cells, and the weights of their losses."""

    tasks: Float[Array, "tasks axes"]
    cells: Int[Array, " tasks"]
    weights: Float[Array, " tasks"]


class Sampler(ABC):
    """A distribution over cells. A new sampler is a frozen dataclass with `probabilities`, and nothing else."""

    importance: bool = False
    """Whether losses are weighted so that the gradient is that of uniform sampling in expectation."""
    interpolate: bool = False
    """Whether tasks come from the interpolated distribution instead of uniformly from the drawn cell."""

    @abstractmethod
    def probabilities(self, queue: PriorityQueue, step: Step) -> Float[Array, " cells"]:
        """The probability of every cell; they sum to 1."""

    def metrics(self, step: Step) -> Mapping[str, Array]:
        """What the sampler wants logged, as `sampler/<name>`."""
        del step
        return {}

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, queue: PriorityQueue, step: Step, n: int) -> Draw:
        """`n` independent tasks from the distribution.

        The weight of a task is the uniform density over the density it was drawn with, or 1 without
        `importance`; its mean over draws is 1.
        """
        key_cells, key_tasks = jax.random.split(key)
        p = self.probabilities(queue, step)
        cells = draw_cells(key_cells, p, n)
        if self.interpolate:
            tasks = grid.sample_around(key_tasks, cells)
            cells = grid.locate(tasks)
            density = grid.interpolate(p, tasks)
        else:
            tasks = grid.sample_in(key_tasks, cells)
            density = p[cells]
        weights = 1 / (grid.size * density) if self.importance else jnp.ones(n)
        return Draw(tasks, cells, weights)


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Uniform(Sampler):
    """p = 1/N: every cell alike; the queue is kept but not used."""

    def probabilities(self, queue: PriorityQueue, step: Step) -> Float[Array, " cells"]:
        """1/N."""
        del step
        return jnp.full(queue.losses.shape, 1 / queue.losses.size)


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class EpsilonGreedy(Sampler):
    """p = ε/N + (1-ε)/M on the M cells of the largest loss, ε/N elsewhere.

    Args:
        epsilon: a number in [0, 1], or an optax schedule of the meta-step with values there.
        burn_in: first visit every cell: while some are unvisited, p is uniform over those.
        initial: priority of unvisited cells; if not given, the mean of the visited ones.
    """

    epsilon: Any
    burn_in: bool = False
    initial: PositiveReal | None = None

    def __post_init__(self) -> None:
        if isinstance(self.epsilon, str) or not (callable(self.epsilon) or isinstance(self.epsilon, int | float)):
            raise ValueError(f"epsilon must be a number in [0, 1] or an optax schedule. Got {self.epsilon!r}")
        if callable(self.epsilon):
            steps = np.concatenate([[0], np.geomspace(1, 2**31 - 1, 5000).astype(np.int32)])
            values = np.broadcast_to(np.asarray(self.epsilon(steps), float), steps.shape)
        else:
            values = np.array([self.epsilon], float)
        outside = values[~((values >= 0) & (values <= 1))]
        if outside.size:
            raise ValueError(f"epsilon must lie in [0, 1]. Got {outside[0]:g}")

    @property
    def schedule(self) -> Schedule:
        """ε as a function of the meta-step."""
        return self.epsilon if callable(self.epsilon) else lambda step: jnp.float32(self.epsilon)

    def probabilities(self, queue: PriorityQueue, step: Step) -> Float[Array, " cells"]:
        """ε-greedy over the losses; during the burn-in uniform over the unvisited cells."""
        cells = queue.losses.size
        priority = _fill_unknown(queue.losses, self.initial)
        largest = priority == jnp.max(priority)
        epsilon = self.schedule(step)
        p = epsilon / cells + (1 - epsilon) * largest / jnp.sum(largest)
        if self.burn_in:
            unvisited = queue.visits == 0
            p = jnp.where(jnp.any(unvisited), unvisited / jnp.maximum(jnp.sum(unvisited), 1), p)
        return p

    def metrics(self, step: Step) -> Mapping[str, Array]:
        """ε."""
        return {"epsilon": jnp.asarray(self.schedule(step), jnp.float32)}


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Proportional(Sampler):
    """p = (1-f) priority/Σpriority + f/N with uniform fraction f; weight (1/N)/p <= 1/f with `importance`.

    Args:
        signal: the priority of a cell: its latest loss, or the latest absolute change of its loss.
        importance: weight the losses by (1/N)/p, so that the expected gradient is that of uniform sampling.
        uniform_fraction: f; 0 is the predecessor's rule, whose weights have no bound.
        interpolate: draw tasks from the multilinear interpolation of the distribution between the
            cells' centres, instead of uniformly inside the drawn cell.
        initial: priority of cells of which the signal is unknown yet; if not given, the mean of the known ones.
    """

    signal: Literal["losses", "deltas"]
    importance: bool
    uniform_fraction: Fraction = 0.1
    interpolate: bool = False
    initial: PositiveReal | None = None

    def probabilities(self, queue: PriorityQueue, step: Step) -> Float[Array, " cells"]:
        """Proportional to the signal, over a uniform floor; uniform where all priorities are zero."""
        del step
        priority = _fill_unknown(getattr(queue, self.signal), self.initial)
        cells, total = priority.size, jnp.sum(priority)
        share = jnp.where(total > 0, priority / total, 1 / cells)
        return (1 - self.uniform_fraction) * share + self.uniform_fraction / cells


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


def _fill_unknown(signal: Float[Array, " cells"], initial: float | None) -> Float[Array, " cells"]:
    """The signal, with the initial priority, or the mean of the known cells, where it is NaN."""
    unknown = jnp.isnan(signal)
    signal = jnp.minimum(jnp.where(unknown, 0, signal), 1e30)  # no sum over cells can overflow
    if initial is None:
        known = signal.size - jnp.sum(unknown)
        fill = jnp.where(known > 0, jnp.sum(signal) / jnp.maximum(known, 1), 1)
    else:
        fill = jnp.float32(initial)
    return jnp.where(unknown, fill, signal)


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
    return block * width + _find(_thresholds(blocks[block]), cell_bits)


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
