"""The task function that Hydra calls."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.settings import read_settings
from twmaml.figures.pool import drawing_executor
from twmaml.jobs.job import (
    ReportedError,
    Request,
    build_once,
    check_seeds,
    finished_job,
    program_of,
    read_request,
    result_of,
    run_folders,
    steps_done,
)
from twmaml.jobs.process import prepare_jax, stop_on_interrupt
from twmaml.jobs.report import closing_paths, closing_table, describe, mean_metrics, resume_command
from twmaml.jobs.sweep import Sweep
from twmaml.jobs.terminal import Terminal
from twmaml.storage.checkpoint import CheckpointError
from twmaml.storage.run_folder import FolderLock, check
from twmaml.training.group import train_jobs
from twmaml.training.recorder import RunRecord

log = logging.getLogger(__name__)


def validate_job(config: Mapping[str, Any], folder: Path) -> None:
    """Checks all that a job could stumble over before it compiles.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    prepare_jax()
    read_settings(OmegaConf.create(dict(config)))
    build_once(config)
    check_seeds(config, folder)
    for run_folder in run_folders(folder, config["seed"]):
        with suppress(CheckpointError):  # which is a matter of that job alone
            check(config, run_folder)


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
            terminal.update(steps_done(runs), stage, mean_metrics(runs))

        (runs,) = train_jobs([job], [request], stopping, drawing, show)
        if not any(run.latest for run in runs):
            return result_of(runs)  # says why not one of them could go on
        if stopping:
            terminal.say(f"interrupted after {max(run.step for run in runs):,} of {steps:,} meta-steps")
        terminal.finish(closing_table(job, runs), closing_paths(request.folder, runs))
        if stopping:
            whole = request.folder if request.sweep is None else Path(HydraConfig.get().sweep.dir)
            terminal.say(f"  go on with {resume_command(whole)}")
    if stopping:
        raise KeyboardInterrupt(stopping[0])
    return result_of(runs)


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
