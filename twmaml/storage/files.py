"""Files that are written as a whole or not at all."""

import json
import logging
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from twmaml.errors import ExpectedError

log = logging.getLogger(__name__)


class DamagedFileError(ExpectedError):
    """A file does not hold what it should; the message names it and says why, in a few words."""


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes a file that `numpy.load` reads, at once or not at all."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of such a file. Nothing in it is executed.

    Raises:
        DamagedFileError: if it is no such file, or not whole.
    """
    with path.open("rb") as opened:  # np.load alone leaks a damaged one
        try:
            with np.load(opened) as file:
                return dict(file)
        except (ValueError, LookupError, zipfile.BadZipFile) as error:
            raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DamagedFileError:
    """The error that names a file as damaged, for the one that reading it has ended in."""
    return DamagedFileError(f"{path.name} is damaged: {' '.join(str(error).split())[:120]}")


def run_log(folder: Path) -> "logging.LoggerAdapter[logging.Logger]":
    """The log of one run: where several runs go on at once, only the file in its folder gets the records."""
    return logging.LoggerAdapter(log, {"run_folder": folder})


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of `path` as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes strict JSON (NaN and infinity become null), at once or not at all."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(clean, indent=2, allow_nan=False) + "\n")


def shorten(folder: Path) -> Path:
    """Relative to the current folder, if it is in there."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
