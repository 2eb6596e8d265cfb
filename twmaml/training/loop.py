"""The loop: chunks of meta-steps as one program, and what happens between them."""

import importlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import numpy as np

from twmaml.meta_learning.chunk import Chunk
from twmaml.meta_learning.evaluation import Judgement
from twmaml.meta_learning.learner import RunState
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
        writing.submit(importlib.import_module, "twmaml.figures.run")
        states, step, seconds = _start(programs, runs, checkpoints, writing), runs[0].result.step, 0.0
        progress.update("training", [run.result for run in runs])
        # A sampler may be wrong at once.
        end_failed(programs, runs, states, step, programs.advance(states, 0)[1], seconds, drawing)
        before, write = None, _nothing
        while running(runs):
            if ending := [run for run in running(runs) if run.at_end or stop.asked]:
                write()
                write = _nothing
                _end(programs, runs, ending, states, step, plan, progress, seconds, writing, drawing)
                continue
            used, before, previous, step = before, states, step, plan.next_stop(step)
            began = time.perf_counter()
            states, chunk = programs.advance(before, step - previous, used, meanwhile=write)
            seconds += time.perf_counter() - began
            end_failed(programs, runs, before, previous, chunk, seconds, drawing)
            judged = programs.evaluate(states) if plan.evaluates_at(step) and running(runs) else None
            write = partial(_record, runs, step, chunk, judged, progress)  # beside the next chunk, if that is all
            saves, draws = plan.saves_after(previous, step), plan.draws_at(step)
            if judged is not None or saves or draws or step == plan.steps:
                write()
                write = _nothing
                if step < plan.steps and (saves or any(run.at_best for run in running(runs))):
                    _save(programs, runs, states, writing)  # of all, so that they can go on from the same step
                if draws and step < plan.steps:
                    _draw(runs, states, drawing)


def _nothing() -> None:
    """There is nothing to write."""


def _record(
    runs: Sequence[Recorder], step: int, chunk: Chunk, judged: Mapping[str, Judgement] | None, progress: Progress
) -> None:
    """Writes what a chunk has left of each run."""
    for run in running(runs):
        with run.isolating_failures():
            row = run.row(step, chunk)
            run.log(step, row if judged is None else {**row, **run.judge(step, judged)})
    progress.update("training", [run.result for run in runs])


def _start(
    programs: Programs, runs: Sequence[Recorder], checkpoints: Sequence[Checkpoint], writing: Executor
) -> RunState:
    """The states that runs go on from, or begin with; then they are evaluated and logged first."""
    if checkpoints:
        return programs.restore([checkpoint.arrays for checkpoint in checkpoints])
    states = programs.begin()
    judged = programs.evaluate(states)
    for run in runs:
        with run.isolating_failures():
            run.log(0, {**run.spent(0, 0), **run.judge(0, judged)})
            run.first_unadapted_loss = float(np.median(run.losses[:, 0]))
    if any(run.at_best for run in running(runs)):
        _save(programs, runs, states, writing)
    return states


def _end(
    programs: Programs,
    runs: Sequence[Recorder],
    ending: Sequence[Recorder],
    states: RunState,
    step: int,
    plan: Plan,
    progress: Progress,
    seconds: float,
    writing: Executor,
    drawing: Executor,
) -> None:
    """Leaves whatever runs leave at their end, planned or not."""
    _save(programs, ending, states, writing)
    if not plan.evaluates_at(step):  # the checkpoint has the row without it, as a longer run would
        judged = programs.evaluate(states)
        for run in running(ending):
            with run.isolating_failures():
                run.amend(run.judge(step, judged))
    progress.update("drawing", [run.result for run in runs])
    _draw(ending, states, drawing)
    for run in running(ending):
        with run.isolating_failures():
            run.finish_saving()
            run.finish_figures()
            broken = not np.isfinite(run.losses[:, 0]).any()  # by the very last update
            planned = "finished" if run.at_end else "interrupted"
            run.close(describe_failure(run.standing, step) if broken else planned, seconds, len(runs))


def _save(programs: Programs, runs: Sequence[Recorder], states: RunState, writing: Executor) -> None:
    leaves = programs.save(states)
    for run in running(runs):
        with run.isolating_failures():
            run.save(leaves[run.index], writing)


def _draw(runs: Sequence[Recorder], states: RunState, drawing: Executor) -> None:
    for run in running(runs):
        with run.isolating_failures():
            run.draw(states, drawing)
