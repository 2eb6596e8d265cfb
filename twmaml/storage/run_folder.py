"""What the folder of a run holds already: nothing, a run that can go on, or one that is finished."""

import fcntl
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twmaml.errors import ConfigurationError
from twmaml.storage.checkpoint import Checkpoint, CheckpointError, newest_notes, remove_after

log = logging.getLogger(__name__)


MAY_CHANGE = ("steps", "checkpoint", "wandb", "devices.memory_gib")
"""Keys that a run may go on with another value of: neither its numbers nor the rows of its metrics.csv depend on
them, but for where they end."""


class AlreadyFinishedError(ConfigurationError):
    """There is nothing left to do."""


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


def check(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses a folder that holds what this configuration cannot go on from.

    Raises:
        ConfigurationError: if the configuration is another one, or another process writes there.
        CheckpointError: if there is nothing to go on from.
    """
    if not (folder / "checkpoints").is_dir():
        if (folder / "metrics.csv").exists():
            raise CheckpointError(f"{folder} already holds a run, without a checkpoint; choose another folder")
        return
    if (folder / "checkpoints" / ".lock").exists():
        FolderLock(folder).release()
    notes = newest_notes(folder)
    if notes is None:  # it ended before its first checkpoint, and begins again
        return
    there, here = (dict(_flatten(json.loads(json.dumps(c, default=str)))) for c in (notes.config, config))
    differing = [
        f"{key} ({there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here)"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key) and not f"{key}.".startswith(tuple(f"{free}." for free in MAY_CHANGE))
    ]
    if differing:
        raise ConfigurationError(
            f"{folder} already holds a run of another configuration: {', '.join(differing)}; "
            f"only {', '.join(MAY_CHANGE)} may change"
        )
    if notes.step > config["steps"]:
        raise ConfigurationError(f"steps={config['steps']}: the run in {folder} is at meta-step {notes.step} already")


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested configuration by the keys a user types."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def finished(config: Mapping[str, Any], folder: Path) -> dict[str, float] | None:
    """The last metrics of the run in a folder, if it has come to where the configuration ends; None if it has not."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        notes = newest_notes(folder) if summary["status"] == "finished" else None
        if notes is None or notes.step != config["steps"]:
            return None
        metrics = {name: value for name, value in summary.items() if "/" in name}
        return {name: math.nan if value is None else float(value) for name, value in metrics.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, CheckpointError):
        return None  # whatever stands there is no end


def cut_back(folder: Path, evaluates_at: Callable[[int], bool], checkpoint: Checkpoint | None) -> None:
    """Removes what a run has left behind the checkpoint that it goes on from; all of it if there is none.

    metrics.csv is cut back when it is opened.
    """
    step = -1 if checkpoint is None else checkpoint.notes.step
    remove_after(folder, step)
    for path in (folder / "evaluation").rglob("*.npz"):
        if path.stem.isdecimal() and not (int(path.stem) <= step and evaluates_at(int(path.stem))):
            path.unlink()
    for path in [
        *folder.glob(".*.partial"),
        *folder.glob("evaluation/**/.*.partial"),
        *folder.glob("figures/.*.partial"),
    ]:
        path.unlink()
    (folder / "summary.json").unlink(missing_ok=True)
