"""A launcher that trains jobs which one program can train as one group. Groups run one after the other."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.twmaml_launcher.contract import RunGroup, VectorisedTask
from hydra_plugins.twmaml_launcher.logs import log_to_folders
from hydra_plugins.twmaml_launcher.sweep_job import SweepJob, SweepJobs, as_current, own_overrides


@dataclass
class VectorisedLauncherConf:
    """The keys under `hydra.launcher`."""

    _target_: str = "hydra_plugins.twmaml_launcher.launcher.VectorisedLauncher"
    group_size: int = 64


ConfigStore.instance().store(
    group="hydra/launcher", name="vectorised", node=VectorisedLauncherConf, provider="twmaml_launcher"
)


class VectorisedLauncher(Launcher):
    """Runs jobs in groups if the task function is a `VectorisedTask`, otherwise one by one.

    Args:
        group_size: runs in a group at most.
    """

    def __init__(self, group_size: int) -> None:
        if group_size < 1:
            raise ValueError(f"hydra.launcher.group_size={group_size}: must be at least 1")
        self.group_size = group_size
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None
        self._composed: dict[int, SweepJob] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first launch."""
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def take_composed(self, jobs: Sequence[SweepJob]) -> None:
        """Keeps jobs that the sweeper has composed already."""
        self._composed = {job.number: job for job in jobs}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs every job, whatever becomes of the others; their results, in the order of `job_overrides`."""
        assert self.config is not None
        assert self.hydra_context is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        composer = SweepJobs(self.hydra_context, self.config)
        jobs = [
            self._composed.pop(number, None) or composer.compose(number, overrides)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        if isinstance(self.task_function, VectorisedTask):
            returns = self._run_groups(self.task_function, jobs, job_overrides)
        else:
            place = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
            own: Any = {"hydra_context": self.hydra_context, "task_function": self.task_function, **place}
            returns = {job.number: run_job(config=job.config, **own) for job in jobs}
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return [returns[job.number] for job in jobs]

    def _run_groups(
        self, task: VectorisedTask, jobs: Sequence[SweepJob], every: Sequence[Sequence[str]]
    ) -> dict[int, JobReturn]:
        assert self.config is not None
        returns: dict[int, JobReturn] = {}
        for job in jobs:
            result = task.finished(job.resolved, job.folder)
            if result is not None:
                returns[job.number] = ended(JobReturn(overrides=job.overrides), result)
        if returns:
            print(f"  {len(returns)} of {len(jobs)} jobs were finished before", flush=True)
        groups = group_jobs([job for job in jobs if job.number not in returns], task.group_keys, self.group_size)
        described = [{j.number: (own_overrides(j.overrides, every), j.resolved) for j in group} for group in groups]
        if groups:
            with task.sweep(described, Path(str(self.config.hydra.sweep.dir))) as run:
                for index, group in enumerate(groups):
                    returns |= self._run_group(task, index, group, run)
        return returns

    def _run_group(
        self, task: VectorisedTask, index: int, group: Sequence[SweepJob], run: RunGroup
    ) -> dict[int, JobReturn]:
        """Runs jobs at once, each in the surroundings that Hydra would give it."""
        returns = {job.number: JobReturn(overrides=[*job.config.hydra.overrides.task]) for job in group}
        outcomes: dict[int, Any] = {}
        prepared: dict[int, Any] = {}
        with ExitStack() as stack:
            for job in group:
                try:
                    returns[job.number] = stack.enter_context(entered(job, self.hydra_context, task))
                except Exception as error:  # the folder cannot be made, or its configuration not saved, say
                    outcomes[job.number] = error
            inside = [job for job in group if job.number not in outcomes]
            stack.enter_context(log_to_folders([job.config for job in inside]))
            for job in inside:
                try:
                    with as_current(job.config):
                        prepared[job.number] = task.prepare(returns[job.number].cfg)  # type: ignore[arg-type]
                except Exception as error:
                    outcomes[job.number] = error
            outcomes |= run(index, prepared)
            for number, outcome in outcomes.items():
                ended(returns[number], outcome)
        return returns


@contextmanager
def entered(job: SweepJob, context: HydraContext | None, task: TaskFunction) -> Iterator[JobReturn]:
    """Surrounds a job with all that Hydra's `run_job` does before and after it, but for logging."""
    assert context is not None
    config, before, working_folder = job.config, HydraConfig.instance().cfg, Path.cwd()
    HydraConfig.instance().set_config(config)
    try:
        task_config = copy.deepcopy(config)
        with read_write(task_config), open_dict(task_config):
            del task_config["hydra"]
        hydra_config: Any = copy.deepcopy(HydraConfig.instance().cfg)
        job.folder.mkdir(parents=True, exist_ok=True)
        if config.hydra.job.chdir:
            os.chdir(job.folder)
        if config.hydra.output_subdir is not None:
            saved = job.folder / config.hydra.output_subdir
            saved.mkdir(parents=True, exist_ok=True)
            parts = {"config": task_config, "hydra": hydra_config, "overrides": config.hydra.overrides.task}
            for name, part in parts.items():
                (saved / f"{name}.yaml").write_text(OmegaConf.to_yaml(part), encoding="utf-8")
        with env_override(hydra_config.hydra.job.env_set):
            context.callbacks.on_job_start(config=config, task_function=task)
            name, here = JobRuntime.instance().get("name"), str(Path.cwd())
            job_return = JobReturn(job.overrides, task_config, hydra_config, working_dir=here, task_name=name)
            yield job_return
        context.callbacks.on_job_end(config=config, job_return=job_return)
    finally:
        HydraConfig.instance().cfg = before
        if config.hydra.job.chdir:
            os.chdir(working_folder)


def ended(job_return: JobReturn, outcome: Any) -> JobReturn:
    """Notes the outcome of a job: its result, or the error that it would raise."""
    job_return.return_value = outcome
    job_return.status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
    return job_return


def group_jobs(
    jobs: Sequence[SweepJob], group_keys: Callable[[Sequence[dict[str, Any]]], Sequence[Any]], group_size: int
) -> list[list[SweepJob]]:
    """Jobs of equal keys, in the order of each group's first; no more runs a group, unless a single job has more."""
    groups: dict[str, list[list[SweepJob]]] = {}
    for job, of_program in zip(jobs, group_keys([job.resolved for job in jobs]), strict=True):
        hydra = job.config.hydra.job
        # The environment and the working folder belong to the process: jobs that change them don't share it.
        key = [of_program, OmegaConf.to_container(hydra.env_set), job.number if hydra.chdir else None]
        parts = groups.setdefault(repr(key), [[]])
        if parts[-1] and sum(other.runs for other in parts[-1]) + job.runs > group_size:
            parts.append([])
        parts[-1].append(job)
    return sorted((part for parts in groups.values() for part in parts), key=lambda part: part[0].number)
