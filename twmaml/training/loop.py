"""The host's side of training: chunks of the compiled loop, and between them what is logged, evaluated and drawn."""

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from twmaml.errors import explain
from twmaml.meta_learning.chunk import NO_FAILURE, Chunk
from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.learner import RunState
from twmaml.samplers.base import Sampler
from twmaml.space.priority_queue import visit_loss_correlation
from twmaml.statistics import summarize
from twmaml.storage import evaluation_file, pictures_file, summary
from twmaml.storage.checkpoint import Checkpoint
from twmaml.storage.checkpoint import write as write_checkpoint
from twmaml.storage.files import run_log
from twmaml.storage.metrics_file import read_metrics
from twmaml.training.diagnosis import describe_failure
from twmaml.training.plan import Plan
from twmaml.training.programs import Programs
from twmaml.training.recorder import Results, Run, pack_results

_CORRELATION = "queue/visit_loss_correlation"


def metric_names(programs: Programs, evaluations: Mapping[str, Evaluation], sampler: Sampler) -> list[str]:
    """The columns of the metrics.csv of a run."""
    nothing = {
        name: {
            metric: np.zeros((e.grid.size * e.draws, e.steps + 1)) for metric in ("loss", *(m.key for m in e.metrics))
        }
        for name, e in evaluations.items()
    }
    return [*programs.metric_names(sampler), _CORRELATION, *summarize_splits(nothing, evaluations)]


def summarize_splits(results: Results, evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """The figures of all splits by metric name."""
    figures = [summarize(results[name], e.metrics, e.draws, name) for name, e in evaluations.items()]
    return {name: value for of_split in figures for name, value in of_split.items()}


class Session:
    """Trains several runs with the same programs.

    Args:
        programs: compiled.
        evaluations: judge the runs, by the name of the split.
        figures: of the user's own, by name.
        runs: in the order of the programs' seeds.
        plan: how far they go, and what happens when.
        background: threads, which write checkpoints.
        drawing: draws figures; a pool of processes draws those of several runs side by side.
    """

    def __init__(
        self,
        programs: Programs,
        evaluations: Mapping[str, Evaluation],
        figures: Mapping[str, Any],
        runs: Sequence[Run],
        plan: Plan,
        background: Executor,
        drawing: Executor,
    ) -> None:
        self._programs, self._evaluations, self._figures = programs, evaluations, figures
        self._runs, self._plan = runs, plan
        self._background, self._drawing = background, drawing
        background.submit(importlib.import_module, "twmaml.figures.run")
        self._saving: Future[list[tuple[int, Exception]]] = background.submit(list)
        self._saved: int | None = None
        self._states: RunState
        self._seconds = 0.0
        self._began = time.perf_counter()

    def start(self, checkpoints: Sequence[Checkpoint | None]) -> None:
        """Makes the runs what they were, or evaluates and logs their beginning.

        Args:
            checkpoints: of each run, all of the same step; or none of any.

        Raises:
            CheckpointError: if a checkpoint is not of these programs.
        """
        known = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
        if known:
            self._states = self._programs.restore([checkpoint.arrays for checkpoint in known])
            for run, checkpoint in zip(self._runs, known, strict=True):
                run.go_on_from(checkpoint)
            self._saved = known[0].notes.step
        else:
            self._states = self._programs.begin()
            self._log(0, self._judge(0))
            for run in self._runs:
                run.first_unadapted_loss = float(np.median(run.losses[:, 0]))

    def train(self, stopping: Sequence[Any], show: Callable[[str], None]) -> None:
        """The loop. Ends with the plan, when every run has failed, or after the chunk in which `stopping` fills.

        Args:
            stopping: ends the session once it is not empty.
            show: told what is being done after each chunk.
        """
        plan = self._plan
        self._start = step = self._runs[0].step
        show("training")
        self._fail_where_due(step, self._programs.advance(self._states, 0)[1])  # a sampler may be wrong at once
        while step < plan.steps and not stopping and self._running():
            stop = plan.next_stop(step)
            began = time.perf_counter()
            states, chunk = self._programs.advance(self._states, stop - step)
            self._seconds += time.perf_counter() - began
            self._fail_where_due(step, chunk)
            if not self._running():
                break
            previous, self._states, step = step, states, stop
            rows = self._rows(chunk)
            if plan.evaluates_at(step):
                rows = [{**row, **statistics} for row, statistics in zip(rows, self._judge(step), strict=True)]
            self._log(step, rows)
            show("training")
            if plan.saves_after(previous, step) and step < plan.steps:
                self._save()
            if plan.draws_at(step) and step < plan.steps:
                self._draw(self._running())
        self._end(step, show)

    def _end(self, step: int, show: Callable[[str], None]) -> None:
        """Writes what a run leaves at its end, planned or not."""
        self._save()
        if not self._plan.evaluates_at(step):  # the checkpoint has the row without it, as a longer run would
            statistics = self._judge(step)
            for i in self._running():
                with self._alone(i) as run:
                    run.amend(statistics[i])
        show("drawing")
        self._draw(self._running())
        self._finish_saving()
        for i in self._running():
            with self._alone(i) as run:
                run.finish_figures()
                run.status = "finished" if step == self._plan.steps else "interrupted"
                if not np.isfinite(run.losses[:, 0]).any():  # the very last update broke the network
                    run.status = describe_failure(run, step)
                self._close(run)

    @contextmanager
    def _alone(self, index: int) -> Iterator[Run]:
        """One of the runs, to do something that may fail, on a full disk say. Then it ends; the others go on."""
        run = self._runs[index]
        try:
            yield run
        except Exception as error:
            reason = explain(error)
            if reason is None:  # a fault in the program
                raise
            run.status = reason
            run_log(run.folder).info(reason)
            run.metrics.close()
            run.wandb.finish(run.latest, exit_code=1)

    def _running(self) -> list[int]:
        return [i for i, run in enumerate(self._runs) if run.status == "running"]

    def _log(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        for i in self._running():
            with self._alone(i) as run:
                run.log(step, rows[i])

    def _judge(self, step: int) -> list[dict[str, float]]:
        """Evaluates; the statistics of every run that is running, none of the others."""
        results = self._programs.evaluate(self._states)
        statistics: list[dict[str, float]] = [{} for _ in self._runs]
        for i in self._running():
            with self._alone(i) as run:
                self._keep_results(i, step, results)
                statistics[i] = summarize_splits(run.results, self._evaluations)
        return statistics

    def _keep_results(self, index: int, step: int, results: Results) -> None:
        """Takes a run's part of the results, and writes its files."""
        run, queue = self._runs[index], self._states.queue
        run.results = jax.tree.map(lambda values: values[index], results)
        for name, evaluation in self._evaluations.items():
            fixed = self._programs.tasks[name]
            cells = None if fixed.cells is None else np.asarray(fixed.cells)
            record = evaluation_file.EvaluationRecord(
                grid=evaluation.grid,
                metrics=evaluation.metrics,
                values=run.results[name],
                tasks=np.asarray(fixed.tasks) / evaluation.grid.scale,
                queue_losses=None if cells is None else np.asarray(queue.losses)[index, cells],
                visits=None if cells is None else np.asarray(queue.visits)[index, cells],
            )
            evaluation_file.write(evaluation_file.path_of(run.folder, step, name), record)

    def _rows(self, chunk: Chunk) -> list[dict[str, float]]:
        """What is logged of a chunk, for each run."""
        losses, visits = np.asarray(self._states.queue.losses), np.asarray(self._states.queue.visits)
        return [
            {name: float(values[i]) for name, values in chunk.metrics.items() if name in run.metrics.columns}
            | {_CORRELATION: visit_loss_correlation(losses[i], visits[i])}
            for i, run in enumerate(self._runs)
        ]

    def _fail_where_due(self, start: int, chunk: Chunk) -> None:
        """Ends the runs that have failed in a chunk."""
        failing: dict[int, list[int]] = {}
        for i in self._running():
            if chunk.first_failure[i] != NO_FAILURE:
                failing.setdefault(int(chunk.first_failure[i]), []).append(i)
        for failure, indices in failing.items():
            self._fail(indices, start, failure)

    def _fail(self, indices: Sequence[int], start: int, failure: int) -> None:
        """Ends runs whose loss is not finite at a step of this chunk: goes again to just before it, and keeps that."""
        healthy, rows = self._states, None
        if failure > start:
            self._states, chunk = self._programs.advance(healthy, failure - start)
            rows = self._rows(chunk)
        results = self._programs.evaluate(self._states)
        for i in indices:
            with self._alone(i) as run:
                self._keep_results(i, failure, results)
                statistics = summarize_splits(run.results, self._evaluations)
                if rows is None:  # the row of this step is written already
                    run.latest |= statistics
                else:
                    run.log(failure, {**rows[i], **statistics})
        self._draw([i for i in self._running() if i in indices])
        for i in [i for i in self._running() if i in indices]:
            with self._alone(i) as run:
                run.finish_figures()
                _, probabilities, _ = self._programs.illustrate(self._states, i)
                run.status = describe_failure(run, failure, probabilities)
                self._close(run)
        self._states = healthy

    def _save(self) -> None:
        """Has checkpoints written beside the training, once the ones before are; those of a step only once."""
        self._finish_saving()
        step = max(run.step for run in self._runs)
        if step == self._saved:
            return
        self._saved = step
        states = self._programs.save(self._states)
        running = [(i, self._runs[i]) for i in self._running()]
        due = [(i, Checkpoint(run.notes(), {**states[i], **pack_results(run.results)})) for i, run in running]

        def write_all() -> list[tuple[int, Exception]]:
            failed = []
            for i, checkpoint in due:
                try:
                    write_checkpoint(self._runs[i].folder, checkpoint, self._plan.keep)
                except Exception as error:  # which ends the run, but not here
                    failed.append((i, error))
            return failed

        self._saving = self._background.submit(write_all)

    def _finish_saving(self) -> None:
        """Waits for the checkpoints that are being written, and ends the runs whose cannot be."""
        for i, error in self._saving.result():
            if self._runs[i].status == "running":
                with self._alone(i):
                    raise error

    def _draw(self, indices: Sequence[int]) -> None:
        """Has the figures of runs drawn beside the training."""
        for i in indices:
            with self._alone(i) as run:
                self._draw_one(run, i)

    def _draw_one(self, run: Run, index: int) -> None:
        from twmaml.figures.run import FigureData, draw_all  # noqa: PLC0415  imported in the background by now

        run.finish_figures()
        queue, probabilities, drawn = self._programs.illustrate(self._states, index)
        evaluation = self._evaluations["eval"]
        pictures = None
        if drawn:
            pictures = pictures_file.Pictures(drawn.pop("tasks") / evaluation.grid.scale, drawn)
            pictures_file.write(run.folder, pictures)
        data = FigureData(
            title=f"{run.title}, meta-step {run.step:,}",
            grid=self._programs.queue_grid,
            evaluation_grid=evaluation.grid,
            draws=evaluation.draws,
            queue=queue,
            probabilities=probabilities,
            metrics=evaluation.metrics,
            values=run.results["eval"],
            history=read_metrics(run.folder / "metrics.csv"),
            pictures=pictures,
            draw_picture=evaluation.learner.family.draw_picture,
        )
        run.figures = (run.step, self._drawing.submit(draw_all, data, run.folder / "figures", self._figures))

    def _close(self, run: Run) -> None:
        """Writes summary.json and ends the W&B run."""
        trained = run.step - self._start
        end = summary.Summary(
            status=f"failed: {run.status}" if run.failed else run.status,
            seed=run.seed,
            step=run.step,
            wall_seconds=round(time.perf_counter() - self._began, 3),
            runs_at_once=len(self._runs),
            meta_steps_per_second=round(trained / self._seconds, 1) if self._seconds > 0 else None,
            metrics=run.latest,
            device=jax.devices()[0].device_kind,
        )
        summary.write(run.folder, end)
        run.metrics.close()
        run.wandb.finish(run.latest, exit_code=0 if run.status == "finished" else 1)
