"""The loop: chunks of meta-steps as one program, and what happens between them."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from twmaml.meta_learning.chunk import NO_FAILURE, Chunk
from twmaml.meta_learning.evaluation import Judgement
from twmaml.meta_learning.learner import RunState
from twmaml.statistics import VALIDATION
from twmaml.storage.checkpoint import Checkpoint
from twmaml.training.diagnosis import describe_failure
from twmaml.training.failures import end_failed
from twmaml.training.plan import Plan, Stop
from twmaml.training.programs import Programs
from twmaml.training.recorder import Recorder, running
from twmaml.training.runs import Progress


def train(
    programs: Programs,
    runs: Sequence[Recorder],
    checkpoints: Sequence[Checkpoint],
    plan: Plan,
    progress: Progress,
    stop: Stop,
    drawing: Executor,
) -> None:
    """Trains several runs, each until the plan ends it or it has failed, or to the chunk in which `stop` is asked.

    Args:
        programs: compiled.
        runs: in the order of the programs' seeds.
        checkpoints: of each run, all of the same step; or none, where they begin.
        plan: of the runs.
        progress: told what is being done after each chunk.
        stop: asks for the end.
        drawing: draws figures; a pool of processes draws those of several runs side by side.

    Raises:
        CheckpointError: if a checkpoint is not of these programs.
    """
    with ThreadPoolExecutor(1) as writing:
        host = _Host(programs, runs, plan, progress, writing, drawing)
        states, step, seconds = host.start(checkpoints), runs[0].result.step, 0.0
        progress.update("training", [run.result for run in runs])
        # A sampler may be wrong at once.
        end_failed(programs, runs, states, step, programs.advance(states, 0)[1], seconds, drawing)
        before = None
        while running(runs):
            if ending := [run for run in running(runs) if run.at_end or stop.asked]:
                host.write(everything=True)
                host.end(ending, states, step, seconds)
                continue
            used, before, previous, step = before, states, step, plan.next_stop(step)
            began = time.perf_counter()
            states, chunk = programs.advance(before, step - previous, used, meanwhile=host.write)
            seconds += time.perf_counter() - began
            if any(chunk.first_failure[run.index] != NO_FAILURE for run in running(runs)):
                host.write(everything=True)
                end_failed(programs, runs, before, previous, chunk, seconds, drawing)
            host.leave(states, previous, step, chunk)
            if plan.may_end_at(step):
                host.write(everything=True)


class _Left(NamedTuple):
    """Whatever a chunk leaves that is still to be written."""

    step: int
    chunk: Chunk
    judged: Mapping[str, Judgement] | None
    """On the devices, which may still be at it."""
    states: RunState | None
    """States that are to be saved or drawn, if any are."""
    saves: bool
    draws: bool

    @property
    def ready(self) -> bool:
        """Whether nothing would be waited for."""
        return all(leaf.is_ready() for leaf in jax.tree.leaves(self.judged))


@dataclass(frozen=True)
class _Host:
    """Whatever the host does with several runs between and beside chunks."""

    programs: Programs
    runs: Sequence[Recorder]
    plan: Plan
    progress: Progress
    writing: Executor
    drawing: Executor
    left: list[_Left] = field(default_factory=list)
    """In the order of their steps."""

    def start(self, checkpoints: Sequence[Checkpoint]) -> RunState:
        """The states that runs go on from, or begin with; then they are evaluated and logged first."""
        if checkpoints:
            return self.programs.restore([checkpoint.arrays for checkpoint in checkpoints])
        states = self.programs.begin()
        judged = jax.device_get(self.programs.evaluate(states))
        for run in self.runs:
            with run.isolating_failures():
                run.log(0, {**run.spent(0, 0), **run.judge(0, judged)})
                run.first_unadapted_loss = float(np.median(run.losses[:, 0]))
        if any(run.at_best for run in running(self.runs)):
            self._save(self.runs, states)
        return states

    def leave(self, states: RunState, previous: int, step: int, chunk: Chunk) -> None:
        """Takes what the chunk from `previous` to `step` leaves, and has the states evaluated if that is due."""
        plan = self.plan
        if plan.evaluates_at(step):  # one at a time, as each holds a copy of what it judges
            self.write(everything=True)
        judged = self.programs.evaluate(states) if plan.evaluates_at(step) and running(self.runs) else None
        goes_on = step < plan.steps  # at the end there is more to save and to draw
        saves, draws = goes_on and plan.saves_after(previous, step), goes_on and plan.draws_at(step)
        may_be_best = goes_on and VALIDATION in (judged or {})
        self.left.append(_Left(step, chunk, judged, states if saves or draws or may_be_best else None, saves, draws))

    def write(self, everything: bool = False) -> None:
        """Writes what chunks have left, up to the first whose evaluation is not ready.

        Args:
            everything: waits for evaluations; so it does anyway where states are needed, as the chunk after the next
                takes their place.
        """
        everything = everything or any(left.states is not None for left in self.left)
        while self.left and (everything or self.left[0].ready):
            left = self.left.pop(0)
            judged = jax.device_get(left.judged)
            for run in running(self.runs):
                with run.isolating_failures():
                    row = run.row(left.step, left.chunk)
                    run.log(left.step, row if judged is None else {**row, **run.judge(left.step, judged)})
            self.progress.update("training", [run.result for run in self.runs])
            if left.states is not None and (left.saves or any(run.at_best for run in running(self.runs))):
                self._save(self.runs, left.states)  # of all, so that they can go on from the same step
            if left.states is not None and left.draws:
                self._draw(self.runs, left.states)

    def end(self, ending: Sequence[Recorder], states: RunState, step: int, seconds: float) -> None:
        """Leaves whatever runs leave at their end, planned or not; `seconds` is what the meta-steps took."""
        self._save(ending, states)
        if not self.plan.evaluates_at(step):  # the checkpoint has the row without it, as a longer run would
            judged = jax.device_get(self.programs.evaluate(states))
            for run in running(ending):
                with run.isolating_failures():
                    run.amend(run.judge(step, judged))
        self.progress.update("drawing", [run.result for run in self.runs])
        self._draw(ending, states)
        for run in running(ending):
            with run.isolating_failures():
                run.finish_saving()
                run.finish_figures()
                broken = not np.isfinite(run.losses[:, 0]).any()  # by the very last update
                planned = "finished" if run.at_end else "interrupted"
                run.close(describe_failure(run.standing, step) if broken else planned, seconds, len(self.runs))

    def _save(self, runs: Sequence[Recorder], states: RunState) -> None:
        leaves = self.programs.save(states)
        for run in running(runs):
            with run.isolating_failures():
                run.save(leaves[run.index], self.writing)

    def _draw(self, runs: Sequence[Recorder], states: RunState) -> None:
        for run in running(runs):
            with run.isolating_failures():
                run.draw(states, self.drawing)
