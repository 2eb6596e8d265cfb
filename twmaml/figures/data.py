"""The data that the figures of a run are drawn from. Without Matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import PriorityQueue
from twmaml.statistics import SCORE, key_of
from twmaml.storage.pictures_file import Pictures
from twmaml.types import Metric


@dataclass(frozen=True)
class Judged:
    """An evaluation of a run on one split."""

    grid: ParameterGrid
    draws: int
    """Tasks of a cell."""
    metrics: Sequence[Metric]
    """The score, and the family's further metrics."""
    values: Mapping[str, np.ndarray]
    """The score's under `loss`, others' under their keys, [tasks, inner steps + 1] each."""
    protocol: str

    def of(self, metric: Metric) -> np.ndarray:
        """The values of a metric, [tasks, inner steps + 1]."""
        return self.values[key_of(metric, self.metrics)]

    @property
    def steps(self) -> int:
        """Inner steps."""
        return self.values[SCORE].shape[1] - 1


@dataclass(frozen=True)
class FigureData:
    """All that the figures of a run are drawn from, in a form that another process can draw them from."""

    title: str
    grid: ParameterGrid
    """The queue's."""
    queue: PriorityQueue
    probabilities: np.ndarray
    """The sampler's distribution over cells."""
    selects: bool
    """Whether that is only the proposal, of which draws are chosen."""
    splits: Mapping[str, Judged]
    """The latest evaluation of each split; `eval` is always among them."""
    history: Mapping[str, np.ndarray]
    """metrics.csv by column."""
    pictures: Pictures | None
    """None of a family that has none."""
    draw_picture: Callable[[Any, Mapping[str, np.ndarray]], None]
    """The family's: draws one task's picture into Matplotlib's axes."""
    learned: Mapping[str, np.ndarray]
    """Arrays that are learned besides the weights, by name."""
    contexts: np.ndarray | None
    """The adapted numbers of the tasks of `eval`, [tasks, size], where these are not weights."""
