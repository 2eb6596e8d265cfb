"""The axes of the task-parameter space."""

import math
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.types import Real


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Axis:
    """One task parameter: its range, cut into equal cells that cover it exactly.

    Args:
        low: lower end of the range, in `unit`.
        high: upper end of the range, in `unit`.
        cells: number of cells that the priority queue keeps along the axis.
        unit: shown in figures; `deg` means that tasks carry the value in radians.
        evaluation_cells: tasks along the axis in evaluation, one at the centre of each of so many equal
            cells; as many as `cells` if not given.
    """

    low: Real
    high: Real
    cells: PositiveInt
    unit: str = ""
    evaluation_cells: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            low, high = np.float32(self.low), np.float32(self.high)
            width = high - low
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"low must be less than high, in single precision. Got low={self.low}, high={self.high}")
        if width == np.inf:
            raise ValueError(f"high - low must be finite in single precision. Got low={self.low}, high={self.high}")
        if self.unit in ("degree", "degrees", "°"):
            raise ValueError(f"unit must be deg for an angle in degrees. Got {self.unit}")

    @property
    def scale(self) -> float:
        """What one configured unit is inside a task: radians for degrees, otherwise 1."""
        return math.pi / 180 if self.unit == "deg" else 1.0

    def edges(self, cells: int | None = None) -> np.ndarray:
        """Borders of the cells (or of `cells` equal cells) in the configured unit, for figures."""
        return np.linspace(self.low, self.high, (self.cells if cells is None else cells) + 1)
