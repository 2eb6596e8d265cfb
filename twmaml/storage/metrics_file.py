"""metrics.csv."""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twmaml.errors import ExpectedError

NO_FIT = "is not the file that the checkpoint is of; choose another folder"
"""The fault of a metrics.csv that belongs to another run."""

TASKS_ADAPTED, TASKS_TRAINED = "train/tasks_adapted", "train/tasks_trained"
"""Columns of the tasks that a run has adapted so far, and of those of them whose loss had a weight other than 0."""


_WHOLE = 2.0**53
"""From here on a float need not be the integer that was meant."""


class Mark(NamedTuple):
    """Where a metrics.csv stands: where its last row begins, and that row."""

    size: int
    row: str

    def fits(self, path: Path) -> bool:
        """Whether a file holds what stood before the last row."""
        return path.is_file() and path.stat().st_size >= self.size


class MetricsFile:
    """metrics.csv: one row a logged step; two equal runs write equal files.

    Args:
        path: the file, which must not exist yet unless there is a mark.
        columns: every metric that may come, besides `step`; one that is missing or NaN in a row is left empty.
        mark: goes on from there; what stands behind it is cut off.

    Raises:
        ExpectedError: if what is there is not what the mark is of.
    """

    def __init__(self, path: Path, columns: Iterable[str], mark: Mark | None = None) -> None:
        self.columns = ["step", *columns]
        self._path = path
        self._file = path.open("xb" if mark is None else "r+b", buffering=0)
        header = _csv_line(self.columns)
        if mark is None:
            self._append(Mark(0, header))
        else:
            fault = _fault_of(self._file.readline(), header) or ("" if mark.fits(path) else NO_FIT)
            if fault:
                self._file.close()
                raise ExpectedError(f"{path} {fault}")
            self._append(mark)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row; it is on disk when this returns."""
        unknown = set(metrics) - set(self.columns)
        if unknown:
            raise KeyError(f"metrics without a column: {sorted(unknown)}")
        row = [format_number(metrics.get(name, math.nan)) for name in self.columns[1:]]
        self._append(Mark(self._file.seek(0, os.SEEK_END), _csv_line([step, *row])))

    @property
    def last(self) -> dict[str, float]:
        """The last row as it stands in the file; NaN where it is empty."""
        values = next(csv.reader([self.mark.row]))
        return {name: float(value or "nan") for name, value in zip(self.columns, values, strict=True)}

    def amend(self, metrics: Mapping[str, float]) -> None:
        """Adds metrics to the last row."""
        known = self.last
        self._file.truncate(self.mark.size)
        self.write(int(known.pop("step")), {**known, **metrics})

    def _append(self, mark: Mark) -> None:
        """Writes a row to where it belongs, as a whole or not at all."""
        self.mark = mark
        self._file.truncate(mark.size)
        self._file.seek(mark.size)
        rest = mark.row.encode()
        try:
            while rest:  # on a disk that is nearly full, a part is written
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(mark.size)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _fault_of(first_line: bytes, header: str) -> str:
    """The fault of a file whose first line is not the header; nothing if it is."""
    if first_line == header.encode():
        return ""
    there, wanted = (next(csv.reader([line]), []) for line in (first_line.decode(errors="replace"), header))
    if there[:1] == ["step"] and (lacking := [name for name in wanted if name not in there]):
        return f"has no column {lacking[0]}, so another version or configuration has begun it; choose another folder"
    return NO_FIT


def _csv_line(values: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()


def format_number(value: float) -> str:
    """Nine digits, which give a float32 back exactly, and all those of a whole number; empty for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < _WHOLE else f"{value:.9g}"


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """A metrics.csv by column; NaN where a row is empty."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
