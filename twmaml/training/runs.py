"""Runs as jobs ask for them, and as they are told how these stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from twmaml.samplers.base import Sampler
from twmaml.storage.run_folder import State
from twmaml.training.parts import Parts
from twmaml.training.plan import Plan


@dataclass(frozen=True)
class Shared:
    """Whatever the runs of a group have in common."""

    parts: Parts
    """But for the sampler, and for numbers that a run has of its own."""
    plan: Plan
    memory_gib: float | None
    """Memory that a program may take; None for a share of what is free."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run before it begins, or goes on."""

    folder: Path
    start: State  # of the folder
    seed: int
    title: str
    parts: Parts
    """The run's own sampler is in them; runs whose samplers are the same but for numbers have the same."""
    numbers: Mapping[str, float]
    """By key, what these are for the run, and likewise those in the shared parts."""
    config: dict[str, Any]  # of the job
    wandb: Mapping[str, Any]  # arguments of `WandbRun`

    @property
    def sampler(self) -> Sampler:
        """Its own, but for numbers."""
        return self.parts.learner.sampler


@dataclass(kw_only=True)
class RunResult:
    """The training of one seed as it stands."""

    folder: Path
    step: int = 0
    latest: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    """The best checkpoint's; None until its end, or without a split `validation`."""
    status: str = "running"
    """`running`, `finished`, `interrupted`, or the one line that says why it failed."""
    wandb_mode: str = "disabled"
    wandb_url: str = ""
    wandb_group_url: str = ""

    @property
    def failed(self) -> bool:
        """Whether a loss stopped being finite, or there was nothing whole to go on from."""
        return self.status not in ("running", "finished", "interrupted")


@runtime_checkable
class Progress(Protocol):
    """Whoever watches the training."""

    def update(self, stage: str, runs: Sequence[RunResult]) -> None:
        """Told what is being done, and how the runs stand that it is done with."""
        ...
