"""The split `validation`, by which the best checkpoint of a run is found and its training may end early."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twmaml.statistics import MEAN, VALIDATION, as_cost, column_of, leading
from twmaml.storage import evaluation_file
from twmaml.storage.checkpoint import Checkpoint, CheckpointError, newest_notes, read
from twmaml.storage.metrics_file import read_metrics
from twmaml.types import Metric


class Validation(NamedTuple):
    """The evaluations of a run on the split, each by the mean of the family's leading metric as metrics.csv has it."""

    metrics: Sequence[Metric]
    """The score, and the family's further metrics."""
    costs: tuple[tuple[int, float], ...] = ()
    """Meta-step and mean of each evaluation, the mean as a cost."""

    def after(self, row: Mapping[str, float]) -> "Validation":
        """The evaluations with that of a row of metrics.csv, if there is one."""
        if math.isnan(row.get(f"{VALIDATION}/diverged", math.nan)):
            return self
        lead = leading(self.metrics)
        mean = row[f"{VALIDATION}/{column_of(MEAN, None if lead == self.metrics[0] else lead)}"]
        return self._replace(costs=(*self.costs, (int(row["step"]), as_cost(mean, lead))))

    def after_all(self, columns: Mapping[str, np.ndarray]) -> "Validation":
        """The evaluations with those of a whole metrics.csv."""
        found = self
        for row in zip(*columns.values(), strict=True):
            found = found.after(dict(zip(columns, row, strict=True)))
        return found

    def best(self, until: float = math.inf) -> int | None:
        """The meta-step of the best evaluation up to one, the first of equals; None if each of them is NaN."""
        known = [(cost, step) for step, cost in self.costs if step <= until and not math.isnan(cost)]
        return min(known)[1] if known else None

    @property
    def since_best(self) -> int:
        """The number of evaluations after the best one, or after the first if each is NaN."""
        best = self.best()
        best = 0 if best is None else best
        return sum(step > best for step, _ in self.costs)


def best_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of a run's best evaluation up to where it stands; None if it has no checkpoint at all.

    Raises:
        CheckpointError: if the run is not judged on the split, or that checkpoint cannot be used.
    """
    notes, judged = newest_notes(folder), evaluation_file.path_of(folder, 0, VALIDATION)
    if notes is None:
        return None
    if not judged.exists():
        raise CheckpointError(f"{folder} has no best checkpoint: it is not judged on evaluation.splits.{VALIDATION}")
    evaluations = Validation(evaluation_file.read(judged).metrics).after_all(read_metrics(folder / "metrics.csv"))
    step = evaluations.best(notes.step)
    if step is None:
        raise CheckpointError(f"{folder} has no best checkpoint: every evaluation on {VALIDATION} is NaN")
    path = folder / "checkpoints" / str(step)
    if not path.is_dir():
        raise CheckpointError(f"{path}, the checkpoint that is best on {VALIDATION}, is gone")
    return read(path)
