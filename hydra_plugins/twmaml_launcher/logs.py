"""The log files of jobs that run at the same time in one process."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf


@contextmanager
def log_to_folders(configs: Sequence[DictConfig]) -> Iterator[None]:
    """Configures logging as the first job wants it, with the files of the others' besides.

    A record of one run (it has a `run_folder`) goes only to the files of its job, every other record to all.

    Args:
        configs: of the jobs, Hydra's own part included.
    """
    if not configs:
        yield
        return
    first, *others = configs
    Path(first.hydra.runtime.output_dir).mkdir(parents=True, exist_ok=True)
    configure_log(first.hydra.job_logging, first.hydra.verbose)
    names = {file.resolve(): name for name, file in _files(first).items()}
    root, added = logging.getLogger(), []
    for handler in [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]:
        handler.addFilter(lambda record: _belongs(record, Path(first.hydra.runtime.output_dir)))
        name = names.get(Path(handler.baseFilename))
        files = {Path(other.hydra.runtime.output_dir): _files(other).get(str(name)) for other in others}
        same = _LogFiles({folder: path for folder, path in files.items() if path is not None})
        same.setLevel(handler.level)
        same.setFormatter(handler.formatter)
        root.addHandler(same)
        added.append(same)
    try:
        yield
    finally:
        for handler in added:
            root.removeHandler(handler)


class _LogFiles(logging.Handler):
    """The log files of many jobs by their folders. None of them stays open, as a process has few descriptors."""

    def __init__(self, files: Mapping[Path, Path]) -> None:
        super().__init__()
        self._files = files
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for path in [path for folder, path in self._files.items() if _belongs(record, folder)]:
                with path.open("a") as file:
                    file.write(f"{self.format(record)}\n")
        except OSError:
            self.handleError(record)


def _belongs(record: logging.LogRecord, folder: Path) -> bool:
    """Whether a record is not one of a run in another folder."""
    own = getattr(record, "run_folder", None)
    return own is None or Path(own).is_relative_to(folder)


def _files(config: DictConfig) -> dict[str, Path]:
    """The log files of a job by the names of their handlers."""
    logging_config: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=True) or {}
    handlers = logging_config.get("handlers") or {}
    return {name: Path(handler["filename"]) for name, handler in handlers.items() if "filename" in handler}
