"""A launcher that trains jobs which one program can train as one group. Groups run one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.twmaml_launcher.composition import Composer, SweepJob, own_overrides
from hydra_plugins.twmaml_launcher.logs import log_to_folders


@dataclass
class VectorisedLauncherConf:
    """The keys under `hydra.launcher`."""

    _target_: str = "hydra_plugins.twmaml_launcher.launcher.VectorisedLauncher"
    group_size: int = 64


ConfigStore.instance().store(
    group="hydra/launcher", name="vectorised", node=VectorisedLauncherConf, provider="twmaml_launcher"
)


class VectorisedLauncher(Launcher):
    """Runs jobs in groups, as far as the task function knows how (`twmaml.jobs.hydra_job` does).

    Args:
        group_size: runs in a group at most; above 300 the nesting of Hydra's jobs exceeds Python's.
    """

    def __init__(self, group_size: int) -> None:
        if not 1 <= group_size <= 300:
            raise ValueError(f"hydra.launcher.group_size={group_size}: must be from 1 to 300")
        self.group_size = group_size
        self.composed: dict[int, SweepJob] = {}
        """What the sweeper has composed already, by the number of the job."""
        self.config: DictConfig | None = None
        self.task_function: Any = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first launch."""
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs every job, whatever becomes of the others.

        Returns:
            What came of each, in the order of `job_overrides`.
        """
        setup_globals()
        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        assert self.hydra_context is not None
        composer = Composer(self.hydra_context, self.config)
        jobs = [
            self.composed.pop(number, None) or composer.compose(number, overrides)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        returns: dict[int, JobReturn] = {}
        if not hasattr(self.task_function, "sweep"):
            for job in jobs:
                returns[job.number] = self._run(job, self.task_function, configure_logging=True)
        else:
            for job in jobs:
                result = self.task_function.finished(job.resolved, job.folder)
                if result is not None:
                    returns[job.number] = _finished(job.overrides, result)
            if returns:
                print(f"  {len(returns)} of {len(jobs)} jobs were finished before", flush=True)
            left = [job for job in jobs if job.number not in returns]
            groups = group_jobs(left, self.task_function.program_of, self.group_size)
            described = [
                {job.number: (own_overrides(job.overrides, job_overrides), job.resolved) for job in group}
                for group in groups
            ]
            if groups:
                with self.task_function.sweep(described, Path(str(self.config.hydra.sweep.dir))) as sweep:
                    for index, group in enumerate(groups):
                        returns |= self._run_group(sweep, index, group)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return [returns[job.number] for job in jobs]

    def _run_group(self, sweep: Any, index: int, group: Sequence[SweepJob]) -> dict[int, JobReturn]:
        """Enters Hydra's `run_job` for one job inside that for another, and trains all of them in the innermost.

        So Hydra itself prepares each job's folder, saves its configuration and calls its callbacks.
        """
        requests: dict[int, Any] = {}
        outcomes: dict[int, Any] = {}
        returns: dict[int, JobReturn] = {}

        def enter(jobs: Sequence[SweepJob]) -> None:
            if not jobs:
                outcomes.update(sweep.run_group(index, requests))
                return
            job, *others = jobs

            def task(cfg: DictConfig) -> Any:
                try:
                    requests[job.number] = self.task_function.prepare(cfg)
                except Exception as error:
                    outcomes[job.number] = error
                enter(others)
                if isinstance(outcomes[job.number], Exception):
                    raise outcomes[job.number]
                return outcomes[job.number]

            try:
                returns[job.number] = self._run(job, task, configure_logging=False)
            except Exception as error:  # Hydra could not save its configuration, say
                returns[job.number] = _failed(job.overrides, error)
                if job.number not in {*requests, *outcomes}:
                    enter(others)

        with_folder = []
        for job in group:
            try:
                job.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                returns[job.number] = _failed(job.overrides, error)
            else:
                with_folder.append(job)
        with log_to_folders([job.config for job in with_folder]):
            enter(with_folder)
        return returns

    def _run(self, job: SweepJob, task: TaskFunction, configure_logging: bool) -> JobReturn:
        assert self.hydra_context is not None
        return run_job(
            hydra_context=self.hydra_context,
            task_function=task,
            config=job.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            configure_logging=configure_logging,
        )


def _finished(overrides: Sequence[str], result: float) -> JobReturn:
    return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=result)


def _failed(overrides: Sequence[str], error: Exception) -> JobReturn:
    return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=error)


def group_jobs(
    jobs: Sequence[SweepJob], program_of: Callable[[dict[str, Any]], str], group_size: int
) -> list[list[SweepJob]]:
    """Jobs that one program can train together, in the order of each group's first job.

    Args:
        jobs: of the sweep.
        program_of: equal for configurations that one program can train.
        group_size: runs in a group at most, unless a single job has more.
    """
    groups: dict[str, list[list[SweepJob]]] = {}
    for job in jobs:
        hydra = job.config.hydra.job
        # The environment and the working folder belong to the process: jobs that change them don't share it.
        key = [program_of(job.resolved), OmegaConf.to_container(hydra.env_set), job.number if hydra.chdir else None]
        parts = groups.setdefault(repr(key), [[]])
        if parts[-1] and sum(other.runs for other in parts[-1]) + job.runs > group_size:
            parts.append([])
        parts[-1].append(job)
    return sorted((part for parts in groups.values() for part in parts), key=lambda part: part[0].number)
