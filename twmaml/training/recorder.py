"""One run on the host: rows, evaluations, figures, checkpoints, summary."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

import jax
import numpy as np

from twmaml.errors import explain
from twmaml.meta_learning.chunk import Chunk
from twmaml.meta_learning.evaluation import Judgement
from twmaml.meta_learning.learner import RunState
from twmaml.statistics import VALIDATION
from twmaml.storage import pictures_file, summary
from twmaml.storage.checkpoint import Checkpoint, Notes, prune
from twmaml.storage.checkpoint import write as write_checkpoint
from twmaml.storage.evaluation_file import path_of
from twmaml.storage.evaluation_file import write as write_evaluation
from twmaml.storage.files import run_log
from twmaml.storage.metrics_file import MetricsFile, read_metrics
from twmaml.storage.run_folder import cut_back
from twmaml.storage.validation import Validation
from twmaml.storage.wandb_run import WandbRun
from twmaml.training.diagnosis import Standing
from twmaml.training.programs import Programs
from twmaml.training.results import (
    Results,
    columns_of,
    pack_results,
    records_of,
    summarize_splits,
    unpack_results,
)
from twmaml.training.rows import columns_of_chunks, row_of, spent
from twmaml.training.runs import RunResult, RunSpec, Shared
from twmaml.training.showing import figure_data

if TYPE_CHECKING:
    from twmaml.figures.run import Drawn


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
        self._programs, self._shared = programs, shared
        self._wandb = wandb
        metrics = self.folder / "metrics.csv"
        columns = [*columns_of_chunks(programs, spec.sampler), *columns_of(shared.parts.evaluations)]
        self.result = RunResult(
            folder=self.folder, wandb_mode=wandb.mode, wandb_url=wandb.url, wandb_group_url=wandb.group_url
        )
        self._results: Results = {}
        self.first_unadapted_loss = math.nan
        self._validation = Validation(
            shared.parts.evaluations[VALIDATION].metrics if VALIDATION in shared.parts.evaluations else ()
        )
        if checkpoint is None:
            metrics.unlink(missing_ok=True)
            self._metrics = MetricsFile(metrics, columns)
        else:
            self._metrics = MetricsFile(metrics, columns, checkpoint.notes.mark)
            self.result.step, self.result.latest = checkpoint.notes.step, dict(checkpoint.notes.latest)
            self._results = unpack_results(checkpoint.arrays)
            self.first_unadapted_loss = checkpoint.notes.first_unadapted_loss
            self._validation = self._validation.after_all(read_metrics(metrics))
        cut_back(self.folder, shared.plan.evaluates_at, checkpoint)
        prune(self.folder, shared.plan.keep, self._validation.best)  # which a kill may have kept from its end
        for split in shared.parts.evaluations:
            path_of(self.folder, 0, split).parent.mkdir(exist_ok=True)
        self._first, self._began = self.result.step, time.perf_counter()
        self._saved = -1 if checkpoint is None else checkpoint.notes.step
        self._saving: Future[None] | None = None
        self._figures: tuple[int, Future[Drawn]] | None = None

    @property
    def running(self) -> bool:
        """Whether it has not come to its end, whichever that is."""
        return self.result.status == "running"

    @property
    def at_end(self) -> bool:
        """Whether it stands where the plan ends it."""
        return self._shared.plan.ends_at(self.result.step, self._validation.since_best)

    @property
    def at_best(self) -> bool:
        """Whether it stands at its best evaluation on the split `validation`."""
        return self._validation.best() == self.result.step

    @property
    def standing(self) -> Standing:
        """Whatever tells why it failed."""
        return Standing(self.spec.seed, self.spec.sampler, self.losses, self.first_unadapted_loss, self.result.latest)

    @property
    def losses(self) -> np.ndarray:
        """Scores of the split `eval`, [tasks, inner steps + 1]."""
        return self._results["eval"]["loss"]

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

    def row(self, step: int, chunk: Chunk) -> dict[str, float]:
        """The row that a chunk leaves which begins at the last row and ends at a step."""
        trained = int(chunk.tasks_trained[self.index])
        return {**self.spent(step, trained), **row_of(chunk, self.index, self._metrics.columns)}

    def spent(self, step: int, trained: int) -> dict[str, float]:
        """The tasks that are paid for at a step, if so many were trained on since the last row."""
        return spent(step, self._shared.parts.learner.meta_batch, trained, self.result.latest)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one row to metrics.csv and to W&B."""
        self.result.step = step
        self.result.latest |= metrics
        self._metrics.write(step, metrics)
        self._validation = self._validation.after(self._metrics.last)
        self._wandb.log(step, metrics)

    def amend(self, metrics: Mapping[str, float]) -> None:
        """Adds to the row that was written last."""
        self.result.latest |= metrics
        self._metrics.amend(metrics)
        self._validation = self._validation.after(self._metrics.last)
        self._wandb.log(self.result.step, metrics)

    def judge(self, step: int, judged: Mapping[str, Judgement]) -> dict[str, float]:
        """Saves an evaluation; its statistics.

        Args:
            step: of the evaluation.
            judged: of all runs, by split.
        """
        own = jax.tree.map(lambda values: values[self.index], dict(judged))
        self._results = {split: jax.tree.map(np.asarray, each.results) for split, each in own.items()}
        for split, record in records_of(own, self._shared.parts.evaluations, self._programs.tasks).items():
            write_evaluation(path_of(self.folder, step, split), record)
        return summarize_splits(self._results, self._shared.parts.evaluations)

    def save(self, leaves: Mapping[str, np.ndarray], writing: Executor) -> None:
        """Has a checkpoint written from the leaves of its state, once the one before is; each step only once."""
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
            self._shared.parts.fingerprint,
        )
        checkpoint = Checkpoint(notes, {**leaves, **pack_results(self._results)})
        keep, best = self._shared.plan.keep, self._validation.best
        self._saving = writing.submit(write_checkpoint, self.folder, checkpoint, keep, best)

    def finish_saving(self) -> None:
        """Waits for the checkpoint that is being written; raises the error if it cannot be."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def draw(self, states: RunState, drawing: Executor) -> None:
        """Has the figures drawn beside the training, once those before are."""
        from twmaml.figures.run import draw_all  # noqa: PLC0415  imported in the background by now

        self.finish_figures()
        title, history = f"{self.spec.title}, meta-step {self.result.step:,}", read_metrics(self.folder / "metrics.csv")
        shown, parts = self._programs.illustrate(states, self.index), self._shared.parts
        data = figure_data(title, parts, self.spec.sampler, shown, self._results, history)
        if data.pictures is not None:
            pictures_file.write(self.folder, data.pictures)
        drawing_all = drawing.submit(draw_all, data, self.folder / "figures", self._shared.parts.figures)
        self._figures = (self.result.step, drawing_all)

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
        result.status, result.best_step = status, self._validation.best(self._saved)
        if result.failed:
            run_log(self.folder).info(status)
        early = status == summary.FINISHED and result.step < self._shared.plan.steps
        ended = summary.Summary(
            status=f"failed: {status}" if result.failed else status,
            seed=self.spec.seed,
            step=result.step,
            wall_seconds=round(time.perf_counter() - self._began, 3),
            runs_at_once=runs_at_once,
            meta_steps_per_second=round((result.step - self._first) / seconds, 1) if seconds > 0 else None,
            metrics=result.latest,
            device=jax.devices()[0].device_kind,
            protocols={name: evaluation.protocol for name, evaluation in self._shared.parts.evaluations.items()},
            best_step=result.best_step,
            stopped_early=self._validation.since_best if early else None,
        )
        summary.write(self.folder, ended)
        self._metrics.close()
        self._wandb.finish(result.latest, exit_code=0 if status == "finished" else 1)


def running(runs: Sequence[Recorder]) -> list[Recorder]:
    """The runs that have not come to their end."""
    return [run for run in runs if run.running]
