"""Claims or refuses the folder of a single run before Hydra writes to it."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from twmaml.configuration.config_files import is_of_this_second
from twmaml.configuration.settings import read_settings
from twmaml.errors import ExpectedError
from twmaml.jobs.job import ReportedError, result_in, states_in
from twmaml.storage.files import shorten, whole_file
from twmaml.storage.run_folder import AlreadyFinishedError, Finished


class FolderGuard(Callback):
    """Called by Hydra before it writes to the folder of a single run."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Makes a folder that is named after the time; refuses another whose run cannot go on with this configuration.

        Raises:
            ReportedError: with the reason.
        """
        HydraConfig.instance().set_config(config)  # which its folder is named after
        folder = Path(str(config.hydra.run.dir))
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        try:
            read_settings(own)  # a mistake in them leaves no folder
            if is_of_this_second(config.hydra.run):
                with read_write(config.hydra):
                    config.hydra.run.dir = str(_claimed(folder))
                return
            if not folder.is_dir():
                return
            values: Any = OmegaConf.to_container(own, resolve=True)
            states = states_in(values, folder)
            if result_in(states) is not None:
                steps = max(state.end.step for state in states if isinstance(state, Finished))
                raise AlreadyFinishedError(f"{shorten(folder)} is finished: {steps:,} meta-steps")
            if config.hydra.output_subdir is not None and (folder / config.hydra.output_subdir).is_dir():
                _save(config, own, folder)
        except (ExpectedError, OSError) as error:
            raise ReportedError(error) from error


def _claimed(folder: Path) -> Path:
    """A new folder: this one, or with a number behind its name if another run has begun in the same second."""
    own, number = folder, 1
    while True:
        try:
            own.mkdir(parents=True)
        except FileExistsError:
            number += 1
            own = folder.with_name(f"{folder.name}_{number}")
        else:
            return own


def _save(config: DictConfig, own: DictConfig, folder: Path) -> None:
    """Writes as whole files what Hydra would write bit by bit: the run is to go on whenever the process ends."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.runtime.output_dir = str(folder.absolute())
        saved, config.hydra.output_subdir = folder / config.hydra.output_subdir, None
    hydra = OmegaConf.masked_copy(config, "hydra")
    files = {"config.yaml": own, "hydra.yaml": hydra, "overrides.yaml": config.hydra.overrides.task}
    for name, content in files.items():
        with whole_file(saved / name) as partial:
            OmegaConf.save(content, partial)
