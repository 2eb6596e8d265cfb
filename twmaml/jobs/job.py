"""A job as Hydra asks for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.build import Job, build_job
from twmaml.configuration.settings import Settings, read_settings
from twmaml.errors import ConfigurationError, ExpectedError
from twmaml.storage.run_folder import FolderLock, finished
from twmaml.training.recorder import RunRecord

GROUPS = ("sampler", "task", "model", "adaptation")


@dataclass(frozen=True)
class Request:
    """What Hydra asks for with one job."""

    config: dict[str, Any]
    """As composed, interpolations resolved."""
    settings: Settings
    folder: Path
    choices: Mapping[str, str]
    """Of the configuration groups."""
    sweep: str | None
    """The name of the sweep that the job is part of."""
    locks: list[FolderLock] = field(default_factory=list)
    """Of the folders of its runs."""

    @property
    def folders(self) -> list[Path]:
        """The folder of each run: the job's own, or for a list of seeds one in it for each."""
        return run_folders(self.folder, self.settings.seed)

    def release(self) -> None:
        """Lets other processes into the folders."""
        for lock in self.locks:
            lock.release()

    @property
    def title(self) -> str:
        """The sampler and the task."""
        return f"{self.choices['sampler']} on {self.choices['task']}"


def run_folders(folder: Path, seed: int | Sequence[int]) -> list[Path]:
    """The folder of each run of a job in a folder."""
    return [folder] if isinstance(seed, int) else [folder / f"seed_{each}" for each in seed]


def read_request(cfg: DictConfig) -> Request:
    """What Hydra asks for, read where it calls a job: in there its own configuration is the job's."""
    hydra_config = HydraConfig.get()
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return Request(
        config=config,
        settings=read_settings(OmegaConf.create(config)),
        folder=Path(hydra_config.runtime.output_dir),
        choices={group: str(hydra_config.runtime.choices[group]) for group in GROUPS},
        sweep=Path(hydra_config.sweep.dir).name if hydra_config.mode == RunMode.MULTIRUN else None,
    )


def program_of(config: Mapping[str, Any]) -> str:
    """Equal for jobs that one program can train: those which differ only in what is a run's own."""
    return _without(config, ("seed", "wandb", "sampler", "sampling"))


def job_of(config: Mapping[str, Any]) -> str:
    """Equal for jobs that are built alike."""
    return _without(config, ("seed", "wandb"))


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in keys}, sort_keys=True, default=str)


class TrainingFailedError(ExpectedError):
    """A loss stopped being finite, or a run cannot go on; the message is one line that says where and why."""


_built: dict[str, Job] = {}


def build_once(config: Mapping[str, Any]) -> Job:
    """The parts of a job, built only once for all jobs that have the same."""
    parts = job_of(config)
    if parts not in _built:
        _built[parts] = build_job(OmegaConf.create(dict(config)))
    return _built[parts]


def check_seeds(config: Mapping[str, Any], folder: Path) -> None:
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


class ReportedError(BaseException):
    """Carries the error of a single run past Hydra, which would print lines of its own about it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def ends_of(requests: Mapping[int, Request]) -> dict[int, float]:
    """What those jobs returned that are at their end."""
    ends = {number: finished_job(request.config, request.folder) for number, request in requests.items()}
    return {number: end for number, end in ends.items() if end is not None}


def result_of(runs: Sequence[RunRecord]) -> float:
    """What a job returns: the final `eval/loss`, its mean over the seeds."""
    failed = [run.status for run in runs if run.failed]
    if failed:
        raise TrainingFailedError("; ".join(failed))
    return float(np.mean([run.latest["eval/loss"] for run in runs]))


def outcome_of(runs: Sequence[RunRecord]) -> float | Exception:
    """The result of a job, or the error that says why it has none."""
    try:
        return result_of(runs)
    except TrainingFailedError as error:
        return error


def steps_done(runs: Sequence[RunRecord]) -> int:
    """Meta-steps of all runs together."""
    return sum(run.step for run in runs)
