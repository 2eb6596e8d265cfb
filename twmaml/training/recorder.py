"""The files of a run and how it stands."""

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twmaml.samplers.base import Sampler
from twmaml.storage.checkpoint import Checkpoint, Notes
from twmaml.storage.files import run_log
from twmaml.storage.metrics_file import MetricsFile
from twmaml.storage.wandb_run import WandbRun

if TYPE_CHECKING:
    from twmaml.figures.run import Drawn


Results = Mapping[str, Mapping[str, np.ndarray]]
"""Every metric of every split, [tasks, inner steps + 1]."""


def pack_results(results: Results) -> dict[str, np.ndarray]:
    """The results by the names that they have in a checkpoint."""
    named = {(split, metric): array for split, of_split in results.items() for metric, array in of_split.items()}
    return {"losses" if name == _LOSSES else ".".join(("results", *name)): array for name, array in named.items()}


def unpack_results(arrays: Mapping[str, np.ndarray]) -> Results:
    """The reverse of `pack_results`; other arrays may be among them."""
    results: dict[str, dict[str, np.ndarray]] = {"eval": {"loss": arrays["losses"]}}
    for name, array in arrays.items():
        if name.startswith("results."):
            _, split, metric = name.split(".")
            results.setdefault(split, {})[metric] = array
    return results


_LOSSES = ("eval", "loss")


@dataclass(kw_only=True)
class RunRecord:
    """How the training of one seed stands."""

    folder: Path
    step: int = 0
    latest: dict[str, float] = field(default_factory=dict)
    status: str = "running"
    """`running`, `finished`, `interrupted`, or the one line that says why it failed."""

    @property
    def failed(self) -> bool:
        """Whether a loss stopped being finite, or there was nothing whole to go on from."""
        return self.status not in ("running", "finished", "interrupted")


@dataclass(kw_only=True)
class Run(RunRecord):
    """The training of one seed as the host sees it: its folder, its files and how it stands."""

    seed: int
    title: str
    config: dict[str, Any]
    """Of the job."""
    sampler: Sampler
    metrics: MetricsFile
    wandb: WandbRun
    results: Results = field(default_factory=dict)
    """Of the latest evaluation."""
    first_unadapted_loss: float = math.nan
    figures: tuple[int, "Future[Drawn]"] | None = None
    """The figures being drawn, and of which step."""

    @property
    def losses(self) -> np.ndarray:
        """Scores of the split `eval`, [tasks, inner steps + 1]."""
        return self.results["eval"]["loss"]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one row to metrics.csv and to W&B."""
        self.step = step
        self.latest |= metrics
        self.metrics.write(step, metrics)
        self.wandb.log(step, metrics)

    def amend(self, metrics: Mapping[str, float]) -> None:
        """Adds to the row that was written last."""
        self.latest |= metrics
        self.metrics.amend(metrics)
        self.wandb.log(self.step, metrics)

    def notes(self) -> Notes:
        """What a checkpoint says of the host's side."""
        return Notes(
            step=self.step,
            seed=self.seed,
            config=self.config,
            latest=dict(self.latest),
            first_unadapted_loss=self.first_unadapted_loss,
            mark=self.metrics.mark,
            wandb_id=self.wandb.identity,
        )

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Makes the host's side what it was."""
        self.step, self.latest = checkpoint.notes.step, dict(checkpoint.notes.latest)
        self.first_unadapted_loss = checkpoint.notes.first_unadapted_loss
        self.results = unpack_results(checkpoint.arrays)

    def finish_figures(self) -> None:
        """Waits for the figures that are being drawn, if any are, and sends them to W&B."""
        if self.figures is None:
            return
        (step, drawing), self.figures = self.figures, None
        try:
            drawn = drawing.result()
        except Exception as error:  # whatever the figures meet, they are no reason to lose the run
            run_log(self.folder).error("The figures of meta-step %d could not be drawn: %r", step, error)
            return
        for failure in drawn.failures:
            line, _, details = failure.partition("\n")
            run_log(self.folder).error(line)
            run_log(self.folder).info(details)  # to the file only
        self.wandb.log_figures(step, drawn.paths)
