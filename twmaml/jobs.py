"""Hydra's jobs: what one trains and where, one alone, or many as one program."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.checkpoint import CheckpointError
from twmaml.configuration import Job, build_job, listed, read_settings
from twmaml.errors import ConfigurationError, ExpectedError
from twmaml.processes import drawing_executor, prepare_jax, stop_on_interrupt
from twmaml.report import (
    closing_paths,
    closing_table,
    describe,
    jobs_title,
    mean_metrics,
    resume_command,
    shorten,
    upload_command,
)
from twmaml.request import Request, job_of, program_of, read_request, run_folders
from twmaml.run import Run, RunRecord
from twmaml.standing import AlreadyFinishedError, FolderLock, check, finished
from twmaml.terminal import SweepTerminal, Terminal
from twmaml.training import check_devices, check_memory, train_jobs

log = logging.getLogger(__name__)


class TrainingFailedError(ExpectedError):
    """A loss stopped being finite, or a run cannot go on; the message is one line that says where and why."""


_built: dict[str, Job] = {}


def build_once(config: Mapping[str, Any]) -> Job:
    """The parts of a job, built only once for all jobs that have the same."""
    parts = job_of(config)
    if parts not in _built:
        _built[parts] = build_job(OmegaConf.create(dict(config)))
    return _built[parts]


def validate_job(config: Mapping[str, Any], folder: Path) -> None:
    """Checks all that a job could stumble over before it compiles.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    prepare_jax()
    read_settings(OmegaConf.create(dict(config)))
    build_once(config)
    _check_seeds(config, folder)
    for run_folder in run_folders(folder, config["seed"]):
        with suppress(CheckpointError):  # which is a matter of that job alone
            check(config, run_folder)


def _check_seeds(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses the folder of a job of other seeds: a single one's is the folder of its run, others' are in there."""
    own = run_folders(folder, config["seed"])
    for present in (folder, *folder.glob("seed_*")):
        if present not in own and (present / "checkpoints").is_dir():
            raise ConfigurationError(
                f"seed={config['seed']}: {present} already holds a run of another seed; choose another folder"
            )


def finished_job(config: Mapping[str, Any], folder: Path) -> float | None:
    """What a job returned that an earlier process has finished; None if there is something left to do."""
    metrics = [finished(config, run_folder) for run_folder in run_folders(folder, config["seed"])]
    losses = [each["eval/loss"] for each in metrics if each is not None]
    return float(np.mean(losses)) if len(losses) == len(metrics) else None


class FolderGuard(Callback):
    """Called by Hydra before it writes to the folder of a single run."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuses a folder whose run cannot go on with this configuration.

        Raises:
            ReportedError: with the reason.
        """
        HydraConfig.instance().set_config(config)  # which its folder is named after
        folder = Path(str(config.hydra.run.dir))
        if not folder.is_dir():
            return
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        try:
            read_settings(own)
            guard_folder(OmegaConf.to_container(own, resolve=True), folder)  # type: ignore[arg-type]
        except ExpectedError as error:
            raise ReportedError(error) from error


def guard_folder(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses a folder in which there is nothing to do, or nothing that can go on.

    Raises:
        ExpectedError: with the reason.
    """
    _check_seeds(config, folder)
    for run_folder in run_folders(folder, config["seed"]):
        check(config, run_folder)
    if finished_job(config, folder) is not None:
        raise AlreadyFinishedError(f"{shorten(folder)} is finished: {config['steps']:,} meta-steps")


def prepare_job(cfg: DictConfig) -> Request:
    """Reads what Hydra asks for, where it calls the job, and makes the folders of its runs.

    Raises:
        ExpectedError: if one of them holds a run that cannot go on, or another process is there.
    """
    request = read_request(cfg)
    try:
        for run_folder in request.folders:
            check(request.config, run_folder)
            for name in ("checkpoints", "evaluation", "figures"):
                (run_folder / name).mkdir(parents=True, exist_ok=True)
            request.locks.append(FolderLock(run_folder))
    except BaseException:
        request.release()
        raise
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
    request = read_request(cfg)
    result = finished_job(request.config, request.folder)
    if result is not None:
        log.info("It is finished already")
        return result
    request = prepare_job(cfg)
    job = build_once(request.config)
    runs_asked, steps = len(request.settings.seeds), request.settings.steps
    with (
        stop_on_interrupt() as stopping,
        Terminal(steps * runs_asked) as terminal,
        drawing_executor(runs_asked) as drawing,
    ):
        terminal.start(*describe(request, job))

        def show(stage: str, runs: Sequence[RunRecord]) -> None:
            terminal.update(_steps_done(runs), stage, mean_metrics(runs))

        (runs,) = train_jobs([job], [request], stopping, drawing, show)
        if not any(run.latest for run in runs):
            return _result(runs)  # says why not one of them could go on
        if stopping:
            terminal.say(f"interrupted after {max(run.step for run in runs):,} of {steps:,} meta-steps")
        terminal.finish(closing_table(job, runs), closing_paths(request.folder, runs))
        if stopping:
            whole = request.folder if request.sweep is None else Path(HydraConfig.get().sweep.dir)
            terminal.say(f"  go on with {resume_command(whole)}")
    if stopping:
        raise KeyboardInterrupt(stopping[0])
    return _result(runs)


class Sweep:
    """Groups of jobs, each group one program, trained one after the other and watched as a whole.

    Args:
        groups: of each group its jobs by their numbers: the overrides that set each apart, and its configuration.
        folder: of the sweep.
    """

    def __init__(self, groups: Sequence[Mapping[int, tuple[Sequence[str], Mapping[str, Any]]]], folder: Path) -> None:
        prepare_jax()
        self._groups, self._folder = groups, folder.absolute()
        for number, (overrides, config) in chain(*[group.items() for group in groups]):
            try:
                check_devices(config["devices"]["tasks"])
                check_memory([build_once(config)])
            except ConfigurationError as error:
                raise ConfigurationError(f"job {number} ({' '.join(overrides)}): {error}") from error
        configs = [[config for _, config in group.values()] for group in groups]
        self._steps = [sum(config["steps"] * len(listed(config["seed"])) for config in group) for group in configs]
        self._runs = sum(len(listed(config["seed"])) for config in chain(*configs))
        self._terminal = SweepTerminal(sum(self._steps), sum(map(len, groups)), len(groups))
        self._paths: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Sweep":
        self._stopping = self._stack.enter_context(stop_on_interrupt())
        self._drawing = self._stack.enter_context(drawing_executor(self._runs))
        self._stack.enter_context(self._terminal)
        return self

    def __exit__(self, *error: Any) -> None:
        self._terminal.finish([], self._paths)
        if self._stopping:
            self._terminal.say(f"  go on with {resume_command(self._folder)}")
        self._stack.__exit__(*error)

    def run_group(self, index: int, requests: Mapping[int, Request]) -> dict[int, float | Exception]:
        """Trains the jobs of a group, those that could be prepared.

        Args:
            index: of the group.
            requests: by the numbers of the jobs.

        Returns:
            What each one would return alone, or the error that it would raise.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
        """
        before, group = sum(self._steps[:index]), self._groups[index]
        self._terminal.start_group(index, jobs_title([*group.values()]))

        def show(stage: str, runs: Sequence[RunRecord]) -> None:
            self._terminal.update(before + _steps_done(runs), stage, mean_metrics(runs))

        outcomes: dict[int, float | Exception] = {}
        try:
            if requests:
                asked = [*requests.values()]
                jobs = [build_once(request.config) for request in asked]
                runs_of_jobs = train_jobs(jobs, asked, self._stopping, self._drawing, show)
                self._note_paths(runs_of_jobs)
                if not self._stopping:  # some have not begun then
                    outcomes = dict(zip(requests, map(_outcome, runs_of_jobs), strict=True))
        except Exception as error:
            log.info("A group of jobs failed", exc_info=True)
            outcomes = {**dict.fromkeys(requests, error), **_ends(requests)}
        if self._stopping:
            self._terminal.say_interrupted(len(_ends(requests)))
            raise KeyboardInterrupt(self._stopping[0])
        settings: dict[tuple[str, ...], list[int]] = {}  # what differs only in the seed is one line
        for number, (overrides, _) in group.items():
            settings.setdefault(tuple(o for o in overrides if not o.startswith("seed=")), []).append(number)
        results = []
        for numbers in settings.values():
            losses = [loss for n in numbers if isinstance(loss := outcomes.get(n), float)]
            results.append((jobs_title([group[n] for n in numbers]), len(numbers), losses))
        self._terminal.finish_group(before + self._steps[index], results)
        return outcomes

    def _note_paths(self, runs_of_jobs: Sequence[Sequence[RunRecord]]) -> None:
        folder = self._folder
        self._paths["folder"] = str(shorten(folder))
        runs = [run for runs in runs_of_jobs for run in runs if isinstance(run, Run) and run.wandb.mode == "offline"]
        if runs:
            depth = len(runs[0].folder.relative_to(folder).parts) if runs[0].folder.is_relative_to(folder) else 1
            self._paths["W&B"] = upload_command("/".join([str(shorten(folder)), *["*"] * depth]))


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
hydra_job.finished = finished_job  # type: ignore[attr-defined]
hydra_job.prepare = prepare_job  # type: ignore[attr-defined]
hydra_job.sweep = Sweep  # type: ignore[attr-defined]


def _ends(requests: Mapping[int, Request]) -> dict[int, float]:
    """What those jobs returned that are at their end."""
    ends = {number: finished_job(request.config, request.folder) for number, request in requests.items()}
    return {number: end for number, end in ends.items() if end is not None}


def _result(runs: Sequence[RunRecord]) -> float:
    """What a job returns: the final `eval/loss`, its mean over the seeds."""
    failed = [run.status for run in runs if run.failed]
    if failed:
        raise TrainingFailedError("; ".join(failed))
    return float(np.mean([run.latest["eval/loss"] for run in runs]))


def _outcome(runs: Sequence[RunRecord]) -> float | Exception:
    try:
        return _result(runs)
    except TrainingFailedError as error:
        return error


def _steps_done(runs: Sequence[RunRecord]) -> int:
    return sum(run.step for run in runs)
