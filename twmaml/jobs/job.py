"""A job as Hydra asks for it."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.build import build_parts
from twmaml.configuration.numbers import may_be_arguments
from twmaml.configuration.settings import Settings, read_settings
from twmaml.errors import ConfigurationError, ExpectedError, TrainingFailedError
from twmaml.jobs.grouping import sampler_numbers, shared_numbers
from twmaml.storage.run_folder import Finished, RunFolder, State
from twmaml.training.devices import check_machine
from twmaml.training.group import train_runs
from twmaml.training.parts import Parts
from twmaml.training.plan import Stop
from twmaml.training.process import allow_open_files, prepare_jax
from twmaml.training.runs import Progress, RunResult, RunSpec, Shared

GROUPS = ("sampler", "task", "model", "adaptation")

OBJECTIVE = "eval/loss"
"""The metric that is the result of a job, which sweepers minimise."""


class ReportedError(BaseException):
    """Carries the error of a single run past Hydra, which would print lines of its own about it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@dataclass(frozen=True)
class Job:
    """A job that is ready to run: the folders of its runs are closed to other processes."""

    config: dict[str, Any]
    """As composed, interpolations resolved."""
    settings: Settings
    folder: Path
    choices: Mapping[str, str]  # by configuration group
    sweep: Path | None
    """The folder of the sweep that it is part of."""
    runs: Sequence[RunFolder]

    @classmethod
    def open(cls, cfg: DictConfig) -> "Job":
        """Reads a job where Hydra calls it, as in there its own configuration is the job's, and opens its folders."""
        hydra_config = HydraConfig.get()
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        settings = read_settings(OmegaConf.create(config))
        allow_open_files(len(settings.seeds), settings.wandb.mode != "disabled")
        folder = Path(hydra_config.runtime.output_dir)
        choices = {group: str(hydra_config.runtime.choices[group]) for group in GROUPS}
        sweep = Path(hydra_config.sweep.dir) if hydra_config.mode == RunMode.MULTIRUN else None
        with ExitStack() as stack:
            runs = []
            for run_folder in run_folders(folder, settings.seed):
                runs.append(RunFolder(run_folder, config))
                stack.callback(runs[-1].close)
            stack.pop_all()  # all are open, and stay so
        return cls(config, settings, folder, choices, sweep, runs)

    def close(self) -> None:
        """Lets other processes into the folders."""
        for run in self.runs:
            run.close()

    @property
    def title(self) -> str:
        """The sampler and the task."""
        return f"{self.choices['sampler']} on {self.choices['task']}"

    @property
    def parts(self) -> Parts:
        """Whatever it is configured to train, built."""
        return build_once(self.config)

    def specs(self, parts: Parts, numbers: Mapping[str, float]) -> list[RunSpec]:
        """Its runs.

        Args:
            parts: its own but for the numbers.
            numbers: by key, which parts have otherwise.
        """
        settings = dict(self.config)
        # A flat name is what W&B can group runs by; what the name stands for goes beside it.
        of_parts = {f"{name}_config": settings.pop(name) for name in GROUPS}
        sampler, task = self.choices["sampler"], self.choices["task"]
        asked, group = self.settings.wandb, None if self.sweep is None else self.sweep.name
        wandb = {"mode": asked.mode, "project": asked.project, "group": group if asked.group is None else asked.group}
        return [
            RunSpec(
                folder=run.path,
                start=run.state,
                seed=seed,
                title=f"{self.title}, seed {seed}",
                parts=parts,
                numbers=numbers,
                config=self.config,
                wandb={
                    **wandb,
                    "name": f"{sampler}-{task}-s{seed}",
                    "tags": [sampler, task],
                    "config": {**settings, **of_parts, **self.choices, "seed": seed},
                },
            )
            for run, seed in zip(self.runs, self.settings.seeds, strict=True)
        ]


def run_folders(folder: Path, seed: int | Sequence[int]) -> list[Path]:
    """The folder of each run of a job: the job's own, or for a list of seeds one in it for each."""
    return [folder] if isinstance(seed, int) else [folder / f"seed_{each}" for each in seed]


def build_key(config: Mapping[str, Any]) -> str:
    """Equal for jobs that are built alike."""
    return json.dumps({k: v for k, v in config.items() if k not in ("seed", "wandb")}, sort_keys=True, default=str)


_built: dict[str, Parts] = {}


def build_once(config: Mapping[str, Any]) -> Parts:
    """The parts of a job, built only once for all jobs that have the same; the first thing that uses JAX."""
    key = build_key(config)
    if key not in _built:
        cfg = OmegaConf.create(dict(config))
        settings = read_settings(cfg)
        single = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN
        runs = len(settings.seeds) * settings.devices.tasks if single else None
        prepare_jax(runs, settings.devices.threads)
        _built[key] = build_parts(cfg, settings)
    return _built[key]


def arguments_of(config: Mapping[str, Any], others: Mapping[str, float]) -> set[str]:
    """The keys of those numbers of a job that may be arguments of its program, of some that another job has."""
    key = build_key(config), json.dumps(others, sort_keys=True)
    if key not in _arguments:
        _arguments[key] = may_be_arguments(build_once(config), others)
    return _arguments[key]


_arguments: dict[tuple[str, str], set[str]] = {}


def states_in(config: Mapping[str, Any], folder: Path) -> list[State]:
    """The states of the folders of a job's runs.

    Raises:
        ExpectedError: if a run cannot go on, or there is one of another seed: the folder of a single seed is its run's,
            those of a list are in there.
    """
    own = run_folders(folder, config["seed"])
    for present in (folder, *folder.glob("seed_*")):
        if present not in own and (present / "checkpoints").is_dir():
            raise ConfigurationError(
                f"seed={config['seed']}: {present} already holds a run of another seed; choose another folder"
            )
    return [RunFolder.look(each, config) for each in own]


def finished_job(config: Mapping[str, Any], folder: Path, metric: str = OBJECTIVE) -> float | None:
    """The result of a job that an earlier process has finished; None if there is something left to do."""
    try:
        return result_in(states_in(config, folder), metric)
    except ExpectedError:
        return None  # whatever stands there is no end


def result_in(states: Sequence[State], metric: str = OBJECTIVE) -> float | None:
    """The result of a job whose folders hold finished runs; None if one of them does not."""
    values = [state.end.metrics[metric] for state in states if isinstance(state, Finished)]
    return float(np.mean(values)) if len(values) == len(states) else None


def train_jobs(jobs: Sequence[Job], progress: Progress, stop: Stop, drawing: Executor) -> list[list[RunResult]]:
    """Trains jobs of one group, and lets others into their folders when it ends; the runs of each job."""
    results: dict[Path, RunResult] = {}
    with ExitStack() as stack:
        for job in jobs:
            stack.callback(job.close)
        for job in jobs:
            check_machine(job.parts)
        for numbers in shared_numbers([job.config for job in jobs], arguments_of):
            if stop.asked:
                break
            together = [jobs[index] for index in numbers]
            # Everybody's, as far as a program depends on them.
            settings, parts = together[0].settings, together[0].parts
            specs: list[RunSpec] = []
            for of_samplers in sampler_numbers([job.config for job in together], arguments_of):
                same_sampler = together[min(of_samplers)].parts
                for index, own in of_samplers.items():
                    specs += together[index].specs(same_sampler, {**[*numbers.values()][index], **own})
            shared = Shared(parts, settings.plan, settings.devices.memory_gib)
            results |= {run.folder: run for run in train_runs(shared, specs, progress, stop, drawing)}
    return [[results[run.path] for run in job.runs if run.path in results] for job in jobs]


def result_of(runs: Sequence[RunResult], metric: str = OBJECTIVE) -> float:
    """The result of a job, a final metric's mean over the seeds; raises the reasons of failed runs."""
    failed = [run.status for run in runs if run.failed]
    if failed:
        raise TrainingFailedError("; ".join(failed))
    return float(np.mean([run.latest[metric] for run in runs]))
