"""What Hydra asks for with one job."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration import Settings, read_settings
from twmaml.standing import FolderLock

SAMPLER_KEYS = ("epsilon", "uniform_fraction")
"""Keys that are there for samplers to refer to."""

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
    return _without(config, ("seed", "wandb", "sampler", *SAMPLER_KEYS))


def job_of(config: Mapping[str, Any]) -> str:
    """Equal for jobs that are built alike."""
    return _without(config, ("seed", "wandb"))


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in keys}, sort_keys=True, default=str)
