"""The task function that Hydra calls."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import jax
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.settings import read_settings
from twmaml.figures.pool import drawing_executor
from twmaml.jobs.grouping import group_keys
from twmaml.jobs.job import (
    Job,
    ReportedError,
    arguments_of,
    build_once,
    finished_job,
    result_in,
    result_of,
    states_in,
    train_jobs,
)
from twmaml.jobs.report import closing_paths, closing_tables, describe, resume_command
from twmaml.jobs.sweep import sweep
from twmaml.jobs.terminal import Terminal
from twmaml.storage.checkpoint import CheckpointError
from twmaml.storage.run_folder import Finished
from twmaml.training.process import stop_on_interrupt

log = logging.getLogger(__name__)

_MANY_CELLS = 100_000
"""Cells from which on samplers share no program: choosing among them copies the queue, which then takes longer."""


class TrainTask:
    """Trains a job, or several at once: a `VectorisedTask` of the launcher."""

    def __call__(self, cfg: DictConfig) -> float:
        """Trains one job. In a sweep an error must reach Hydra, so that the other jobs go on."""
        try:
            return train_job(cfg)
        except BaseException as error:
            if HydraConfig.get().mode == RunMode.RUN:
                raise ReportedError(error) from error
            raise

    def validate(self, config: Mapping[str, Any], folder: Path) -> None:
        """Checks all that a job could stumble over before it compiles."""
        read_settings(OmegaConf.create(dict(config)))
        build_once(config)
        with suppress(CheckpointError):  # which is a matter of that job alone
            states_in(config, folder)

    def group_keys(self, configs: Sequence[Mapping[str, Any]]) -> list[int]:
        """Equal for jobs that one program can train.

        With a large grid only if their sampler is the same, and on an accelerator if it is an expensive one: there a
        program of several samplers computes all of them in every run.
        """
        on_cpu = jax.default_backend() == "cpu"
        learners = [build_once(config).learner for config in configs]
        apart = [(e.sampler.expensive and not on_cpu) or e.family.grid.size >= _MANY_CELLS for e in learners]
        return group_keys(configs, apart, arguments_of)

    finished = staticmethod(finished_job)
    prepare = staticmethod(Job.open)
    sweep = staticmethod(sweep)


def train_job(cfg: DictConfig) -> float:
    """Trains what a configuration describes and leaves its files in Hydra's output folder.

    Returns:
        `eval/loss` at the end, its mean over the seeds.

    Raises:
        ConfigurationError: before anything is compiled.
        TrainingFailedError: if a loss stopped being finite; everything up to there is on disk.
        KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
    """
    with closing(Job.open(cfg)) as job:
        result = result_in([run.state for run in job.runs])
        if result is not None:
            log.info("It is finished already")
            return result
        seeds, steps = len(job.runs), job.settings.steps
        left = sum(not isinstance(run.state, Finished) for run in job.runs)
        title, facts = describe(job)
        with (
            stop_on_interrupt() as stop,
            Terminal(steps * left, job.parts.evaluation.leading) as terminal,
            drawing_executor(seeds) as drawing,
        ):
            terminal.start(title, facts)
            (runs,) = train_jobs([job], terminal, stop, drawing)
            if not any(run.latest for run in runs):
                return result_of(runs)  # says why not one of them could go on
            if stop.asked:
                terminal.say(f"interrupted after {max(run.step for run in runs):,} of {steps:,} meta-steps")
            terminal.finish(closing_tables(job, runs), closing_paths(job.folder, runs))
            if stop.asked:
                terminal.say(f"  go on with {resume_command(job.folder if job.sweep is None else job.sweep)}")
        if stop.asked:
            raise KeyboardInterrupt(stop.signal)
        return result_of(runs)
