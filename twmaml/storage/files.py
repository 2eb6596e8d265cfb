"""Files that are written as a whole or not at all."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes a file that `numpy.load` reads, at once or not at all."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


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
