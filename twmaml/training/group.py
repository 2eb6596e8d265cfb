"""Trains jobs that one program can train: which runs share a program, and where each of them starts."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax

from twmaml.configuration.build import Job
from twmaml.errors import ConfigurationError
from twmaml.jobs.job import GROUPS, Request
from twmaml.storage.checkpoint import Checkpoint, CheckpointError, newest
from twmaml.storage.metrics_file import NO_FIT, MetricsFile
from twmaml.storage.run_folder import cut_back, finished
from twmaml.storage.wandb_run import WandbRun
from twmaml.training.loop import Session, metric_names
from twmaml.training.memory import free_memory
from twmaml.training.plan import Plan
from twmaml.training.programs import DoesNotFitError, Programs
from twmaml.training.recorder import Run, RunRecord

log = logging.getLogger(__name__)


MEMORY_SHARE = 0.8
"""Of the memory that is free when a program is compiled, what it may take."""


class _Start(NamedTuple):
    """A run before it goes on, or begins."""

    job: Job
    request: Request
    seed: int
    folder: Path
    checkpoint: Checkpoint | None

    @property
    def step(self) -> int | None:
        return None if self.checkpoint is None else self.checkpoint.notes.step


def train_jobs(
    jobs: Sequence[Job],
    requests: Sequence[Request],
    stopping: Sequence[Any],
    drawing: Executor,
    show: Callable[[str, Sequence[RunRecord]], None],
) -> list[list[RunRecord]]:
    """Trains jobs that one program can train (`program_of`), or several if one would not fit into memory.

    Args:
        jobs: of which only the samplers differ.
        requests: what Hydra asks for with each.
        stopping: once it is not empty, training ends with the chunk.
        drawing: draws the figures.
        show: told after each chunk what is being done and how the runs stand.

    Returns:
        The runs of each job.
    """
    with _holding(requests):
        settings = requests[0].settings  # which are the others' too, as far as a program depends on them
        check_devices(settings.devices.tasks)
        check_memory(jobs)
        plan = Plan(
            settings.steps,
            settings.log_every,
            settings.evaluation.every,
            settings.figures_every,
            settings.checkpoint.every,
            settings.checkpoint.keep,
        )
        runs: dict[Path, RunRecord] = {}
        unfinished: list[tuple[Job, Request, int, Path]] = []
        for job, request in zip(jobs, requests, strict=True):
            for seed, folder in zip(request.settings.seeds, request.folders, strict=True):
                latest = finished(request.config, folder)
                if latest is None:
                    unfinished.append((job, request, seed, folder))
                else:
                    runs[folder] = RunRecord(folder=folder, step=settings.steps, latest=latest, status="finished")
        checkpoints = _newest([folder for *_, folder in unfinished], plan.stops_at) if unfinished else []
        starts = []
        for (job, request, seed, folder), checkpoint in zip(unfinished, checkpoints, strict=True):
            if isinstance(checkpoint, CheckpointError):
                runs[folder] = RunRecord(folder=folder, status=str(checkpoint))
            elif checkpoint is not None and not checkpoint.notes.mark.fits(folder / "metrics.csv"):
                runs[folder] = RunRecord(folder=folder, status=f"{folder / 'metrics.csv'} {NO_FIT}")
            else:
                starts.append(_Start(job, request, seed, folder, checkpoint))
        for step in dict.fromkeys(start.step for start in starts):
            together = [start for start in starts if start.step == step]
            if step is not None:
                log.info("%d runs go on from meta-step %d", len(together), step)
            _train_together(together, plan, runs, stopping, drawing, show)
            if stopping:
                break
        return [[runs[folder] for folder in request.folders if folder in runs] for request in requests]


def _newest(folders: Sequence[Path], may_start_at: Callable[[int], bool]) -> list[Checkpoint | CheckpointError | None]:
    """Where runs go on (`newest`), and instead the error of those that cannot, if there are others.

    Raises:
        CheckpointError: if the only run cannot.
    """
    try:
        return [*newest(folders, may_start_at)]
    except CheckpointError:
        if len(folders) == 1:
            raise
    each: list[Checkpoint | CheckpointError | None] = []
    for folder in folders:
        try:
            each += newest([folder], may_start_at)
        except CheckpointError as error:
            each.append(error)
    return each


@contextmanager
def _holding(requests: Sequence[Request]) -> Iterator[None]:
    """Lets others into the folders when it ends."""
    try:
        yield
    finally:
        for request in requests:
            request.release()


def _train_together(
    starts: Sequence[_Start],
    plan: Plan,
    runs: dict[Path, RunRecord],
    stopping: Sequence[Any],
    drawing: Executor,
    show: Callable[[str, Sequence[RunRecord]], None],
) -> None:
    """Trains runs that start at the same step as one program, and adds them to `runs`."""
    job, memory = starts[0].job, starts[0].request.settings.devices.memory_gib
    with ThreadPoolExecutor() as background:
        whole = _programs(starts, background)
        wandb_runs: list[WandbRun] = []
        try:
            # While the programs compile. The first one loads W&B and finds out whether its server can be reached.
            wandb_runs.append(_open_wandb(starts[0]))
            wandb_runs += background.map(_open_wandb, starts[1:])
            for part, programs in _compiled(whole, starts, memory, background):
                opened = [
                    _open(start, plan, metric_names(programs, job.evaluations, start.job.learner.sampler), wandb_run)
                    for start, wandb_run in zip(starts[part], wandb_runs[part], strict=True)
                ]
                session = Session(programs, job.evaluations, job.figures, opened, plan, background, drawing)
                session.start([start.checkpoint for start in starts[part]])
                runs.update({run.folder: run for run in opened})
                session.train(stopping, lambda stage: show(stage, [*runs.values()]))
                if stopping:
                    break
        finally:
            for wandb_run in wandb_runs:  # of runs that have not come to their end
                wandb_run.finish({}, exit_code=1)


def _programs(starts: Sequence[_Start], background: Executor) -> Programs:
    """What these runs are trained with, whose jobs differ only in the sampler."""
    job = starts[0].job
    samplers = [start.job.learner.sampler for start in starts]
    return Programs(job.learner, job.evaluations, job.data, [start.seed for start in starts], samplers, background)


def _open(start: _Start, plan: Plan, columns: Sequence[str], wandb_run: WandbRun) -> Run:
    """The run of a seed, with its files as they stood where it starts."""
    job, request, seed, folder, checkpoint = start
    metrics = folder / "metrics.csv"
    if checkpoint is None:
        metrics.unlink(missing_ok=True)
    file = MetricsFile(metrics, columns, None if checkpoint is None else checkpoint.notes.mark)
    cut_back(folder, plan.evaluates_at, checkpoint)
    return Run(
        folder=folder,
        seed=seed,
        title=f"{request.title}, seed {seed}",
        config=request.config,
        sampler=job.learner.sampler,
        metrics=file,
        wandb=wandb_run,
    )


def _compiled(
    whole: Programs, starts: Sequence[_Start], memory: float | None, background: Executor
) -> Iterator[tuple[slice, Programs]]:
    """The programs of all runs; where the memory does not hold them, those of half of them and of the others."""
    parts: list[tuple[int, int, Programs | None]] = [(0, len(starts), whole)]
    while parts:
        start, end, programs = parts.pop(0)
        if programs is None:
            programs = _programs(starts[start:end], background)
        try:
            programs.wait_until_compiled(memory * 2**30 if memory is not None else MEMORY_SHARE * free_memory())
        except DoesNotFitError as error:
            middle = (start + end) // 2
            log.info("%s; goes on with %d of them", error, middle - start)
            parts[:0] = [(start, middle, None), (middle, end, None)]
        else:
            yield slice(start, end), programs


def check_devices(asked: int) -> None:
    """Refuses more devices for the tasks of a meta-batch than there are."""
    present = jax.device_count()
    if asked > present:
        raise ConfigurationError(f"devices.tasks={asked}: there {'is' if present == 1 else 'are'} {present} here")


def check_memory(jobs: Sequence[Job]) -> None:
    """Refuses jobs of which not even one run can fit into the memory that is free."""
    free = free_memory()
    for need in chain(*[job.needs for job in jobs]):
        if need.least_bytes > free:
            asked, left = (f"{size / 2**30:.3g} GiB" for size in (need.least_bytes, free))
            raise ConfigurationError(
                f"{need.keys}: {need.what} takes at least {asked} of memory, of which {left} are free"
            )


def _open_wandb(start: _Start) -> WandbRun:
    """Starts the W&B run of a seed, or goes on with it."""
    _, request, seed, folder, checkpoint = start
    settings = dict(request.config)
    # A flat name is what W&B can group runs by; what the name stands for goes beside it.
    parts = {f"{name}_config": settings.pop(name) for name in GROUPS}
    wandb = request.settings.wandb
    return WandbRun(
        folder,
        mode=wandb.mode,
        project=wandb.project,
        group=request.sweep if wandb.group is None else wandb.group,
        name=f"{request.choices['sampler']}-{request.choices['task']}-s{seed}",
        tags=[request.choices["sampler"], request.choices["task"]],
        config={**settings, **parts, **request.choices, "seed": seed},
        identity=None if checkpoint is None else checkpoint.notes.wandb_id,
    )
