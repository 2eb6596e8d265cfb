"""The compiled programs that several runs are trained with."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from twmaml.meta_learning.chunk import Chunk, train_chunk
from twmaml.meta_learning.evaluation import Evaluation, EvaluationTasks, Example
from twmaml.meta_learning.learner import MetaLearner, RunState
from twmaml.samplers.base import Sampler
from twmaml.space.priority_queue import PriorityQueue
from twmaml.storage.checkpoint import pack, unpack
from twmaml.training.devices import over_runs, shard_runs
from twmaml.training.one_of import OneOf
from twmaml.types import MetaParams, Step

# Levels of optimisation below the default 3: the programs are as fast, and compiled in three quarters of the time.
# That was measured on CPUs; other platforms keep their default.
_TRAINING, _QUICKLY = 2, 1


class DoesNotFitError(MemoryError):
    """So many runs in one program need more memory than there is."""


class Programs:
    """What trains several runs at once and judges them. It is compiled before, so nothing compiles again later.

    Construction traces the programs, which keeps this thread busy, and leaves their compilation to others: there is
    time for something else until `wait_until_compiled`. Where the devices do not divide the runs, the last run is
    repeated: the states have more rows than there are runs.

    Args:
        learner: what is trained, but for its sampler.
        evaluation: what it is judged by.
        seeds: one run each.
        samplers: of each run; one that several have should be the same object.
        background: threads, which compile.
    """

    def __init__(
        self,
        learner: MetaLearner,
        evaluation: Evaluation,
        seeds: Sequence[int],
        samplers: Sequence[Sampler],
        background: Executor,
    ) -> None:
        self._learner, self._evaluation, self._background = learner, evaluation, background
        self._sharding = shard_runs(len(seeds), learner.task_devices)
        self._runs = len(seeds)
        self._rows = [*range(len(seeds)), *[len(seeds) - 1] * (-len(seeds) % self._sharding.mesh.shape["runs"])]
        self._samplers = list({id(sampler): sampler for sampler in samplers}.values())
        place = {id(sampler): index for index, sampler in enumerate(self._samplers)}
        self._indices = self._put(np.array([place[id(sampler)] for sampler in samplers], np.int32)[self._rows])
        self._seeds = np.array(seeds, np.uint32)[self._rows]

        def train_one(part: tuple[Int[Array, ""], RunState], steps: Step) -> tuple[RunState, Chunk]:
            index, state = part
            return train_chunk(replace(learner, sampler=OneOf(self._samplers, index)), state, steps)

        everywhere = NamedSharding(self._sharding.mesh, PartitionSpec())
        init = over_runs(lambda seed, _: learner.init(seed), self._sharding).lower(self._seeds, None)
        training = over_runs(train_one, self._sharding).lower((self._indices, init.out_info), jnp.int32(0))
        compiling: Future[Any] = background.submit(_compile, training, _TRAINING)
        fix = jax.jit(evaluation.tasks, out_shardings=everywhere).lower()
        evaluate = over_runs(evaluation.losses, self._sharding).lower(init.out_info.meta_params, fix.out_info)
        others: Future[Any] = background.submit(
            lambda: [_compile(program, _QUICKLY) for program in (evaluate, init, fix)]
        )
        self._compiling = (compiling, others)
        self._states = init.out_info
        self.metric_names: list[str] = [*training.out_info[1].metrics]
        """Of a chunk, those of all samplers together."""
        self.tasks: EvaluationTasks
        """What the runs are judged on."""

    def wait_until_compiled(self, memory: float) -> None:
        """Makes the programs ready.

        Args:
            memory: bytes that they may take.

        Raises:
            DoesNotFitError: if several runs take more than that, as the compiler counts it; one is tried anyway.
        """
        training, others = self._compiling
        self._train = training.result()
        self._evaluate, self._init, fix = others.result()
        needed = max(_bytes_taken(program, self._sharding) for program in (self._train, self._evaluate))
        if needed > memory and self._runs > 1:
            raise DoesNotFitError(f"{self._runs} runs need {needed / 2**30:.2g} GiB of {memory / 2**30:.2g}")
        self.tasks = fix()
        self._illustrate: Future[Any] = self._background.submit(self._compile_illustrate)

    def begin(self) -> RunState:
        """The states of the runs before their first meta-step."""
        return self._init(self._put(self._seeds), None)

    def restore(self, saved: Sequence[Mapping[str, np.ndarray]]) -> RunState:
        """The states of runs whose leaves were saved by name (`pack`).

        Raises:
            CheckpointError: if they are not of these programs.
        """
        names = [name for name in jax.eval_shape(pack, self._states) if all(name in each for each in saved)]
        stacked = {name: np.stack([saved[row][name] for row in self._rows]) for name in names}
        return self._put(unpack(self._states, stacked))

    def advance(self, states: RunState, steps: int) -> tuple[RunState, Chunk]:
        """What comes of so many meta-steps: the states on the devices, the rest on the host."""
        states, chunk = self._train((self._indices, states), jnp.int32(steps))
        return states, jax.device_get(chunk)

    def evaluate(self, states: RunState) -> Float[np.ndarray, "runs tasks steps"]:
        """Losses on the fixed tasks after 0, 1, ... inner steps."""
        return np.asarray(self._evaluate(states.meta_params, self.tasks))

    def illustrate(
        self, states: RunState, row: int
    ) -> tuple[PriorityQueue, Float[np.ndarray, " cells"], Example | None]:
        """What figures show of one run besides its losses: its queue, its distribution over cells and examples."""
        shown = (self._indices, states.meta_params, states.queue, states.step)
        index, meta_params, queue, step = jax.tree.map(lambda leaf: np.asarray(leaf)[row], shown)
        return queue, *jax.device_get(self._illustrate.result()(index, meta_params, queue, step))

    def _compile_illustrate(self) -> Any:
        def illustrate(
            index: Int[Array, ""], meta_params: MetaParams, queue: PriorityQueue, step: Step
        ) -> tuple[Array, Example | None]:
            return OneOf(self._samplers, index).probabilities(queue, step), self._evaluation.examples(meta_params)

        state = jax.eval_shape(lambda: self._learner.init(0))
        program = jax.jit(illustrate).lower(jnp.int32(0), state.meta_params, state.queue, state.step)
        return _compile(program, _QUICKLY)

    def _put(self, rows: Any) -> Any:
        return jax.device_put(rows, self._sharding)


def _compile(program: Any, level: int) -> Any:
    return program.compile({"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" else None)


def _bytes_taken(program: Any, sharding: NamedSharding) -> float:
    """Memory that a compiled program takes while it runs, on one device, or on all those that share the host's."""
    size = program.memory_analysis()
    of_device = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
    return of_device * (sharding.mesh.size if jax.default_backend() == "cpu" else 1)
