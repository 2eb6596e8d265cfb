"""The compiled programs that several runs are trained with."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from twmaml.meta_learning.chunk import Chunk, train_chunk
from twmaml.meta_learning.evaluation import EvaluationTasks, Judgement
from twmaml.meta_learning.learner import RunState
from twmaml.meta_learning.random_numbers import as_loop_key
from twmaml.samplers.base import Sampler, View
from twmaml.space.priority_queue import PriorityQueue, empty_queue
from twmaml.storage.checkpoint import pack, unpack
from twmaml.training.devices import QUICKLY, TRAINING, compile_program, everywhere, over_runs
from twmaml.training.members import Group, Own
from twmaml.types import MetaParams


class DoesNotFitError(MemoryError):
    """So many runs in one program need more memory than there is."""


class Tracing:
    """The programs of a group while they are being compiled, in threads of `background`.

    Construction traces them, which keeps this thread busy; then there is time for something else until `compiled`.
    """

    def __init__(self, group: Group, background: Executor) -> None:
        self._group, self._background = group, background
        self._metric_names: list[str] = []

        def train_one(run: tuple[Own, RunState], shared: Any) -> tuple[RunState, Chunk, Array]:
            own, state = run
            state, chunk = train_chunk(group.parts_of(own).learner, state, *shared)
            self._metric_names = [*chunk.metrics]
            # As one array, since each takes a while to get to the host.
            return state, chunk._replace(metrics={}), jnp.stack([*chunk.metrics.values()])

        def init_one(run: tuple[Own, Array], _: Any) -> RunState:
            own, seed = run
            return group.parts_of(own).learner.init(seed)

        def evaluate_one(split: str, run: tuple[Own, MetaParams], shared: Any) -> dict[str, Array]:
            own, meta_params = run
            return group.parts_of(own).evaluations[split].results(meta_params, *shared)

        def look_up_one(queue: PriorityQueue, tasks: Mapping[str, EvaluationTasks]) -> Any:
            return {name: each.look_up(queue) for name, each in tasks.items()}

        init = over_runs(init_one, group.sharding).lower((group.own, group.seeds), None)
        train = over_runs(train_one, group.sharding, reuse=True)
        shared = (jnp.int32(0), group.data["train"])
        train = train.lower((group.own, init.out_info), shared, init.out_info)
        self._states: RunState = init.out_info
        self._training: Future[Any] = background.submit(compile_program, train, TRAINING)
        splits = group.parts.evaluations
        fix = jax.jit(lambda: {n: e.tasks() for n, e in splits.items()}, out_shardings=everywhere(group.judging))
        fix = fix.lower()
        judged = (group.own, init.out_info.meta_params)
        evaluate = {
            name: over_runs(partial(evaluate_one, name), group.judging).lower(
                judged, (fix.out_info[name], group.data[name])
            )
            for name in splits
        }
        look_up = over_runs(look_up_one, group.sharding).lower(init.out_info.queue, fix.out_info)
        self._others: Future[Any] = background.submit(
            lambda: (
                {name: compile_program(program, QUICKLY) for name, program in evaluate.items()},
                *(compile_program(program, QUICKLY) for program in (look_up, init, fix)),
            )
        )

    def compiled(self, memory: float) -> "Programs":
        """The programs, once they are ready.

        Args:
            memory: bytes that they may take.

        Raises:
            DoesNotFitError: if several runs take more than that, as the compiler counts it; one is tried anyway.
        """
        group, train = self._group, self._training.result()
        evaluate, look_up, init, fix = self._others.result()
        of_evaluation = max(bytes_taken(program, group.judging) for program in evaluate.values())
        in_turn = group.judging is group.sharding
        needed = (max if in_turn else sum)([bytes_taken(train, group.sharding), of_evaluation])
        if needed > memory and len(group.members) > 1:
            raise DoesNotFitError(f"{len(group.members)} runs need {needed / 2**30:.2g} GiB of {memory / 2**30:.2g}")
        tasks = fix()
        illustrate = self._background.submit(_compile_illustrate, group, tasks["eval"])
        of_queue = jax.device_put(tasks, everywhere(group.sharding))
        names = self._metric_names
        return Programs(group, train, evaluate, look_up, init, tasks, of_queue, illustrate, self._states, names)


@dataclass(frozen=True)
class Programs:
    """The compiled programs of a group, which train its runs at once and judge them: nothing compiles again later."""

    _group: Group
    _train: Any
    _evaluate: Mapping[str, Any]
    _look_up: Any
    _init: Any
    tasks: Mapping[str, EvaluationTasks]
    """The tasks of each split."""
    _tasks_of_queue: Mapping[str, EvaluationTasks]
    """The same on the devices that the queue is on."""
    _illustrate: Future[Any]
    _states: RunState
    """Shapes and types."""
    _metric_names: Sequence[str]
    """Metrics of a chunk, those of all samplers together."""

    def metric_names(self, sampler: Sampler) -> list[str]:
        """Metrics of a chunk of a run: those of its own sampler, of which a chunk has all samplers' together."""
        grid = self._group.parts.learner.family.grid
        view = jax.eval_shape(lambda: View(empty_queue(grid.size), sampler.init(grid), jnp.int32(0)))
        own = {f"sampler/{name}" for name in jax.eval_shape(sampler.metrics, view)}
        return [name for name in self._metric_names if not name.startswith("sampler/") or name in own]

    def begin(self) -> RunState:
        """The states of the runs before their first meta-step."""
        return self._init((self._group.own, self._group.put(self._group.seeds)), None)

    def save(self, states: RunState) -> list[dict[str, np.ndarray]]:
        """Copies of the leaves of every run's state by name, of the samplers' states only the run's own."""
        shared = {name: np.asarray(leaf) for name, leaf in pack(states._replace(sampler=())).items()}
        own = [{name: np.asarray(leaf) for name, leaf in pack({"sampler": each}).items()} for each in states.sampler]
        return [
            {name: np.array(leaf[row]) for name, leaf in {**shared, **own[member]}.items()}
            for row, member in enumerate(self._group.members)
        ]

    def restore(self, saved: Sequence[Mapping[str, np.ndarray]]) -> RunState:
        """The states of runs that were saved.

        Raises:
            CheckpointError: if they are not of these programs.
        """
        group, template = self._group, self._states._replace(sampler=())
        names = [name for name in jax.eval_shape(pack, template) if all(name in each for each in saved)]
        stacked = {name: np.stack([saved[row][name] for row in group.rows]) for name in names}
        fresh = [sampler.init(group.parts.learner.family.grid) for sampler in group.samplers]
        rows = []
        for row in group.rows:
            member = group.members[row]
            own = unpack({"sampler": jax.eval_shape(lambda own: own, fresh[member])}, saved[row])["sampler"]
            rows.append((*fresh[:member], own, *fresh[member + 1 :]))
        sampler = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        state = unpack(template, stacked)
        return group.put(state._replace(sampler=sampler, key=as_loop_key(jax.random.key_data(state.key))))

    def advance(
        self,
        states: RunState,
        steps: int,
        used: RunState | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> tuple[RunState, Chunk]:
        """So many meta-steps: the states on the devices, the chunk on the host.

        Args:
            states: to go on from; they stay as they are.
            steps: how many.
            used: states that nobody needs any more; the new ones take their place, as fresh memory for a large queue
                takes longer than the copy.
            meanwhile: is called while the devices work.
        """
        used = self.begin() if used is None else used
        shared = (np.int32(steps), self._group.data["train"])
        states, *chunk = self._train((self._group.own, states), shared, used)
        meanwhile()
        chunk, metrics = jax.device_get(chunk)
        return states, chunk._replace(metrics=dict(zip(self._metric_names, metrics.T, strict=True)))

    def evaluate(self, states: RunState) -> dict[str, Judgement]:
        """Each split's figures of all runs; on the devices, which may still be at it beside what comes next."""
        group = self._group
        held = self._look_up(states.queue, self._tasks_of_queue)
        run = group.own_judged, jax.device_put(states.meta_params, group.judging)
        judged = {
            name: Judgement(program(run, (self.tasks[name], group.data[name])), *held[name])
            for name, program in self._evaluate.items()
        }
        # What the next chunk takes is its own time.
        return jax.block_until_ready(judged) if group.judging is group.sharding else judged

    def illustrate(self, states: RunState, row: int) -> "Illustration":
        """One run as figures show it."""
        shown = (self._group.own, states.meta_params, states.view)
        own, meta_params, view = jax.tree.map(lambda leaf: np.array(np.asarray(leaf)[row]), shown)
        given = (own, meta_params, view, self.tasks["eval"], self._group.data["eval"])
        p, tasks, pictures, contexts = jax.device_get(self._illustrate.result()(*given))
        learned = self._group.parts.learner.adaptation.learned(meta_params)
        named, _ = jax.tree_util.tree_flatten_with_path(dict(learned))
        name = partial(jax.tree_util.keystr, simple=True, separator=" ")
        by_name = {name(path): np.asarray(leaf) for path, leaf in named}
        return Illustration(view.queue, p, tasks, pictures, contexts, by_name)


class Illustration(NamedTuple):
    """A run as figures show it."""

    queue: PriorityQueue
    probabilities: Float[np.ndarray, " cells"]
    """The sampler's distribution."""
    tasks: Float[np.ndarray, "tasks axes"]
    """The tasks that the pictures show."""
    pictures: Mapping[str, np.ndarray]
    """The family's, along the first axis of every array; none if it has none."""
    contexts: Float[np.ndarray, "eval size"] | None
    """The adapted numbers of the tasks of `eval`, where these are not weights."""
    learned: Mapping[str, np.ndarray]
    """Arrays that are learned besides the weights, by name."""


def _compile_illustrate(group: Group, fixed: EvaluationTasks) -> Any:
    def illustrate(own: Own, meta_params: MetaParams, view: View, fixed: EvaluationTasks, data: Any) -> Any:
        parts = group.parts_of(own)
        p = parts.learner.sampler.probabilities(parts.learner.family.grid, view)
        evaluation = parts.evaluations["eval"]
        return p, *evaluation.pictures(meta_params, data), evaluation.contexts(meta_params, fixed, data)

    own = jax.eval_shape(lambda: jax.tree.map(lambda runs: runs[0], group.own))
    state = jax.eval_shape(lambda own: group.parts_of(own).learner.init(0), own)
    arguments = (own, state.meta_params, state.view, fixed, group.data["eval"])
    return compile_program(jax.jit(illustrate, keep_unused=True).lower(*arguments), QUICKLY)


def bytes_taken(program: Any, sharding: NamedSharding) -> float:
    """Memory that a compiled program takes while it runs, on one device, or on all those that share the host's."""
    size = program.memory_analysis()
    of_device = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
    of_device -= size.alias_size_in_bytes  # of results that take the place of arguments
    return of_device * (sharding.mesh.size if jax.default_backend() == "cpu" else 1)
