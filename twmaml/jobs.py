"""Hydra's jobs: what one trains and where, one alone, or many that differ only in their seed as one program."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration import Job, build_job, listed, read_settings
from twmaml.errors import ConfigurationError, ExpectedError
from twmaml.processes import drawing_executor, prepare_jax, stop_on_interrupt
from twmaml.report import (
    closing_paths,
    closing_table,
    describe,
    group_title,
    mean_metrics,
    shorten,
    upload_command,
)
from twmaml.request import GROUPS, Request, program_of, read_request
from twmaml.session import DoesNotFitError, Plan, Run, Session
from twmaml.terminal import SweepTerminal, Terminal
from twmaml.tracking import MetricsFile, WandbRun

log = logging.getLogger(__name__)


MEMORY_SHARE = 0.8
"""Of the memory that is free when a program is compiled, what it may take."""


class TrainingFailedError(ExpectedError):
    """A loss stopped being finite; the message is one line that names the meta-step and the likely cause."""


_built: dict[str, Job] = {}


def build_once(config: Mapping[str, Any]) -> Job:
    """The parts of a job, built only once for all jobs that one program can train."""
    program = program_of(config)
    if program not in _built:
        _built[program] = build_job(OmegaConf.create(dict(config)))
    return _built[program]


def validate_job(config: Mapping[str, Any]) -> None:
    """Checks all that a job could stumble over before it compiles.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    prepare_jax()
    read_settings(OmegaConf.create(dict(config)))
    build_once(config)


def prepare_job(cfg: DictConfig) -> Request:
    """Reads what Hydra asks for, where it calls the job, and makes the folders of its runs.

    Raises:
        ConfigurationError: if one of them already holds a run.
    """
    request = read_request(cfg)
    for run_folder in request.folders:
        if (run_folder / "metrics.csv").exists():
            raise ConfigurationError(f"hydra.run.dir={run_folder}: already holds a run; choose another folder")
        for name in ("evaluation", "figures"):
            (run_folder / name).mkdir(parents=True, exist_ok=True)
    return request


def run_job(cfg: DictConfig) -> float:
    """Trains what a configuration describes and leaves its files in Hydra's output folder.

    Returns:
        `eval/loss` at the end, its mean over the seeds.

    Raises:
        ConfigurationError: before anything is compiled.
        TrainingFailedError: if a loss stopped being finite; everything up to there is on disk.
        KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
    """
    prepare_jax()
    request = prepare_job(cfg)
    job = build_once(request.config)
    runs_asked, steps = len(request.settings.seeds), request.settings.steps
    with (
        stop_on_interrupt() as stopping,
        Terminal(steps * runs_asked) as terminal,
        drawing_executor(runs_asked) as drawing,
    ):
        terminal.start(*describe(request, job))

        def show(stage: str, runs: Sequence[Run]) -> None:
            terminal.update(_steps_done(runs), stage, mean_metrics(runs))

        (runs,) = train_jobs(job, [request], stopping, drawing, show)
        if stopping:
            terminal.say(f"interrupted after {max(run.step for run in runs):,} of {steps:,} meta-steps")
        terminal.finish(closing_table(job, runs), closing_paths(request.folder, runs))
    if stopping:
        raise KeyboardInterrupt
    return _result(runs)


class Sweep:
    """Groups of jobs, each group one program, trained one after the other and watched as a whole.

    Args:
        groups: of each group Hydra's overrides that set it apart, and the configurations of its jobs.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[str], Sequence[Mapping[str, Any]]]]) -> None:
        prepare_jax()
        for _, configs in groups:
            for config in configs:
                _check_devices(config["devices"]["tasks"])
        self._titles = [group_title(overrides, configs) for overrides, configs in groups]
        self._jobs = [len(configs) for _, configs in groups]
        runs = [[len(listed(config["seed"])) for config in configs] for _, configs in groups]
        self._steps = [
            sum(config["steps"] * n for config, n in zip(configs, of_group, strict=True))
            for (_, configs), of_group in zip(groups, runs, strict=True)
        ]
        self._runs = sum(map(sum, runs))
        self._terminal = SweepTerminal(sum(self._steps), sum(self._jobs), len(groups))
        self._paths: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Sweep":
        self._stopping = self._stack.enter_context(stop_on_interrupt())
        self._drawing = self._stack.enter_context(drawing_executor(self._runs))
        self._stack.enter_context(self._terminal)
        return self

    def __exit__(self, *error: Any) -> None:
        self._terminal.finish([], self._paths)
        self._stack.__exit__(*error)

    def run_group(self, index: int, requests: Sequence[Request]) -> list[float | Exception]:
        """Trains the jobs of a group, those that could be prepared.

        Returns:
            What each one would return alone, or the error that it would raise.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
        """
        before = sum(self._steps[:index])
        self._terminal.start_group(index, self._titles[index])

        def show(stage: str, runs: Sequence[Run]) -> None:
            self._terminal.update(before + _steps_done(runs), stage, mean_metrics(runs))

        outcomes: list[float | Exception] = []
        try:
            if requests:
                job = build_once(requests[0].config)
                runs_of_jobs = train_jobs(job, requests, self._stopping, self._drawing, show)
                self._note_paths(requests[0], runs_of_jobs[0])
                outcomes += map(_outcome, runs_of_jobs)
        except Exception as error:
            log.info("A group of jobs failed", exc_info=True)
            outcomes = [error] * len(requests)
        if self._stopping:
            self._terminal.say_interrupted()
            raise KeyboardInterrupt
        losses = [outcome for outcome in outcomes if isinstance(outcome, float)]
        self._terminal.finish_group(before + self._steps[index], self._jobs[index], losses)
        return outcomes

    def _note_paths(self, request: Request, runs: Sequence[Run]) -> None:
        folder = shorten(request.folder.parent)
        self._paths["folder"] = str(folder)
        if runs[0].wandb.mode == "offline":
            depth = "" if runs[0].folder == request.folder else "/seed_*"
            self._paths["W&B"] = upload_command(f"{folder}/*{depth}")


class ReportedError(BaseException):
    """Carries the error of a single run past Hydra, which would print lines of its own about it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def hydra_job(cfg: DictConfig) -> float:
    """What Hydra runs. In a sweep an error must reach Hydra, so that the other jobs go on."""
    try:
        return run_job(cfg)
    except BaseException as error:
        if HydraConfig.get().mode == RunMode.RUN:
            raise ReportedError(error) from error
        raise


# Hydra hands the task function to its sweeper and its launcher: what twmaml's own ones need of it goes with it.
hydra_job.validate = validate_job  # type: ignore[attr-defined]
hydra_job.program_of = program_of  # type: ignore[attr-defined]
hydra_job.prepare = prepare_job  # type: ignore[attr-defined]
hydra_job.sweep = Sweep  # type: ignore[attr-defined]


def train_jobs(
    job: Job,
    requests: Sequence[Request],
    stopping: Sequence[Any],
    drawing: Executor,
    show: Callable[[str, Sequence[Run]], None],
) -> list[list[Run]]:
    """Trains jobs that differ only in their seed as one program, or as several if one would not fit into memory.

    Args:
        job: what they have in common.
        requests: what is each one's own.
        stopping: once it is not empty, training ends with the chunk.
        drawing: draws the figures.
        show: told after each chunk what is being done and how the runs stand.

    Returns:
        The runs of each job.
    """
    settings = requests[0].settings  # which are the others' too, but for the seeds
    _check_devices(settings.devices.tasks)
    asked = [(r, seed, folder) for r in requests for seed, folder in zip(r.settings.seeds, r.folders, strict=True)]
    plan = Plan(settings.steps, settings.log_every, settings.evaluation.every, settings.figures_every)
    runs: list[Run] = []
    with ThreadPoolExecutor() as background:
        seeds = [seed for _, seed, _ in asked]
        whole = Session(job.learner, job.evaluation, seeds, background, drawing)
        wandb_runs: list[WandbRun] = []
        try:
            # While the session compiles. The first one loads W&B and finds out whether its server can be reached.
            wandb_runs.append(_open_wandb(*asked[0]))
            wandb_runs += background.map(lambda of_run: _open_wandb(*of_run), asked[1:])
            for part, session in _compiled(whole, job, seeds, settings.devices.memory_gib, background, drawing):
                first = len(runs)
                for (request, seed, folder), wandb_run in zip(asked[part], wandb_runs[part], strict=True):
                    metrics = MetricsFile(folder / "metrics.csv", session.metric_names)
                    runs.append(Run(seed, f"{request.title}, seed {seed}", folder, metrics, wandb_run))
                session.train(plan, runs[first:], stopping, lambda stage: show(stage, runs))
        except BaseException:
            for wandb_run in wandb_runs:
                wandb_run.finish({}, exit_code=1)
            raise
    remaining = iter(runs)
    return [[next(remaining) for _ in request.settings.seeds] for request in requests]


def _compiled(
    whole: Session,
    job: Job,
    seeds: Sequence[int],
    memory: float | None,
    background: Executor,
    drawing: Executor,
) -> Iterator[tuple[slice, Session]]:
    """The session of all seeds; where the memory does not hold them, one of half of them and one of the others."""
    parts: list[tuple[int, int, Session | None]] = [(0, len(seeds), whole)]
    while parts:
        start, end, session = parts.pop(0)
        if session is None:
            session = Session(job.learner, job.evaluation, seeds[start:end], background, drawing)
        try:
            session.wait_until_compiled(memory * 2**30 if memory is not None else MEMORY_SHARE * _free_memory())
        except DoesNotFitError as error:
            middle = (start + end) // 2
            log.info("%s; goes on with %d of them", error, middle - start)
            parts[:0] = [(start, middle, None), (middle, end, None)]
        else:
            yield slice(start, end), session


def _free_memory() -> float:
    """Bytes that are free for programs: of the host, or of an accelerator."""
    if jax.default_backend() == "cpu":
        return psutil.virtual_memory().available
    statistics = jax.devices()[0].memory_stats()
    return statistics["bytes_limit"] - statistics["bytes_in_use"] if statistics else math.inf


def _check_devices(asked: int) -> None:
    present = jax.device_count()
    if asked > present:
        raise ConfigurationError(f"devices.tasks={asked}: there {'is' if present == 1 else 'are'} {present} here")


def _open_wandb(request: Request, seed: int, folder: Path) -> WandbRun:
    """Starts the W&B run of a seed."""
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
    )


def _result(runs: Sequence[Run]) -> float:
    """What a job returns: the final `eval/loss`, its mean over the seeds."""
    failed = [run.status for run in runs if run.failed]
    if failed:
        raise TrainingFailedError("; ".join(failed))
    return float(np.mean([run.latest["eval/loss"] for run in runs]))


def _outcome(runs: Sequence[Run]) -> float | Exception:
    try:
        return _result(runs)
    except TrainingFailedError as error:
        return error


def _steps_done(runs: Sequence[Run]) -> int:
    return sum(run.step for run in runs)
