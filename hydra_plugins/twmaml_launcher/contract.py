"""The contracts between sweeper, launcher and task function. Whoever does not keep them is treated as Hydra does."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omegaconf import DictConfig

from hydra_plugins.twmaml_launcher.sweep_job import SweepJob

Described = Mapping[int, tuple[Sequence[str], Mapping[str, Any]]]
"""The jobs of a group by their numbers: the overrides that set each apart, and its configuration."""

RunGroup = Callable[[int, Mapping[int, Any]], Mapping[int, float | Exception]]
"""Runs the jobs of a group, by its index, that could be prepared; the result of each, or the error that it raises."""


@runtime_checkable
class VectorisedTask(Protocol):
    """A task function that can run several jobs at once."""

    def __call__(self, cfg: DictConfig) -> Any:
        """Runs one job, as any task function does."""

    def validate(self, config: Mapping[str, Any], folder: Path) -> None:
        """Refuses a job that could not run, before the first one does."""

    def group_keys(self, configs: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        """Equal for jobs that can run at once, of all jobs of a sweep."""
        ...

    def finished(self, config: Mapping[str, Any], folder: Path) -> float | None:
        """The result of a job that an earlier process has finished; None if there is something left to do."""

    def prepare(self, cfg: DictConfig) -> Any:
        """Makes a job ready to run, while Hydra's own configuration is that job's."""

    def sweep(self, groups: Sequence[Described], folder: Path) -> AbstractContextManager[RunGroup]:
        """Makes ready to run groups of jobs in the folder of a sweep, one group after the other."""
        ...


@runtime_checkable
class TakesComposed(Protocol):
    """A launcher that need not compose again the jobs that it is given before it launches them."""

    def take_composed(self, jobs: Sequence[SweepJob]) -> None:
        """Keeps jobs."""
