"""`resume=FOLDER` on the command line: goes on with a run or a sweep by the command that it was started with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twmaml.errors import ConfigurationError


def without_resume(arguments: Sequence[str]) -> list[str]:
    """The same arguments, but for `resume=`: in its place those that the run or the sweep was started with.

    Raises:
        ConfigurationError: if there is none in that folder.
    """
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    if len(others) == len(arguments):
        return others
    folder = Path([argument for argument in arguments if argument not in others][-1].removeprefix("resume="))
    if (folder / "multirun.yaml").exists():
        saved, mode, own = folder / "multirun.yaml", ["--multirun"], [f"hydra.sweep.dir={_quoted(folder)}"]
    elif (folder / ".hydra" / "config.yaml").exists():
        flags = [argument for argument in others if argument.startswith("-")]
        if flags:
            raise ConfigurationError(f"resume={folder}: goes on with a single run, which {flags[0]} cannot change")
        saved, mode, own = folder / ".hydra" / "hydra.yaml", [], ["hydra.mode=RUN", f"hydra.run.dir={_quoted(folder)}"]
        if not others:  # then its configuration is not written again, which the process may not live to finish
            own.append("hydra.output_subdir=null")
    else:
        raise ConfigurationError(
            f"resume={folder}: holds neither a run (.hydra/config.yaml) nor a sweep (multirun.yaml)"
        )
    try:
        hydra: Any = OmegaConf.load(saved).hydra
        sources = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        given = OmegaConf.to_container(hydra.overrides, resolve=False)  # each job resolves its own
        overrides = [*given["hydra"], *given["task"]]  # type: ignore[index, call-overload]
        name = f"--config-name={hydra.job.config_name}"
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, AttributeError) as error:
        raise ConfigurationError(f"{saved} is no configuration: {str(error).splitlines()[0]}") from error
    replaced = ("hydra.sweep.dir=", "hydra.run.dir=", "hydra.mode=")
    kept = [override for override in overrides if not override.startswith(replaced)]
    return [*(f"--config-dir={path}" for path in sources), name, *mode, *kept, *own, *others]


def _quoted(folder: Path) -> str:
    """A folder as Hydra's grammar wants it, whatever is in its name."""
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
