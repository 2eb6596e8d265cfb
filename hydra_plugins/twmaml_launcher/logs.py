"""The log files of jobs that run at the same time in one process."""

import logging
from collections.abc import Iterator, Sequence
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
    files = _files(first)
    added = []
    for handler in [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]:
        handler.addFilter(_OfJob(first))
        name = next((name for name, file in files.items() if file.resolve() == Path(handler.baseFilename)), None)
        for other in others:
            path = _files(other).get(name) if name is not None else None
            if path is None:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            same = logging.FileHandler(path)
            same.setLevel(handler.level)
            same.setFormatter(handler.formatter)
            same.addFilter(_OfJob(other))
            logging.getLogger().addHandler(same)
            added.append(same)
    try:
        yield
    finally:
        for handler in added:
            logging.getLogger().removeHandler(handler)
            handler.close()


def _files(config: DictConfig) -> dict[str, Path]:
    """The log files of a job by the names of their handlers."""
    logging_config: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=True) or {}
    handlers = logging_config.get("handlers") or {}
    return {name: Path(handler["filename"]) for name, handler in handlers.items() if "filename" in handler}


class _OfJob(logging.Filter):
    def __init__(self, config: DictConfig) -> None:
        super().__init__()
        self._folder = Path(config.hydra.runtime.output_dir)

    def filter(self, record: logging.LogRecord) -> bool:
        folder = getattr(record, "run_folder", None)
        return folder is None or Path(folder).is_relative_to(self._folder)
