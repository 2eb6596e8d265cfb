"""Refuses the folder of a single run before Hydra writes to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.settings import read_settings
from twmaml.errors import ExpectedError
from twmaml.jobs.job import ReportedError, check_seeds, finished_job, run_folders
from twmaml.jobs.report import shorten
from twmaml.storage.run_folder import AlreadyFinishedError, check


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
            read_settings(own)
            guard_folder(OmegaConf.to_container(own, resolve=True), folder)  # type: ignore[arg-type]
        except ExpectedError as error:
            raise ReportedError(error) from error


def guard_folder(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses a folder in which there is nothing to do, or nothing that can go on.

    Raises:
        ExpectedError: with the reason.
    """
    check_seeds(config, folder)
    for run_folder in run_folders(folder, config["seed"]):
        check(config, run_folder)
    if finished_job(config, folder) is not None:
        raise AlreadyFinishedError(f"{shorten(folder)} is finished: {config['steps']:,} meta-steps")
