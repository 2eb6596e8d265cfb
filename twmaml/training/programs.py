"""The compiled programs that several runs are trained with."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from twmaml.meta_learning.chunk import Chunk, train_chunk
from twmaml.meta_learning.evaluation import Evaluation, EvaluationTasks
from twmaml.meta_learning.learner import MetaLearner, RunState
from twmaml.samplers.base import Sampler, View
from twmaml.space.priority_queue import PriorityQueue, empty_queue
from twmaml.storage.checkpoint import pack, unpack
from twmaml.training.devices import over_runs, shard_runs
from twmaml.training.one_of import OneOf
from twmaml.types import MetaParams

# Levels of optimisation below the default 3: the programs are as fast, and compiled in three quarters of the time.
# That was measured on CPUs; other platforms keep their default.
_TRAINING, _QUICKLY = 2, 1


class DoesNotFitError(MemoryError):
    """So many runs in one program need more memory than there is."""


class Programs:
    """Programs that train several runs at once and judge them. Compiled before, so nothing compiles again later.

    Construction traces the programs, which keeps this thread busy, and leaves their compilation to others: there is
    time for something else until `wait_until_compiled`. Where the devices do not divide the runs, the last run is
    repeated: the states have more rows than there are runs.

    Args:
        learner: trains, but for its sampler.
        evaluations: judge the runs, by the name of the split; `eval` is shown in figures.
        data: arrays of the families by the name of the split; those of training under `train`.
        seeds: one run each.
        samplers: of each run; one that several have should be the same object.
        background: threads, which compile.
    """

    def __init__(
        self,
        learner: MetaLearner,
        evaluations: Mapping[str, Evaluation],
        data: Mapping[str, PyTree[Array]],
        seeds: Sequence[int],
        samplers: Sequence[Sampler],
        background: Executor,
    ) -> None:
        self._learner, self._evaluations, self._background = learner, evaluations, background
        self._sharding = shard_runs(len(seeds), learner.task_devices)
        self._runs = len(seeds)
        self._rows = [*range(len(seeds)), *[len(seeds) - 1] * (-len(seeds) % self._sharding.mesh.shape["runs"])]
        self._samplers = list({id(sampler): sampler for sampler in samplers}.values())
        place = {id(sampler): index for index, sampler in enumerate(self._samplers)}
        self._members = [place[id(sampler)] for sampler in samplers]
        self._indices = self._put(np.array(self._members, np.int32)[self._rows])
        self._seeds = np.array(seeds, np.uint32)[self._rows]
        everywhere = NamedSharding(self._sharding.mesh, PartitionSpec())
        on_devices = {id(arrays): jax.device_put(arrays, everywhere) for arrays in data.values()}
        self._data = {name: on_devices[id(arrays)] for name, arrays in data.items()}

        def train_one(part: tuple[Int[Array, ""], RunState], shared: Any) -> tuple[RunState, Chunk]:
            index, state = part
            return train_chunk(self._with_sampler(index), state, *shared)

        init = over_runs(lambda seed, _: self._with_sampler(jnp.int32(0)).init(seed), self._sharding)
        init = init.lower(self._seeds, None)
        training = over_runs(train_one, self._sharding)
        training = training.lower((self._indices, init.out_info), (jnp.int32(0), self._data["train"]))
        compiling: Future[Any] = background.submit(_compile, training, _TRAINING)
        fix = jax.jit(lambda: {name: e.tasks() for name, e in evaluations.items()}, out_shardings=everywhere).lower()
        evaluate = {
            name: over_runs(lambda meta_params, shared, e=e: e.results(meta_params, *shared), self._sharding).lower(
                init.out_info.meta_params, (fix.out_info[name], self._data[name])
            )
            for name, e in evaluations.items()
        }
        others: Future[Any] = background.submit(
            lambda: (
                {name: _compile(program, _QUICKLY) for name, program in evaluate.items()},
                *(_compile(program, _QUICKLY) for program in (init, fix)),
            )
        )
        self._compiling = (compiling, others)
        self._states = init.out_info
        self._metric_names = [*training.out_info[1].metrics]
        self.queue_grid = learner.family.grid
        self.tasks: Mapping[str, EvaluationTasks]
        """The tasks of each split."""

    def _with_sampler(self, index: Int[Array, ""]) -> MetaLearner:
        return replace(self._learner, sampler=OneOf(self._samplers, index))

    def metric_names(self, sampler: Sampler) -> list[str]:
        """Metrics of a chunk of a run: those of its own sampler, of which a chunk has all samplers' together."""
        grid = self._learner.family.grid
        view = jax.eval_shape(lambda: View(empty_queue(grid.size), sampler.init(grid), jnp.int32(0)))
        own = {f"sampler/{name}" for name in jax.eval_shape(sampler.metrics, view)}
        return [name for name in self._metric_names if not name.startswith("sampler/") or name in own]

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
        needed = max(_bytes_taken(program, self._sharding) for program in (self._train, *self._evaluate.values()))
        if needed > memory and self._runs > 1:
            raise DoesNotFitError(f"{self._runs} runs need {needed / 2**30:.2g} GiB of {memory / 2**30:.2g}")
        self.tasks = fix()
        self._illustrate: Future[Any] = self._background.submit(self._compile_illustrate)

    def begin(self) -> RunState:
        """The states of the runs before their first meta-step."""
        return self._init(self._put(self._seeds), None)

    def save(self, states: RunState) -> list[dict[str, np.ndarray]]:
        """The leaves of every run's state by name, of the samplers' states only the run's own."""
        shared = {name: np.asarray(leaf) for name, leaf in pack(states._replace(sampler=())).items()}
        own = [{name: np.asarray(leaf) for name, leaf in pack({"sampler": each}).items()} for each in states.sampler]
        return [
            {name: np.asarray(leaf[row]) for name, leaf in {**shared, **own[member]}.items()}
            for row, member in enumerate(self._members)
        ]

    def restore(self, saved: Sequence[Mapping[str, np.ndarray]]) -> RunState:
        """The states of runs that were saved.

        Raises:
            CheckpointError: if they are not of these programs.
        """
        template = self._states._replace(sampler=())
        names = [name for name in jax.eval_shape(pack, template) if all(name in each for each in saved)]
        stacked = {name: np.stack([saved[row][name] for row in self._rows]) for name in names}
        fresh = [sampler.init(self._learner.family.grid) for sampler in self._samplers]
        rows = []
        for row in self._rows:
            member = self._members[row]
            own = unpack({"sampler": jax.eval_shape(lambda own: own, fresh[member])}, saved[row])["sampler"]
            rows.append((*fresh[:member], own, *fresh[member + 1 :]))
        sampler = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        return self._put(unpack(template, stacked)._replace(sampler=sampler))

    def advance(self, states: RunState, steps: int) -> tuple[RunState, Chunk]:
        """So many meta-steps: the states on the devices, the chunk on the host."""
        states, chunk = self._train((self._indices, states), (jnp.int32(steps), self._data["train"]))
        return states, jax.device_get(chunk)

    def evaluate(self, states: RunState) -> dict[str, dict[str, Float[np.ndarray, "runs tasks steps"]]]:
        """Every metric of every split on the fixed tasks after 0, 1, ... inner steps."""
        results = {
            name: program(states.meta_params, (self.tasks[name], self._data[name]))
            for name, program in self._evaluate.items()
        }
        return jax.tree.map(np.asarray, results)

    def illustrate(
        self, states: RunState, row: int
    ) -> tuple[PriorityQueue, Float[np.ndarray, " cells"], dict[str, np.ndarray]]:
        """One run as figures show it besides its metrics: its queue, its distribution over cells and pictures."""
        shown = (self._indices, states.meta_params, states.view)
        index, meta_params, view = jax.tree.map(lambda leaf: np.asarray(leaf)[row], shown)
        drawn = self._illustrate.result()(index, meta_params, view, self._data["eval"])
        return view.queue, *jax.device_get(drawn)

    def _compile_illustrate(self) -> Any:
        def illustrate(index: Int[Array, ""], meta_params: MetaParams, view: View, data: Any) -> Any:
            p = OneOf(self._samplers, index).probabilities(self._learner.family.grid, view)
            return p, self._evaluations["eval"].pictures(meta_params, data)

        state = jax.eval_shape(lambda: self._with_sampler(jnp.int32(0)).init(0))
        arguments = (jnp.int32(0), state.meta_params, state.view, self._data["eval"])
        return _compile(jax.jit(illustrate).lower(*arguments), _QUICKLY)

    def _put(self, rows: Any) -> Any:
        return jax.device_put(rows, self._sharding)


def _compile(program: Any, level: int) -> Any:
    return program.compile({"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" else None)


def _bytes_taken(program: Any, sharding: NamedSharding) -> float:
    """Memory that a compiled program takes while it runs, on one device, or on all those that share the host's."""
    size = program.memory_analysis()
    of_device = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
    return of_device * (sharding.mesh.size if jax.default_backend() == "cpu" else 1)
