"""The file of one evaluation: `evaluation/<step>.npz`, or `evaluation/<split>/<step>.npz` of another split."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twmaml.space.axis import Categories, Interval, Segments
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import SCORE
from twmaml.storage.files import DamagedFileError, damaged, read_arrays, write_arrays
from twmaml.types import Metric

_KINDS: Sequence[Any] = (Interval, Segments, Categories)


class EvaluationRecord(NamedTuple):
    """One evaluation of one run."""

    grid: ParameterGrid
    """The evaluation's, whose cells hold the same number of tasks each."""
    metrics: Sequence[Metric]
    """The score, and the family's further metrics."""
    values: Mapping[str, np.ndarray]
    """The score's under `loss`, the others' under their keys; each [tasks, inner steps + 1]."""
    tasks: np.ndarray
    """Parameters in their configured units, [tasks, axes]."""
    queue_losses: np.ndarray | None
    """The queue's loss for the cell of each task, NaN where it had not been visited; None where the queue has no
    cells for these tasks."""
    visits: np.ndarray | None
    """How often that cell had been drawn; None likewise."""


def path_of(folder: Path, step: int, split: str = "eval") -> Path:
    """Where an evaluation of the run in a folder lies."""
    parent = folder / "evaluation"
    return (parent if split == "eval" else parent / split) / f"{step}.npz"


def splits_of(folder: Path) -> list[str]:
    """The splits that the run in a folder is judged on."""
    return ["eval", *sorted(path.name for path in (folder / "evaluation").glob("*/"))]


def write(path: Path, record: EvaluationRecord) -> None:
    """Writes the file, at once or not at all. Its folder must exist: one that somebody removed does not come back.

    Raises:
        TypeError: if an axis is of a kind that no file can hold.
    """
    held = {"queue_losses": record.queue_losses, "visits": record.visits}
    write_arrays(
        path,
        losses=record.values[SCORE],
        **{f"metric.{metric.key}": record.values[metric.key] for metric in record.metrics[1:]},
        tasks=record.tasks,
        **{name: array for name, array in held.items() if array is not None},
        axes=axes_text(record.grid),
        metrics=json.dumps([metric._asdict() for metric in record.metrics]),
    )


def read(path: Path) -> EvaluationRecord:
    """Reads the file. Nothing in it is executed.

    Raises:
        DamagedFileError: if it is not whole.
    """
    arrays = read_arrays(path)
    if "metrics" not in arrays and "losses" in arrays:
        raise DamagedFileError(f"{path.name} is of an earlier version of twmaml, without axes and metrics")
    try:
        score, *further = [Metric(**fields) for fields in json.loads(str(arrays["metrics"]))]
        grid = _grid(str(arrays["axes"]))
        record = EvaluationRecord(
            grid=grid,
            metrics=[score, *further],
            values={SCORE: arrays["losses"], **{each.key: arrays[f"metric.{each.key}"] for each in further}},
            tasks=arrays["tasks"],
            queue_losses=arrays.get("queue_losses"),
            visits=arrays.get("visits"),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise damaged(path, error) from error
    count = len(record.tasks)
    if count % grid.size or any(len(of_metric) != count for of_metric in record.values.values()):
        raise damaged(path, ValueError(f"{count} tasks do not fill {grid.size} cells"))
    return record


def axes_text(grid: ParameterGrid) -> str:
    """The axes of a grid as JSON: by name, kind and fields; equal for equal axes."""
    return json.dumps({name: _describe(axis) for name, axis in grid.axes.items()})


def _describe(axis: Any) -> dict[str, Any]:
    if type(axis) not in _KINDS:
        kinds = ", ".join(kind.__name__ for kind in _KINDS)
        raise TypeError(f"an axis must be one of {kinds} to be written to a file. Got {type(axis).__name__}")
    return {"kind": type(axis).__name__, **dataclasses.asdict(axis)}


def _grid(text: str) -> ParameterGrid:
    kinds = {kind.__name__: kind for kind in _KINDS}
    described = json.loads(text).items()
    return ParameterGrid(
        {name: kinds[axis["kind"]](**{k: v for k, v in axis.items() if k != "kind"}) for name, axis in described}
    )
