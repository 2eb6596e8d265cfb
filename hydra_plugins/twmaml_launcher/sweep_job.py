"""The jobs of a sweep before they run, each with the configuration that it will have."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


@dataclass
class SweepJob:
    """A job of a sweep before it runs."""

    number: int
    overrides: Sequence[str]
    config: DictConfig
    """Hydra's own part included."""
    resolved: dict[str, Any]
    """The task's part, without interpolations."""

    @property
    def folder(self) -> Path:
        """The folder that it writes to."""
        return Path(self.config.hydra.runtime.output_dir)

    @property
    def runs(self) -> int:
        """The number of its seeds."""
        seed = self.resolved.get("seed")
        return len(seed) if isinstance(seed, list) else 1


class SweepJobs:
    """Composes the jobs of a sweep.

    Hydra takes a tenth of a second for one; of jobs that differ only in the seed, only for the first.
    """

    def __init__(self, context: HydraContext, sweep: DictConfig) -> None:
        self._loader = context.config_loader
        self._sweep = sweep
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._first: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, number: int, overrides: Sequence[str]) -> SweepJob:
        """A job with its configuration, from overrides of Hydra's sweeper, one value each."""
        seeded = tuple("seed" if override.startswith("seed=") else override for override in overrides)
        if seeded in self._first:
            config = self._with_seed(self._first[seeded], overrides)
        else:
            config = self._loader.load_sweep_config(self._sweep, list(overrides))
            self._first[seeded] = copy.deepcopy(config)
        OmegaConf.copy_cache(from_config=self._sweep, to_config=config)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        with as_current(config):
            folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = os.path.abspath(folder)
        return SweepJob(number, overrides, config, _resolve(config))

    def _with_seed(self, first: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """As `load_sweep_config`, from a job that differs only in its seed."""
        config = copy.deepcopy(first)
        parsed = [each for each in self._parser.parse_overrides(list(overrides)) if not each.is_hydra_override()]
        for override in parsed:
            if override.key_or_group == "seed":
                config.seed = override.value()
        names = config.hydra.job.config.override_dirname
        named = sorted(str(each.input_line) for each in parsed if each.key_or_group not in names.exclude_keys)
        with open_dict(config.hydra):
            config.hydra.overrides.task = [override.input_line for override in parsed]
            config.hydra.job.override_dirname = names.item_sep.join(named).replace("=", names.kv_sep)
        return config


@contextmanager
def as_current(config: DictConfig) -> Iterator[None]:
    """Makes `${hydra:...}` refer to this job for a while."""
    previous = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = config  # type: ignore[assignment]  `set_config` would copy it, which takes a while
    try:
        yield
    finally:
        HydraConfig.instance().cfg = previous


def _resolve(config: DictConfig) -> dict[str, Any]:
    """The task's part of a job's configuration, without interpolations."""
    with as_current(config):
        return {
            str(key): OmegaConf.to_container(config[key], resolve=True)
            if OmegaConf.is_config(config[key])
            else config[key]
            for key in config
            if key != "hydra"
        }


def own_overrides(job: Sequence[str], jobs: Sequence[Sequence[str]]) -> list[str]:
    """The overrides that set a job apart from the others."""
    return [override for override in job if not all(override in other for other in jobs)]
