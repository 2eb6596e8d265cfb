"""The axes of the task-parameter space, and what a task has besides them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.types import Real

_STRICT = ConfigDict(strict=True, extra="forbid")

_Piece = Annotated[tuple[Real, Real, PositiveInt], Field(strict=False)]  # a list, in YAML


class Ends(NamedTuple):
    """A straight piece of an axis, and how far along it something lies, from 0 to 1."""

    low: Float[Array, "*any"] | np.float32
    high: Float[Array, "*any"] | np.float32
    fraction: Float[Array, "*any"] | np.float32

    @property
    def value(self) -> Float[Array, "*any"]:
        """The entry of a task there."""
        # Both ends weighted, so that 1 gives the high end itself and nothing above it.
        return jnp.asarray(self.low * (1 - self.fraction) + self.high * self.fraction)


@runtime_checkable
class Axis(Protocol):
    """One task parameter, cut into cells. A position runs from 0 to 1, in which every cell has an equal part."""

    @property
    def cells(self) -> int:
        """Cells that the priority queue keeps along the axis."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the configured values; `deg` means that tasks carry them in radians."""
        ...

    @property
    def continuous(self) -> bool:
        """Whether there is something between the centres of two cells."""
        ...

    @property
    def span(self) -> str:
        """The range in words."""
        ...

    @property
    def scale(self) -> float:
        """The size of one configured unit inside a task: radians for degrees, otherwise 1."""
        ...

    @property
    def cells_in_evaluation(self) -> int:
        """Cells along the axis in evaluation, each of which has its tasks at the centre."""
        ...

    def ends(self, position: Float[Array, "*any"]) -> Ends:
        """The straight piece of the range that a position lies on, as a task carries it."""
        ...

    def position(self, value: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """The position of a task's entry; outside of 0 ... 1 for a value outside of the range."""
        ...

    def with_cells(self, cells: int) -> "Axis":
        """The same range cut into another number of cells.

        Raises:
            ValueError: if that is not possible.
        """
        ...

    def edges(self) -> np.ndarray:
        """Borders of the cells as figures draw them: in the configured unit, or 0, 1, 2, ... where there are ticks."""
        ...

    def ticks(self) -> tuple[list[float], list[str]] | None:
        """Places between the edges and their labels; None where the edges say it themselves."""
        ...


@dataclass(frozen=True, config=_STRICT)
class Interval:
    """A real parameter: its range, cut into equal cells that cover it exactly.

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
    continuous = True

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)
        _check_unit(self.unit)

    @property
    def span(self) -> str:
        """Both ends, with the unit."""
        return f"[{self.low:g}, {self.high:g}]{self.unit}"

    @property
    def scale(self) -> float:
        """Radians for degrees, otherwise 1."""
        return _scale(self.unit)

    @property
    def cells_in_evaluation(self) -> int:
        """`evaluation_cells`, or as many as the queue's."""
        return self.cells if self.evaluation_cells is None else self.evaluation_cells

    def ends(self, position: Float[Array, "*any"]) -> Ends:
        """The range itself."""
        return Ends(np.float32(self.low * self.scale), np.float32(self.high * self.scale), position)

    def position(self, value: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """The inverse of `ends`."""
        low, high = np.float32(self.low * self.scale), np.float32(self.high * self.scale)
        return (value - low) / (high - low)

    def with_cells(self, cells: int) -> "Interval":
        """The same range cut into another number of cells."""
        return Interval(self.low, self.high, cells, self.unit)

    def edges(self) -> np.ndarray:
        """Borders of the cells in the configured unit."""
        return np.linspace(self.low, self.high, self.cells + 1)

    def ticks(self) -> None:
        """None: the edges are values."""
        return None


@dataclass(frozen=True, config=_STRICT)
class Segments:
    """A real parameter whose range has gaps: several intervals, each cut into equal cells of its own.

    Args:
        intervals: low end, high end (in `unit`) and number of cells of each, in ascending order, without overlap.
        unit: as of an `Interval`.
        evaluation_cells: tasks along the axis in evaluation, shared out among the intervals by their lengths.
    """

    intervals: Annotated[Sequence[_Piece], Field(min_length=1, max_length=100)]
    unit: str = ""
    evaluation_cells: Annotated[int, Field(ge=1)] | None = None
    continuous = True

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        for low, high, _ in self.intervals:
            _check_range(low, high)
        for (_, high, _), (low, _, _) in pairwise(self.intervals):
            if not high <= low:
                raise ValueError(f"intervals must ascend and not overlap. Got one to {high} before one from {low}")
        if self.evaluation_cells is not None:
            self.with_cells(self.evaluation_cells)

    @property
    def span(self) -> str:
        """Every interval, with the unit."""
        return " ".join(f"[{low:g}, {high:g}]{self.unit}" for low, high, _ in self.intervals)

    @property
    def cells(self) -> int:
        """Cells of all intervals."""
        return sum(cells for _, _, cells in self.intervals)

    @property
    def scale(self) -> float:
        """Radians for degrees, otherwise 1."""
        return _scale(self.unit)

    @property
    def cells_in_evaluation(self) -> int:
        """`evaluation_cells`, or as many as the queue's."""
        return self.cells if self.evaluation_cells is None else self.evaluation_cells

    def ends(self, position: Float[Array, "*any"]) -> Ends:
        """An interval; a position at a gap belongs to the one above it."""
        low, high, cells, start = self._arrays()
        counted = position * self.cells
        index = jnp.sum(counted[..., None] >= start[1:], axis=-1)
        return Ends(low[index], high[index], (counted - start[index]) / cells[index])

    def position(self, value: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """The inverse of `ends`; a value in a gap has the position of the nearer end of an interval."""
        low, high, cells, start = self._arrays()
        index = jnp.sum(value[..., None] >= (high[:-1] + low[1:]) / 2, axis=-1)
        counted = start[index] + (value - low[index]) / (high[index] - low[index]) * cells[index]
        # The ends at gaps belong to their own intervals.
        first = jnp.concatenate([jnp.array([-jnp.inf]), start[1:]])
        last = jnp.concatenate([jnp.nextafter(start[1:], jnp.float32(0)), jnp.array([jnp.inf])])
        return jnp.clip(counted, first[index], last[index]) / self.cells

    def with_cells(self, cells: int) -> "Segments":
        """The same intervals; so many cells shared out among them by length, at least one each."""
        if cells < len(self.intervals):
            raise ValueError(f"{len(self.intervals)} intervals need at least as many cells. Got {cells}")
        lengths = np.array([high - low for low, high, _ in self.intervals])
        shares = 1 + lengths / lengths.sum() * (cells - len(lengths))
        counts = shares.astype(int)
        for i in np.argsort(counts - shares, kind="stable")[: cells - counts.sum()]:
            counts[i] += 1
        pairs = zip(self.intervals, counts.tolist(), strict=True)
        return Segments([(low, high, count) for (low, high, _), count in pairs], self.unit)

    def edges(self) -> np.ndarray:
        """0, 1, 2, ...: the gaps are not drawn."""
        return np.arange(self.cells + 1.0)

    def ticks(self) -> tuple[list[float], list[str]]:
        """The ends of the intervals."""
        starts = np.cumsum([0, *(cells for _, _, cells in self.intervals)]).tolist()
        inner = [f"{high:g} | {low:g}" for (_, high, _), (low, _, _) in pairwise(self.intervals)]
        return starts, [f"{self.intervals[0][0]:g}", *inner, f"{self.intervals[-1][1]:g}"]

    def _arrays(self) -> tuple[Array, ...]:
        low, high, cells = (np.array(column, np.float32) for column in zip(*self.intervals, strict=True))
        start = np.concatenate([[0], np.cumsum(cells)[:-1]]).astype(np.float32)
        return tuple(
            jnp.asarray(each) for each in (low * np.float32(self.scale), high * np.float32(self.scale), cells, start)
        )


@dataclass(frozen=True, config=_STRICT)
class Categories:
    """A parameter that is one of several kinds; a cell each. A task carries the index of its kind.

    Args:
        names: of the kinds, each once.
    """

    names: Annotated[Sequence[str], Field(min_length=1)]
    unit = ""
    continuous = False
    scale = 1.0

    def __post_init__(self) -> None:
        if len({*self.names}) < len(self.names):
            raise ValueError(f"names must all differ. Got {', '.join(self.names)}")

    @property
    def span(self) -> str:
        """The names, up to three of them."""
        return f"({', '.join([*self.names[:3], *(['...'] if len(self.names) > 3 else [])])})"

    @property
    def cells(self) -> int:
        """As many as there are kinds."""
        return len(self.names)

    @property
    def cells_in_evaluation(self) -> int:
        """Every kind."""
        return self.cells

    def ends(self, position: Float[Array, "*any"]) -> Ends:
        """A single value: the index of the kind, as a float."""
        kind = jnp.floor(position * self.cells)
        return Ends(kind, kind, np.float32(0))

    def position(self, value: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """The middle of the cell."""
        return (jnp.round(value) + 0.5) / self.cells

    def with_cells(self, cells: int) -> "Categories":
        """The same axis; refuses another number."""
        if cells != self.cells:
            raise ValueError(f"an axis of {self.cells} categories has {self.cells} cells. Got {cells}")
        return self

    def edges(self) -> np.ndarray:
        """0, 1, 2, ..."""
        return np.arange(self.cells + 1.0)

    def ticks(self) -> tuple[list[float], list[str]]:
        """The names in the middle of their cells."""
        return [i + 0.5 for i in range(self.cells)], list(self.names)


@dataclass(frozen=True, config=_STRICT)
class Nuisance:
    """A parameter that no cell stands for: drawn anew, uniformly, for each task.

    Args:
        low: lower end of the range, in `unit`.
        high: upper end of the range, in `unit`.
        unit: as of an `Interval`.
    """

    low: Real
    high: Real
    unit: str = ""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)
        _check_unit(self.unit)

    @property
    def scale(self) -> float:
        """Radians for degrees, otherwise 1."""
        return _scale(self.unit)


def _check_range(low: float, high: float) -> None:
    with np.errstate(over="ignore"):
        first, last = np.float32(low), np.float32(high)
        width = last - first
    if not -np.inf < first < last < np.inf:
        raise ValueError(f"low must be less than high, in single precision. Got low={low}, high={high}")
    if width == np.inf:
        raise ValueError(f"high - low must be finite in single precision. Got low={low}, high={high}")


def _check_unit(unit: str) -> None:
    if unit in ("degree", "degrees", "°"):
        raise ValueError(f"unit must be deg for an angle in degrees. Got {unit}")


def _scale(unit: str) -> float:
    return math.pi / 180 if unit == "deg" else 1.0


Parameter = Interval | Segments | Nuisance | Real
"""A task parameter as a regression is configured with it: an axis, redrawn for each task, or fixed."""
