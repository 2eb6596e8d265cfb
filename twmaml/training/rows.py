"""The rows of metrics.csv, but for the evaluations."""

from collections.abc import Mapping, Sequence

import numpy as np

from twmaml.meta_learning.chunk import Chunk
from twmaml.samplers.base import Sampler
from twmaml.statistics import rank_correlation
from twmaml.storage.metrics_file import TASKS_ADAPTED, TASKS_TRAINED
from twmaml.training.programs import Programs

_CORRELATION = "queue/visit_loss_correlation"


def columns_of_chunks(programs: Programs, sampler: Sampler) -> list[str]:
    """The names of the figures that chunks leave of a run."""
    return [TASKS_ADAPTED, TASKS_TRAINED, *programs.metric_names(sampler), _CORRELATION]


def row_of(chunk: Chunk, index: int, columns: Sequence[str]) -> dict[str, float]:
    """The figures of a chunk, but for the tasks that are paid for.

    Args:
        chunk: of all runs.
        index: of the run.
        columns: that it has.
    """
    own = {name: float(values[index]) for name, values in chunk.metrics.items() if name in columns}
    # On the host: ranks need sorting, which a CPU's compiled programs do 50 times slower than NumPy.
    losses, visits = (np.asarray(each)[index] for each in (chunk.losses, chunk.visits))
    return {**own, _CORRELATION: rank_correlation(losses[visits > 0], visits[visits > 0])}


def spent(step: int, meta_batch: int, trained: int, before: Mapping[str, float]) -> dict[str, float]:
    """The tasks that are paid for at a step.

    Args:
        step: of the row.
        meta_batch: tasks of a meta-step.
        trained: tasks that were trained on since the row before.
        before: that row; empty where there is none.
    """
    return {TASKS_ADAPTED: float(step * meta_batch), TASKS_TRAINED: before.get(TASKS_TRAINED, 0.0) + trained}
