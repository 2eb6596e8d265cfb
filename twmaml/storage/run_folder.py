"""The folder of a run: empty, or with a run that can go on, or with one that is finished."""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from twmaml.errors import ConfigurationError
from twmaml.storage import summary
from twmaml.storage.checkpoint import Checkpoint, CheckpointError, newest_notes, remove_after
from twmaml.storage.files import DamagedFileError
from twmaml.storage.flat_config import flatten_run
from twmaml.storage.summary import Summary

log = logging.getLogger(__name__)


MAY_CHANGE = ("steps", "evaluation.patience", "checkpoint", "figures", "wandb", "devices.memory_gib", "devices.threads")
"""Keys that a run may go on with another value of: neither its numbers nor the rows of its metrics.csv depend on
them, but for where they end."""


class AlreadyFinishedError(ConfigurationError):
    """There is nothing left to do."""


class Empty(NamedTuple):
    """No run, or one that ended before its first checkpoint and begins again."""


class Resumable(NamedTuple):
    """A run that can go on from one of its checkpoints."""


class Finished(NamedTuple):
    """A run that has come to where the configuration ends it."""

    end: Summary
    """Its summary.json."""


State = Empty | Resumable | Finished


class RunFolder:
    """The folder of a run, made ready and closed to other processes; that ends with the process, however it ends.

    Raises:
        ConfigurationError: if it holds a run of another configuration, or another process is there.
        CheckpointError: if it holds a run, but nothing to go on from.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        _refuse_without_checkpoints(path)
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path)
        try:
            self.state = _state_of(path, config)
            for name in ("evaluation", "figures"):
                (path / name).mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets other processes in; further calls do nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @staticmethod
    def look(path: Path, config: Mapping[str, Any]) -> State:
        """The state that construction would find, or its error. Nothing changes."""
        _refuse_without_checkpoints(path)
        if (path / "checkpoints" / ".lock").exists():
            os.close(_lock(path))
        return _state_of(path, config)


def _lock(path: Path) -> int:
    """The descriptor that keeps other processes out."""
    file = os.open(path / "checkpoints" / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ConfigurationError(f"another process is writing to {path}; choose another folder") from None
    except OSError as error:  # a file system that knows no locks
        log.info("%s cannot be locked: %s", path, error)
    return file


def _refuse_without_checkpoints(path: Path) -> None:
    if (path / "metrics.csv").exists() and not (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} already holds a run, without a checkpoint; choose another folder")


def _state_of(path: Path, config: Mapping[str, Any]) -> State:
    notes = newest_notes(path)
    if notes is None:
        return Empty()
    there, here = (flatten_run(json.loads(json.dumps(c, default=str))) for c in (notes.config, config))
    differing = [
        f"{key} ({there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here)"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
        and not f"{key}.".startswith(tuple(f"{free}." for free in MAY_CHANGE))
        and not key.endswith(".data_dir")  # a checkpoint knows the data itself, wherever it lies
    ]
    if differing:
        raise ConfigurationError(
            f"{path} already holds a run of another configuration: {', '.join(differing)}; "
            f"only {', '.join(MAY_CHANGE)} may change"
        )
    if notes.step > config["steps"]:
        raise ConfigurationError(f"steps={config['steps']}: the run in {path} is at meta-step {notes.step} already")
    try:
        end = summary.read(path)
    except (OSError, DamagedFileError):
        return Resumable()  # whatever stands there is no end
    stopped, patience = end.stopped_early, config["evaluation"]["patience"]
    at_end = notes.step == config["steps"] or (stopped is not None and patience is not None and stopped >= patience)
    return Finished(end) if end.status == summary.FINISHED and end.step == notes.step and at_end else Resumable()


def cut_back(folder: Path, evaluates_at: Callable[[int], bool], checkpoint: Checkpoint | None) -> None:
    """Removes whatever a run has left behind the checkpoint that it goes on from; all of it if there is none.

    metrics.csv is cut back when it is opened.
    """
    step = -1 if checkpoint is None else checkpoint.notes.step
    remove_after(folder, step)
    for path in (folder / "evaluation").rglob("*.npz"):
        if path.stem.isdecimal() and not (int(path.stem) <= step and evaluates_at(int(path.stem))):
            path.unlink()
    for pattern in (".*.partial", "evaluation/**/.*.partial", "figures/.*.partial"):
        for path in folder.glob(pattern):
            path.unlink()
    (folder / summary.FILE).unlink(missing_ok=True)
