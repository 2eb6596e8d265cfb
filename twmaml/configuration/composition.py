"""Configurations composed outside of the command line."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.config_files import configuration_folder, register_resolvers
from twmaml.configuration.explain import explain_error
from twmaml.configuration.settings import read_settings
from twmaml.errors import ConfigurationError


def compose_configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run as the command line composes it, interpolations resolved.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    register_resolvers()
    try:
        with initialize_config_dir(configuration_folder(), version_base="1.3"):
            cfg = compose("train", list(overrides))
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    except Exception as error:
        line = explain_error(error)
        if line is None:
            raise
        raise ConfigurationError(line) from error
    read_settings(DictConfig(config))
    return config
