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
from twmaml.storage.flat_config import flatten

log = logging.getLogger(__name__)


MAY_CHANGE = ("steps", "checkpoint", "wandb", "devices.memory_gib")
"""Keys that a run may go on with another value of: neither its numbers nor the rows of its metrics.csv depend on
them, but for where they end."""


class AlreadyFinishedError(ConfigurationError):
    """There is nothing left to do."""


class Empty(NamedTuple):
    """No run, or one that ended before its first checkpoint and begins again."""


class Resumable(NamedTuple):
    """A run that can go on from one of its checkpoints."""


class Finished(NamedTuple):
    """A run that has come to where the configuration ends."""

    metrics: Mapping[str, float]
    """Its last ones."""


State = Empty | Resumable | Finished


class RunFolder(NamedTuple):
    """The folder of a run, closed to other processes, and what it held when that began."""

    path: Path
    state: State
    lock: "FolderLock"

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any]) -> "RunFolder":
        """Makes the folder ready for a run of this configuration.

        Raises:
            ConfigurationError: if it holds a run of another configuration, or another process writes there.
            CheckpointError: if it holds a run, but nothing to go on from.
        """
        _refuse_without_checkpoints(path)
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = FolderLock(path)
        try:
            state = _state_of(path, config)
            for name in ("evaluation", "figures"):
                (path / name).mkdir(exist_ok=True)
        except BaseException:
            lock.release()
            raise
        return cls(path, state, lock)

    def close(self) -> None:
        """Lets other processes in."""
        self.lock.release()

    @staticmethod
    def look(path: Path, config: Mapping[str, Any]) -> State:
        """The state that `open` would find, or its error. Nothing changes."""
        _refuse_without_checkpoints(path)
        if (path / "checkpoints" / ".lock").exists():
            FolderLock(path).release()
        return _state_of(path, config)


class FolderLock:
    """Keeps other processes out of the folder of a run. It ends with the process, however that ends.

    Raises:
        ConfigurationError: if another process is there.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "checkpoints" / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigurationError(f"another process is writing to {folder}; choose another folder") from None
        except OSError as error:  # a file system that knows no locks
            log.info("%s cannot be locked: %s", folder, error)

    def release(self) -> None:
        """Lets others in; further calls do nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _refuse_without_checkpoints(path: Path) -> None:
    if (path / "metrics.csv").exists() and not (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} already holds a run, without a checkpoint; choose another folder")


def _state_of(path: Path, config: Mapping[str, Any]) -> State:
    notes = newest_notes(path)
    if notes is None:
        return Empty()
    there, here = (dict(flatten(json.loads(json.dumps(c, default=str)))) for c in (notes.config, config))
    differing = [
        f"{key} ({there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here)"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key) and not f"{key}.".startswith(tuple(f"{free}." for free in MAY_CHANGE))
    ]
    if differing:
        raise ConfigurationError(
            f"{path} already holds a run of another configuration: {', '.join(differing)}; "
            f"only {', '.join(MAY_CHANGE)} may change"
        )
    if notes.step > config["steps"]:
        raise ConfigurationError(f"steps={config['steps']}: the run in {path} is at meta-step {notes.step} already")
    metrics = _last_metrics(path) if notes.step == config["steps"] else None
    return Resumable() if metrics is None else Finished(metrics)


def _last_metrics(path: Path) -> dict[str, float] | None:
    """The metrics in a summary.json that says the run has finished; None if it does not."""
    try:
        ended = summary.read(path)
    except (OSError, DamagedFileError):
        return None  # whatever stands there is no end
    return dict(ended.metrics) if ended.status == summary.FINISHED else None


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
