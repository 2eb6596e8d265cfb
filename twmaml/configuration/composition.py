"""Configurations composed outside of the command line."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from twmaml.configuration.config_files import configuration_folder, register_resolvers
from twmaml.configuration.explain import explain_error
from twmaml.configuration.overrides import check_overrides
from twmaml.configuration.settings import read_settings
from twmaml.errors import ConfigurationError


class Composed(NamedTuple):
    """A configuration as the command line composes it."""

    config: dict[str, Any]
    """Interpolations resolved."""
    choices: Mapping[str, str]
    """By configuration group."""


def compose_configuration(overrides: Sequence[str], changes: Mapping[str, Any] | None = None) -> Composed:
    """The configuration of a run as the command line composes it.

    Args:
        overrides: as on the command line: `["task=sin3d", "steps=1000"]`.
        changes: values by key, which count more; mappings change what they name and leave the rest.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    register_resolvers()
    try:
        check_overrides(overrides)
        with initialize_config_dir(configuration_folder(), version_base="1.3"):
            cfg = compose("train", list(overrides), return_hydra_config=True)
        if cfg.hydra.mode == RunMode.MULTIRUN:
            name = cfg.hydra.runtime.choices.experiment
            raise ConfigurationError(f"experiment={name}: is a sweep, which the command line runs; must be of one job")
        choices = {group: str(choice) for group, choice in cfg.hydra.runtime.choices.items()}
        with open_dict(cfg):
            del cfg["hydra"]
        cfg.merge_with(dict(changes or {}))
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    except Exception as error:
        line = explain_error(error)
        if line is None:
            raise
        raise ConfigurationError(line) from error
    read_settings(DictConfig(config))
    return Composed(config, choices)
