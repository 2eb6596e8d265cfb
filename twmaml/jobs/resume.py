"""`resume=FOLDER` on the command line: goes on with a run as it was configured, or with a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.conf import HydraConf
from hydra.core.utils import JobStatus, run_job, setup_globals
from hydra.types import HydraContext
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from twmaml.configuration.config_files import configuration_folder
from twmaml.configuration.settings import read_settings
from twmaml.errors import ConfigurationError
from twmaml.jobs.command_line import parse_overrides
from twmaml.jobs.folder_guard import guard_folder
from twmaml.jobs.task import run_job as train
from twmaml.storage.files import whole_file


def split_resume(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder to go on with, and the other arguments."""
    folders = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    return (Path(folders[-1]) if folders else None), others


def sweep_arguments(folder: Path, others: Sequence[str]) -> list[str] | None:
    """The command line that goes on with the sweep in a folder; None if there is no sweep."""
    saved = folder / "multirun.yaml"
    if not saved.exists():
        return None
    hydra = _read(saved).hydra
    sources = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    overrides: Any = OmegaConf.to_container(hydra.overrides, resolve=False)  # each job resolves its own
    given = [*overrides["hydra"], *overrides["task"]]
    return [
        *(f"--config-dir={path}" for path in sources),
        "--multirun",
        *(each for each in given if not each.startswith(("hydra.sweep.dir=", "hydra.mode="))),
        f"hydra.sweep.dir={_quoted(folder)}",
        *others,
    ]


def resume_run(folder: Path, overrides: Sequence[str]) -> None:
    """Goes on with the run in a folder, by the configuration that it holds and overrides on top of that.

    Raises:
        ExpectedError: if it cannot go on, before anything in the folder changes.
    """
    saved = folder / ".hydra"
    if not (saved / "config.yaml").exists():
        raise ConfigurationError(
            f"resume={folder}: holds neither a run (.hydra/config.yaml) nor a sweep (multirun.yaml)"
        )
    flags = [override for override in overrides if override.startswith("-")]
    if flags:
        raise ConfigurationError(f"resume={folder}: goes on with a single run, which {flags[0]} cannot change")
    setbase("1.3")
    setup_globals()
    loader = ConfigLoaderImpl(create_config_search_path(configuration_folder()))
    hydra = OmegaConf.structured(HydraConf)
    OmegaConf.set_struct(hydra, False)  # plug-ins have keys of their own
    hydra.merge_with(_read(saved / "hydra.yaml").hydra)
    config = _read(saved / "config.yaml")
    parsed = parse_overrides(overrides)
    OmegaConf.set_struct(config, True)
    ConfigLoaderImpl._apply_overrides_to_config([each for each in parsed if not each.is_hydra_override()], config)
    with open_dict(config):
        config.hydra = hydra
    with open_dict(config.hydra):
        ConfigLoaderImpl._apply_overrides_to_config([each for each in parsed if each.is_hydra_override()], config)
        config.hydra.run.dir = str(folder.absolute())
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    read_settings(own)
    guard_folder(OmegaConf.to_container(own, resolve=True), folder)  # type: ignore[arg-type]
    if parsed:
        with whole_file(saved / "config.yaml") as partial:
            OmegaConf.save(own, partial)
    with open_dict(config.hydra):
        config.hydra.output_subdir = None  # Hydra would not write at once, and the process may end at any time
    result = run_job(
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
        task_function=train,
        config=config,
        job_dir_key="hydra.run.dir",
        job_subdir_key=None,
    )
    if result.status == JobStatus.FAILED:
        raise result._return_value  # the public way to it prints a line


def _read(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no configuration: {str(error).splitlines()[0]}") from error
    if not isinstance(config, DictConfig):
        raise ConfigurationError(f"{path} is no configuration")
    return config


def _quoted(folder: Path) -> str:
    """A folder as Hydra's grammar wants it, whatever is in its name."""
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
