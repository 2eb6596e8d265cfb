"""Refuses the folder of a single run before Hydra writes to it."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.settings import read_settings
from twmaml.errors import ExpectedError
from twmaml.jobs.job import ReportedError, result_in, states_in
from twmaml.storage.files import shorten
from twmaml.storage.run_folder import AlreadyFinishedError


class FolderGuard(Callback):
    """Called by Hydra before it writes to the folder of a single run."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuses a folder whose run cannot go on with this configuration.

        Raises:
            ReportedError: with the reason.
        """
        HydraConfig.instance().set_config(config)  # which its folder is named after
        folder = Path(str(config.hydra.run.dir))
        if not folder.is_dir():
            return
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        try:
            steps = read_settings(own).steps
            values: Any = OmegaConf.to_container(own, resolve=True)
            if result_in(states_in(values, folder)) is not None:
                raise AlreadyFinishedError(f"{shorten(folder)} is finished: {steps:,} meta-steps")
        except ExpectedError as error:
            raise ReportedError(error) from error
