"""Checkpoints: a run as it stood after some meta-step, to go on from and to use. Reading one executes nothing.

`checkpoints/<step>/` in the folder of a run holds `arrays/`, which is Orbax's, and `notes.json` with the rest. It is
there as a whole or not at all. `notes.json` tells the size and the checksum of every file and has one of its own, so
that what is no longer what was written is found before Orbax reads any of it.
"""

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from pydantic import ConfigDict, Field, NonNegativeInt
from pydantic.dataclasses import dataclass

from twmaml.errors import ExpectedError, one_line
from twmaml.storage.metrics_file import Mark

log = logging.getLogger(__name__)


LAYOUT = 2
"""Version of the checkpoint format; increase it when older checkpoints become unreadable."""

_FAULTS = [os.strerror(number) for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)]

_OVERHEAD = 2**17
"""Bytes that a checkpoint takes on a disk besides its arrays, which is more than what tiny ones hold."""


class CheckpointError(ExpectedError):
    """A checkpoint that cannot be written or used; the message is one line that says which and why."""


class DamagedError(CheckpointError):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Notes:
    """The part of a checkpoint that is no array."""

    step: NonNegativeInt
    seed: NonNegativeInt
    config: dict[str, Any]
    """The resolved configuration of the job."""
    latest: dict[str, float]
    first_unadapted_loss: float
    mark: Mark
    """Where metrics.csv stands."""
    wandb_id: Annotated[str, Field(pattern=r"^[\w-]{1,128}$")] | None
    data: NonNegativeInt = 0
    """A checksum of the arrays that all tasks read, 0 where there are none."""


class Checkpoint(NamedTuple):
    """A checkpoint as it is in memory."""

    notes: Notes
    arrays: Mapping[str, np.ndarray]
    """By name: the leaves of the run's state (`pack`), and `losses`, the latest evaluation."""


def pack(tree: Any) -> dict[str, Array]:
    """The leaves of a tree by name; random keys become numbers."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in named}


def unpack(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The reverse of `pack`.

    Args:
        template: of the tree: its structure, and the shapes and types of its leaves.
        arrays: the leaves by name; others may be among them.

    Raises:
        CheckpointError: if a leaf is missing or has another shape or type.
    """

    def leaf(path: Any, expected: Any) -> Any:
        name = _name(path)
        wanted = jax.eval_shape(jax.random.key_data, expected) if _is_key(expected) else expected
        found = arrays.get(name)
        if found is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
            there = "is missing" if found is None else f"is {found.dtype}{list(found.shape)}"
            raise CheckpointError(
                f"the checkpoint does not fit: {name} {there}, not {wanted.dtype}{list(wanted.shape)}"
            )
        return jax.random.wrap_key_data(jnp.asarray(found)) if _is_key(expected) else found

    return jax.tree_util.tree_map_with_path(leaf, template)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def write(folder: Path, checkpoint: Checkpoint, keep: int, best: Callable[[int], int | None] = lambda _: None) -> None:
    """Writes a checkpoint of the run in a folder, and removes older ones (`prune`).

    Raises:
        CheckpointError, OSError: if that is not possible; what was there before is still there.
    """
    from orbax.checkpoint import PyTreeCheckpointer  # noqa: PLC0415  a second that only this thread waits for

    target = folder / "checkpoints" / str(checkpoint.notes.step)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if shutil.disk_usage(folder).free < sum(array.nbytes for array in checkpoint.arrays.values()) + _OVERHEAD:
        # Orbax would find out in several threads, each of which complains in the terminal.
        raise CheckpointError(f"cannot write to {target}: {os.strerror(errno.ENOSPC)}")
    partial.mkdir()  # not its parents: a folder that somebody removed does not come back
    try:
        PyTreeCheckpointer().save(partial.absolute() / "arrays", dict(checkpoint.arrays))
        content = {"files": _files_in(partial / "arrays"), **asdict(checkpoint.notes)}
        content = {"layout": LAYOUT, "checksum": _checksum(content), **content}
        (partial / "notes.json").write_text(json.dumps(content, indent=1) + "\n")
    except Exception as error:  # Orbax raises the system's errors as its own, which tell them in the end
        shutil.rmtree(partial, ignore_errors=True)
        reason = next((known for known in _FAULTS if known in str(error)), one_line(error)[:200])
        raise CheckpointError(f"cannot write to {target}: {reason}") from error
    if target.exists():  # one that was damaged
        _remove(target)
    partial.rename(target)
    prune(folder, keep, best)


def prune(folder: Path, keep: int, best: Callable[[int], int | None]) -> None:
    """Removes the checkpoints of a run before the newest `keep`, but for one.

    Args:
        folder: of the run.
        keep: how many are kept.
        best: the best step up to one, or None. That up to the oldest of the newest `keep` stays, so that each of these
            has the best up to there beside it, and a run that goes back to it has too.
    """
    steps = steps_in(folder)
    for step in steps[keep:]:
        if step != best(steps[keep - 1]):
            _remove(folder / "checkpoints" / str(step))


def steps_in(folder: Path) -> list[int]:
    """The meta-steps of a run's checkpoints, the newest first."""
    present = (folder / "checkpoints").glob("[0-9]*")
    return sorted((int(path.name) for path in present if path.name.isdecimal()), reverse=True)


def remove_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps, and what an end in the middle of writing has left."""
    for later in steps_in(folder):
        if later > step:
            _remove(folder / "checkpoints" / str(later))
    for partial in (folder / "checkpoints").glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _remove(path: Path) -> None:
    """Removes a checkpoint as a whole, whenever the process ends."""
    hidden = path.with_name(f".{path.name}.old.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def newest_notes(folder: Path) -> Notes | None:
    """The notes of the newest checkpoint; None if there is no checkpoint.

    Raises:
        CheckpointError: if there are checkpoints, but none of them can be read.
    """
    steps = steps_in(folder)
    for step in steps:
        try:
            return _read_notes(folder / "checkpoints" / str(step))[0]
        except DamagedError as error:
            log.warning("%s; goes back to an earlier one", error)
    if steps:
        raise _nothing_whole(folder)
    return None


def newest(folders: Sequence[Path], may_start_at: Callable[[int], bool] = lambda _: True) -> list[Checkpoint | None]:
    """Where runs go on that train as one program: at the newest whole checkpoint of the same step, if they have one.

    Otherwise each goes on at its own newest; None for a run that has no checkpoint.

    Args:
        folders: of the runs.
        may_start_at: tells the steps to start at; others are taken only if there is nothing else.

    Raises:
        CheckpointError: if a run has checkpoints, but none of them can be read.
    """
    present = [steps_in(folder) for folder in folders]
    common = set.intersection(*map(set, present))
    if len(folders) > 1 and min(max(steps, default=-1) for steps in present) not in common:
        common = set()  # but for old ones, kept for being best: to go back there would lose what came after
    for step in sorted(common, key=lambda step: (may_start_at(step), step), reverse=True):
        try:
            return [read(folder / "checkpoints" / str(step)) for folder in folders]
        except DamagedError as error:
            log.warning("%s; goes back to an earlier one", error)
    if len(folders) > 1:
        return [newest([folder], may_start_at)[0] for folder in folders]
    if common:
        raise _nothing_whole(folders[0])
    return [None]


def _nothing_whole(folder: Path) -> CheckpointError:
    return CheckpointError(f"{folder} already holds a run, and none of its checkpoints is whole; choose another folder")


def _read_notes(path: Path) -> tuple[Notes, dict[str, list[int]]]:
    """The notes of a checkpoint, and the files that it had when it was written (`_files_in`)."""
    try:
        content = json.loads((path / "notes.json").read_text())
        layout, checksum = content.pop("layout"), content.pop("checksum")
        if layout == LAYOUT and checksum == _checksum(content):
            files, mark = content.pop("files"), Mark(*content.pop("mark"))
            return Notes(**content, mark=mark), files
    except Exception as error:  # whatever is in there instead
        raise DamagedError(f"the checkpoint {path} is damaged ({type(error).__name__})") from error
    if layout == LAYOUT:
        raise DamagedError(f"the checkpoint {path} is damaged (notes.json is not as it was written)")
    raise CheckpointError(f"the checkpoint {path} has layout {layout}; this version of twmaml reads {LAYOUT}")


def read(path: Path) -> Checkpoint:
    """Reads the checkpoint in a folder of its own.

    Raises:
        CheckpointError: if it is damaged, or cannot be read.
    """
    notes, files = _read_notes(path)
    _verify(path, files)
    from orbax.checkpoint import PyTreeCheckpointer  # noqa: PLC0415  a second that only a run that goes on waits for

    try:
        restored = PyTreeCheckpointer().restore(path.absolute() / "arrays")
        return Checkpoint(notes, {name: np.asarray(array) for name, array in restored.items()})
    except Exception as error:  # not damaged, so there is no going back to an earlier one, which would remove it
        raise CheckpointError(f"cannot read the checkpoint {path}: {one_line(error)[:200]}") from error


def _verify(path: Path, files: Mapping[str, list[int]]) -> None:
    """Refuses a checkpoint whose arrays are not in the files that were written, as they were written.

    Orbax must not meet such files: its threads complain in the terminal, some of them when all is over.
    """
    try:
        there = _files_in(path / "arrays")
    except OSError as error:
        raise DamagedError(f"the checkpoint {path} is damaged ({one_line(error)})") from error
    differing = [name for name in sorted({*files, *there}) if files.get(name) != there.get(name)]
    if differing:
        raise DamagedError(f"the checkpoint {path} is damaged (arrays/{differing[0]} is not as it was written)")


def _files_in(folder: Path) -> dict[str, list[int]]:
    """Size and checksum of every file below a folder, by its path in there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _measure(path) for path in paths}


def _measure(path: Path) -> list[int]:
    """Size and checksum of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]


def _checksum(content: Mapping[str, Any]) -> int:
    """The checksum of what stands in notes.json besides itself and the layout."""
    return zlib.crc32(json.dumps(content).encode())
