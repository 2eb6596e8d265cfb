"""One run on the host: rows, evaluations, figures, checkpoints, summary."""

import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from twmaml.errors import explain
from twmaml.meta_learning.chunk import Chunk
from twmaml.meta_learning.evaluation import Evaluation, Example
from twmaml.meta_learning.learner import MetaLearner, RunState
from twmaml.samplers.base import Sampler
from twmaml.space.priority_queue import PriorityQueue, visit_loss_correlation
from twmaml.statistics import summarize
from twmaml.storage.checkpoint import Checkpoint, Notes
from twmaml.storage.checkpoint import write as write_checkpoint
from twmaml.storage.files import run_log, write_arrays, write_json
from twmaml.storage.metrics_file import MetricsFile, read_metrics
from twmaml.storage.run_folder import State, cut_back
from twmaml.storage.wandb_run import WandbRun
from twmaml.training.plan import Plan
from twmaml.training.programs import Programs

if TYPE_CHECKING:
    from twmaml.figures.run import Drawn

_CORRELATION = "queue/visit_loss_correlation"

_PACKAGES = ("twmaml", "jax", "jaxlib", "optax", "numpy", "hydra-core", "wandb")


@dataclass(frozen=True)
class Shared:
    """Whatever the runs of a group have in common."""

    learner: MetaLearner
    """But for its sampler."""
    evaluation: Evaluation
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


class Recorder:
    """The files of one run that is trained, and how it stands. `index`: of the run in the arrays of the programs."""

    def __init__(
        self,
        spec: RunSpec,
        shared: Shared,
        programs: Programs,
        index: int,
        checkpoint: Checkpoint | None,
        wandb: WandbRun,
    ) -> None:
        self.spec, self.folder, self.index = spec, spec.folder, index
        self._programs, self._evaluation, self._keep = programs, shared.evaluation, shared.plan.keep
        self._wandb = wandb
        metrics, columns = self.folder / "metrics.csv", metric_names(programs, shared.evaluation, spec.sampler)
        self.result = RunResult(folder=self.folder, wandb_mode=wandb.mode, wandb_url=wandb.url)
        self.losses, self.first_unadapted_loss = np.zeros((0, 1)), math.nan
        if checkpoint is None:
            metrics.unlink(missing_ok=True)
            self._metrics = MetricsFile(metrics, columns)
        else:
            self._metrics = MetricsFile(metrics, columns, checkpoint.notes.mark)
            self.result.step, self.result.latest = checkpoint.notes.step, dict(checkpoint.notes.latest)
            self.losses, self.first_unadapted_loss = checkpoint.arrays["losses"], checkpoint.notes.first_unadapted_loss
        cut_back(self.folder, shared.plan.evaluates_at, checkpoint)
        self._first, self._began = self.result.step, time.perf_counter()
        self._saved = None if checkpoint is None else checkpoint.notes.step
        self._saving: Future[None] | None = None
        self._figures: tuple[int, Future[Drawn]] | None = None

    @property
    def running(self) -> bool:
        """Whether it has not come to its end, whichever that is."""
        return self.result.status == "running"

    @contextmanager
    def isolating_failures(self) -> Iterator[None]:
        """Ends this run, and no other, if something fails meanwhile, on a full disk say."""
        try:
            yield
        except Exception as error:
            reason = explain(error)
            if reason is None:  # a fault in the program
                raise
            self.result.status = reason
            run_log(self.folder).info(reason)
            self._metrics.close()
            self._wandb.finish(self.result.latest, exit_code=1)

    def row(self, chunk: Chunk, states: RunState) -> dict[str, float]:
        """The row that a chunk leaves."""
        losses, visits = np.asarray(states.queue.losses), np.asarray(states.queue.visits)
        own = {n: float(v[self.index]) for n, v in chunk.metrics.items() if n in self._metrics.columns}
        return own | {_CORRELATION: visit_loss_correlation(losses[self.index], visits[self.index])}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one row to metrics.csv and to W&B."""
        self.result.step = step
        self.result.latest |= metrics
        self._metrics.write(step, metrics)
        self._wandb.log(step, metrics)

    def amend(self, metrics: Mapping[str, float]) -> None:
        """Adds to the row that was written last."""
        self.result.latest |= metrics
        self._metrics.amend(metrics)
        self._wandb.log(self.result.step, metrics)

    def judge(self, step: int, losses: np.ndarray, states: RunState) -> dict[str, float]:
        """Saves an evaluation; its statistics."""
        self.losses = losses[self.index]
        queue = jax.tree.map(lambda leaf: np.asarray(leaf)[self.index], states.queue)
        save_evaluation(
            self.folder / "evaluation" / f"{step}.npz", self.losses, queue, self._programs, self._evaluation
        )
        return summarize(self.losses, self._evaluation.draws)

    def save(self, leaves: Mapping[str, np.ndarray], writing: Executor) -> None:
        """Has a checkpoint written from the leaves of all runs' states, once the one before is; each step only once."""
        self.finish_saving()
        if self.result.step == self._saved:
            return
        self._saved = self.result.step
        notes = Notes(
            self.result.step,
            self.spec.seed,
            self.spec.config,
            dict(self.result.latest),
            self.first_unadapted_loss,
            self._metrics.mark,
            self._wandb.identity,
        )
        arrays = {name: np.asarray(rows[self.index]) for name, rows in leaves.items()} | {"losses": self.losses}
        self._saving = writing.submit(write_checkpoint, self.folder, Checkpoint(notes, arrays), self._keep)

    def finish_saving(self) -> None:
        """Waits for the checkpoint that is being written; raises the error if it cannot be."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def draw(self, states: RunState, drawing: Executor) -> None:
        """Has the figures drawn beside the training, once those before are."""
        from twmaml.figures.run import FigureData, draw_all  # noqa: PLC0415  imported in the background by now

        self.finish_figures()
        queue, probabilities, examples = self._programs.illustrate(states, self.index)
        if examples is not None:
            save_examples(self.folder / "examples.npz", examples, self._evaluation)
        data = FigureData(
            title=f"{self.spec.title}, meta-step {self.result.step:,}",
            grid=self._evaluation.learner.family.grid,
            evaluation_grid=self._evaluation.grid,
            draws=self._evaluation.draws,
            queue=queue,
            probabilities=probabilities,
            examples=examples,
            losses=self.losses,
            metrics=read_metrics(self.folder / "metrics.csv"),
        )
        self._figures = (self.result.step, drawing.submit(draw_all, data, self.folder / "figures"))

    def finish_figures(self) -> None:
        """Waits for the figures that are being drawn, if any are, and sends them to W&B."""
        if self._figures is None:
            return
        (step, drawing), self._figures = self._figures, None
        try:
            drawn = drawing.result()
        except Exception as error:  # whatever the figures meet, they are no reason to lose the run
            run_log(self.folder).error("The figures of meta-step %d could not be drawn: %r", step, error)
            return
        for failure in drawn.failures:
            line, _, details = failure.partition("\n")
            run_log(self.folder).error(line)
            run_log(self.folder).info(details)  # to the file only
        self._wandb.log_figures(step, drawn.paths)

    def close(self, status: str, seconds: float, runs_at_once: int) -> None:
        """Writes summary.json, with the seconds that the meta-steps took, and ends the W&B run."""
        result = self.result
        result.status = status
        summary = {
            "status": f"failed: {status}" if result.failed else status,
            "seed": self.spec.seed,
            "step": result.step,
            "wall_seconds": round(time.perf_counter() - self._began, 3),
            "runs_at_once": runs_at_once,
            "meta_steps_per_second": round((result.step - self._first) / seconds, 1) if seconds > 0 else None,
            **result.latest,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            "device": jax.devices()[0].device_kind,
        }
        write_json(self.folder / "summary.json", summary)
        self._metrics.close()
        self._wandb.finish(result.latest, exit_code=0 if status == "finished" else 1)


def save_evaluation(
    path: Path, losses: np.ndarray, queue: PriorityQueue, programs: Programs, evaluation: Evaluation
) -> None:
    """Writes `evaluation/<step>.npz`; the README says what is in it."""
    grid, cells = evaluation.grid, np.asarray(programs.tasks.cells)
    axes = grid.axes.values()
    write_arrays(
        path,
        losses=losses,
        tasks=np.asarray(programs.tasks.tasks) / _scale(evaluation),
        names=grid.names,
        units=[axis.unit for axis in axes],
        shape=grid.shape,
        low=[axis.low for axis in axes],
        high=[axis.high for axis in axes],
        queue_losses=queue.losses[cells],
        visits=queue.visits[cells],
    )


def save_examples(path: Path, examples: Example, evaluation: Evaluation) -> None:
    """Writes examples.npz; the README says what is in it."""
    write_arrays(
        path,
        tasks=examples.task / _scale(evaluation),
        x=examples.x,
        targets=examples.target,
        predictions=examples.predictions,
        support_inputs=examples.support.inputs,
        support_targets=examples.support.targets,
    )


def _scale(evaluation: Evaluation) -> np.ndarray:
    return np.array([axis.scale for axis in evaluation.grid.axes.values()], np.float32)


def metric_names(programs: Programs, evaluation: Evaluation, sampler: Sampler) -> list[str]:
    """The columns of the metrics.csv of a run."""
    # Programs that several samplers share report what any of them wants logged.
    own = {f"sampler/{name}" for name in jax.eval_shape(sampler.metrics, jnp.int32(0))}
    of_chunk = [name for name in programs.metric_names if not name.startswith("sampler/") or name in own]
    nothing = np.zeros((evaluation.grid.size * evaluation.draws, evaluation.steps + 1))
    return [*of_chunk, _CORRELATION, *summarize(nothing, evaluation.draws)]


def running(runs: Sequence[Recorder]) -> list[Recorder]:
    """The runs that have not come to their end."""
    return [run for run in runs if run.running]
