"""The loops that the benchmarks time, and how: pinned, compiled as the product does, blocks of all loops in turn."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from typing import Any, NamedTuple

import hydra
import jax
import jax.numpy as jnp
import numpy as np
import optax

from twmaml.configuration.build import Parts, build_parts
from twmaml.configuration.config_files import configuration_folder
from twmaml.configuration.settings import read_settings
from twmaml.meta_learning.chunk import train_chunk
from twmaml.meta_learning.learner import MetaLearner, RunState
from twmaml.samplers.base import Draw
from twmaml.training.devices import TRAINING, compile_program, over_runs, shard_runs
from twmaml.types import Outcome

Block = Callable[[int], None]
"""Runs so many meta-steps and returns when they are done."""

STEPS_A_SECOND = "meta-steps/s"


class Row(NamedTuple):
    """A measure: what, its value in every block, and in which unit."""

    what: str
    values: Sequence[float] | np.ndarray
    unit: str


def pin(cores: int) -> None:
    """Keeps this process to so many cores; has to come before jax starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    jax.config.update("jax_num_cpu_devices", cores)


def own_process(cores: int) -> ProcessPoolExecutor:
    """One new process, pinned to so many cores, that calls what it is given."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=pin, initargs=(cores,))


def clock() -> float:
    """CPU-seconds of this process, as others may share its core; on an accelerator just seconds."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def compose(overrides: Sequence[str]) -> Parts:
    """The job that the command line would build."""
    with hydra.initialize_config_dir(configuration_folder(), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides))
    return build_parts(cfg, read_settings(cfg))


class CompiledLoop:
    """twmaml's own: chunks of meta-steps as one program, for one or several seeds."""

    def __init__(self, parts: Parts, seeds: int = 1) -> None:
        sharding = shard_runs(seeds)
        train = over_runs(lambda state, shared: train_chunk(parts.learner, state, *shared), sharding, reuse=True)
        self._data = jax.tree.map(jnp.asarray, parts.data["train"])
        self._states = jax.device_put(jax.vmap(parts.learner.init)(jnp.arange(seeds, dtype=jnp.uint32)), sharding)
        self._used = jax.tree.map(jnp.copy, self._states)
        shared = (jnp.int32(0), self._data)
        self.program = compile_program(train.lower(self._states, shared, self._used), TRAINING)

    def __call__(self, steps: int) -> None:
        """So many meta-steps of every seed."""
        used, self._used = self._used, self._states
        self._states, chunk = self.program(self._states, (np.int32(steps), self._data), used)
        jax.device_get(chunk)


class TaskByTask(MetaLearner):
    """A learner that has every task's gradient by itself, and its norm for a score."""

    def _meta_gradient(self, state: RunState, key: Any, draw: Draw, data: Any) -> tuple[Any, Outcome, Any]:
        def gradient_of(key: Any, task: Any) -> tuple[Any, Outcome]:
            one = lambda params: self.adapt_and_judge(params, key, task, data, state.step)  # noqa: E731
            return jax.grad(one, has_aux=True)(state.meta_params)

        gradients, outcomes = jax.vmap(gradient_of)(jax.random.split(key, self.meta_batch), draw.tasks)
        squares = [jnp.sum(leaf.reshape(self.meta_batch, -1) ** 2, axis=1) for leaf in jax.tree.leaves(gradients)]
        mean = jax.tree.map(lambda leaf: jnp.tensordot(draw.weights / self.meta_batch, leaf, 1), gradients)
        return mean, outcomes._replace(score=jnp.sqrt(sum(squares))), draw.weights


class PlainQueue:
    """The rule of importance_delta with NumPy, on the host."""

    def __init__(self, cells: int) -> None:
        self._losses, self._deltas = np.full((2, cells), np.nan, np.float32)
        self._visits, self._last_visit = np.zeros(cells, int), np.full(cells, -1)

    def draw(self, generator: np.random.Generator, tasks: int) -> tuple[np.ndarray, np.ndarray]:
        """Cells and the weights of their losses."""
        deltas = self._deltas
        known = ~np.isnan(deltas)
        priority = np.where(known, deltas, deltas[known].mean() if known.any() else 1.0)
        p = 0.9 * priority / priority.sum() + 0.1 / deltas.size
        cumulative = np.cumsum(p)
        cells = np.searchsorted(cumulative, generator.random(tasks) * cumulative[-1], side="right")
        return cells, (1 / (deltas.size * p[cells])).astype(np.float32)

    def record(self, cells: np.ndarray, scores: np.ndarray, step: int) -> None:
        """Writes the scores of a meta-batch."""
        drawn, inverse, counts = np.unique(cells, return_inverse=True, return_counts=True)
        means = np.bincount(inverse, scores) / counts
        self._deltas[drawn] = np.abs(means - self._losses[drawn])
        self._losses[drawn] = means
        self._visits[drawn] += counts
        self._last_visit[drawn] = step


def draw_sinusoids(generator: np.random.Generator, tasks: np.ndarray, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of tasks of sin2d or sin3d, with NumPy."""
    amplitude, phase, *frequency = tasks.T[:, :, None, None]
    x = generator.uniform(-5, 5, (len(tasks), examples, 1)).astype(np.float32)
    angle = frequency[0] * x + phase if frequency else x + phase
    return x, (amplitude * np.sin(angle)).astype(np.float32)


def plain_gradient(learner: MetaLearner) -> Callable[..., tuple[Any, Any]]:
    """The meta-gradient and the losses of a meta-batch, as JAX derives them; to be jitted."""
    adaptation: Any = learner.adaptation

    def task_loss(params: Any, x: Any, y: Any) -> Any:
        def loss(params: Any, part: slice) -> Any:
            return jnp.mean((learner.model.apply(params, x[part]) - y[part]) ** 2)

        for _ in range(adaptation.steps):
            params = descend(params, jax.grad(loss)(params, slice(None, learner.shots)))
        return loss(params, slice(learner.shots, None))

    def descend(params: Any, gradient: Any) -> Any:
        return jax.tree.map(lambda p, g: p - adaptation.learning_rate * g, params, gradient)

    def meta_loss(params: Any, x: Any, y: Any, weights: Any) -> Any:
        losses = jax.vmap(partial(task_loss, params))(x, y)
        return jnp.mean(weights * losses), losses

    return jax.grad(meta_loss, has_aux=True)


class PlainStep:
    """One jitted meta-step of the same network and optimiser, and the state that it changes."""

    def __init__(self, learner: MetaLearner) -> None:
        gradient_of = plain_gradient(learner)

        @jax.jit
        def step(params: Any, opt_state: Any, x: Any, y: Any, weights: Any) -> Any:
            gradient, losses = gradient_of(params, x, y, weights)
            updates, opt_state = learner.optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, losses

        state = learner.init(0)
        self._step, self._params, self._opt_state = step, state.meta_params, state.opt_state

    def __call__(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The losses of a meta-batch, from which it has learned."""
        self._params, self._opt_state, losses = self._step(self._params, self._opt_state, x, y, weights)
        return np.asarray(losses)

    def wait(self) -> None:
        """Returns when all is done."""
        jax.block_until_ready((self._params, self._opt_state))


def ends_of(learner: MetaLearner) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest parameters of a task."""
    axes: Any = learner.family.grid.axes.values()
    low, high = (np.array([getattr(axis, end) * axis.scale for axis in axes]) for end in ("low", "high"))
    return low, high


def plain_loop(learner: MetaLearner) -> Block:
    """A Python loop over `PlainStep`; tasks, their data and the queue with NumPy."""
    grid, step, generator = learner.family.grid, PlainStep(learner), np.random.default_rng(0)
    queue, (low, high), numbers = PlainQueue(grid.size), ends_of(learner), count()

    def block(steps: int) -> None:
        for number in islice(numbers, steps):
            cells, weights = queue.draw(generator, learner.meta_batch)
            index = np.stack(np.unravel_index(cells, grid.shape), axis=1)
            tasks = low + (index + generator.random(index.shape)) / grid.shape * (high - low)
            scores = step(*draw_sinusoids(generator, tasks, learner.shots + learner.queries), weights)
            queue.record(cells, scores, number)
        step.wait()

    return block


def in_turn(loops: Mapping[str, tuple[Block, int]], blocks: int) -> dict[str, np.ndarray]:
    """Meta-steps a second of each loop, block by block.

    Args:
        loops: by name, each with the meta-steps of a block.
        blocks: timed ones, of each loop.
    """
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for loop, steps in loops.values():
        loop(min(10, steps))
    for _ in range(blocks):
        for name, (loop, steps) in loops.items():
            began = clock()
            loop(steps)
            rates[name].append(steps / (clock() - began))
    return {name: np.array(values) for name, values in rates.items()}


def steps_in(loop: Block, seconds: float) -> int:
    """Meta-steps of a block of so many seconds."""
    loop(1)
    began = clock()
    loop(2)
    return max(1, round(seconds * 2 / (clock() - began)))


def spread(values: Sequence[float] | np.ndarray) -> str:
    """The median and the range, of several values."""
    middle, low, high = (_short(value) for value in (np.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} [{low}, {high}]"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"
