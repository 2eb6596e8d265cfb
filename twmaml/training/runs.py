"""Runs as jobs ask for them, and as they are told how these stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.learner import MetaLearner
from twmaml.samplers.base import Sampler
from twmaml.storage.run_folder import State
from twmaml.training.plan import Plan


@dataclass(frozen=True)
class Shared:
    """Whatever the runs of a group have in common."""

    learner: MetaLearner
    """But for its sampler."""
    evaluations: Mapping[str, Evaluation]
    """By the name of the split."""
    data: Mapping[str, Any]
    """Arrays of the families by the name of the split; those of training under `train`."""
    fingerprint: int
    """A checksum of the data: a run does not go on with other data."""
    figures: Mapping[str, Any]
    """Figures of the user's own, by name."""
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
    sampler: Sampler
    config: dict[str, Any]  # of the job
    wandb: Mapping[str, Any]  # arguments of `WandbRun`


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
