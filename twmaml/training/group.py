"""Runs that one program can train: where each of them starts, and halving where the memory is short."""

import importlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from twmaml.storage.checkpoint import Checkpoint, CheckpointError, newest
from twmaml.storage.metrics_file import NO_FIT
from twmaml.storage.run_folder import Finished, Resumable
from twmaml.storage.wandb_run import WandbRun
from twmaml.training.loop import train
from twmaml.training.members import Group
from twmaml.training.memory import allowed_memory
from twmaml.training.plan import Plan, Stop
from twmaml.training.programs import DoesNotFitError, Programs, Tracing
from twmaml.training.recorder import Recorder
from twmaml.training.runs import Progress, RunResult, RunSpec, Shared

log = logging.getLogger(__name__)


_OTHER_DATA = "was trained with other images or arrays than are there now; it cannot go on with these"


def train_runs(
    shared: Shared, specs: Sequence[RunSpec], progress: Progress, stop: Stop, drawing: Executor
) -> list[RunResult]:
    """Trains runs that one program can train (`train`), or several if one would not fit into memory.

    Returns:
        The runs, but for those that had not begun when the training was stopped.
    """
    results = [
        RunResult(
            folder=spec.folder, step=end.step, latest=dict(end.metrics), status="finished", best_step=end.best_step
        )
        for spec, end in [(spec, spec.start.end) for spec in specs if isinstance(spec.start, Finished)]
    ]
    unfinished = [spec for spec in specs if not isinstance(spec.start, Finished)]
    starts: dict[int | None, list[tuple[RunSpec, Checkpoint | None]]] = {}
    for spec, checkpoint in zip(unfinished, _newest(unfinished, shared.plan), strict=True):
        if isinstance(checkpoint, CheckpointError):
            results.append(RunResult(folder=spec.folder, status=str(checkpoint)))
        elif checkpoint is not None and not checkpoint.notes.mark.fits(spec.folder / "metrics.csv"):
            results.append(RunResult(folder=spec.folder, status=f"{spec.folder / 'metrics.csv'} {NO_FIT}"))
        elif checkpoint is not None and checkpoint.notes.data != shared.parts.fingerprint:
            results.append(RunResult(folder=spec.folder, status=f"{spec.folder} {_OTHER_DATA}"))
        else:
            step = None if checkpoint is None else checkpoint.notes.step
            starts.setdefault(step, []).append((spec, checkpoint))
    for step, together in starts.items():
        if step is not None:
            log.info("%d runs go on from meta-step %d", len(together), step)
        results += _train_together(shared, together, progress, stop, drawing)
        if stop.asked:
            break
    return results


def _newest(specs: Sequence[RunSpec], plan: Plan) -> list[Checkpoint | CheckpointError | None]:
    """The checkpoint that each run goes on from, or None; the error of one that cannot, unless it is alone."""
    folders = [spec.folder for spec in specs if isinstance(spec.start, Resumable)]
    found: dict[Path, Checkpoint | CheckpointError | None] = {}
    try:
        if folders:
            found |= zip(folders, newest(folders, plan.stops_at), strict=True)
    except CheckpointError:
        if len(specs) == 1:
            raise
        for folder in folders:
            try:
                (found[folder],) = newest([folder], plan.stops_at)
            except CheckpointError as error:
                found[folder] = error
    return [found.get(spec.folder) for spec in specs]


def _train_together(
    shared: Shared,
    starts: Sequence[tuple[RunSpec, Checkpoint | None]],
    progress: Progress,
    stop: Stop,
    drawing: Executor,
) -> list[RunResult]:
    """Trains runs that start at the same step as one program."""
    specs, results = [spec for spec, _ in starts], list[RunResult]()
    with ThreadPoolExecutor() as background:
        whole = _trace(specs, background)
        background.submit(importlib.import_module, "twmaml.figures.run")
        wandb_runs: list[WandbRun] = []
        try:
            # While the programs compile. The first one loads W&B and finds out whether its server can be reached.
            wandb_runs.append(_open_wandb(starts[0]))
            wandb_runs += background.map(_open_wandb, starts[1:])
            for part, programs in _compiled(shared, whole, specs, background):
                of_part = zip(starts[part], wandb_runs[part], strict=True)
                runs = [
                    Recorder(spec, shared, programs, index, checkpoint, wandb_run)
                    for index, ((spec, checkpoint), wandb_run) in enumerate(of_part)
                ]
                known = [checkpoint for _, checkpoint in starts[part] if checkpoint is not None]
                train(programs, runs, known, shared.plan, progress, stop, drawing)
                results += [run.result for run in runs]
                if stop.asked:
                    break
        finally:
            for wandb_run in wandb_runs:  # of runs that have not come to their end
                wandb_run.finish({}, exit_code=1)
    return results


def _open_wandb(start: tuple[RunSpec, Checkpoint | None]) -> WandbRun:
    """Starts the W&B run of a seed, or goes on with it."""
    spec, checkpoint = start
    return WandbRun(spec.folder, identity=None if checkpoint is None else checkpoint.notes.wandb_id, **spec.wandb)


def _trace(specs: Sequence[RunSpec], background: Executor) -> Tracing:
    parts, seeds = [spec.parts for spec in specs], [spec.seed for spec in specs]
    return Tracing(Group(parts, seeds, [spec.numbers for spec in specs]), background)


def _compiled(
    shared: Shared, whole: Tracing, specs: Sequence[RunSpec], background: Executor
) -> Iterator[tuple[slice, Programs]]:
    """The programs of all runs; where the memory does not hold them, those of half of them and of the others."""
    parts: list[tuple[int, int, Tracing | None]] = [(0, len(specs), whole)]
    while parts:
        start, end, traced = parts.pop(0)
        if traced is None:
            traced = _trace(specs[start:end], background)
        try:
            programs = traced.compiled(allowed_memory(shared.memory_gib))
        except DoesNotFitError as error:
            middle = (start + end) // 2
            log.info("%s; goes on with %d of them", error, middle - start)
            parts[:0] = [(start, middle, None), (middle, end, None)]
        else:
            yield slice(start, end), programs
