"""The host's side of training: chunks of the compiled loop, and between them what is logged, evaluated and drawn."""

import importlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from importlib.metadata import version
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
from twmaml.storage.checkpoint import Checkpoint, pack
from twmaml.storage.checkpoint import write as write_checkpoint
from twmaml.storage.files import run_log, write_arrays, write_json
from twmaml.storage.metrics_file import read_metrics
from twmaml.training.diagnosis import describe_failure
from twmaml.training.plan import Plan
from twmaml.training.programs import Programs
from twmaml.training.recorder import Run

_CORRELATION = "queue/visit_loss_correlation"


def metric_names(programs: Programs, evaluation: Evaluation, sampler: Sampler) -> list[str]:
    """The columns of the metrics.csv of a run."""
    of_chunk = programs.metric_names(sampler)
    nothing = np.zeros((evaluation.grid.size * evaluation.draws, evaluation.steps + 1))
    return [*of_chunk, _CORRELATION, *summarize(nothing, evaluation.draws)]


class Session:
    """Trains several runs with the same programs.

    Args:
        programs: compiled.
        evaluation: what the runs are judged by.
        runs: in the order of the programs' seeds.
        plan: how far they go, and what happens when.
        background: threads, which write checkpoints.
        drawing: draws figures; a pool of processes draws those of several runs side by side.
    """

    def __init__(
        self,
        programs: Programs,
        evaluation: Evaluation,
        runs: Sequence[Run],
        plan: Plan,
        background: Executor,
        drawing: Executor,
    ) -> None:
        self._programs, self._evaluation = programs, evaluation
        self._runs, self._plan = runs, plan
        self._scale = np.array([axis.scale for axis in evaluation.grid.axes.values()], np.float32)
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
        losses = self._programs.evaluate(self._states)
        statistics: list[dict[str, float]] = [{} for _ in self._runs]
        for i in self._running():
            with self._alone(i) as run:
                run.losses = losses[i]
                self._save_evaluation(i, step)
                statistics[i] = summarize(losses[i], self._evaluation.draws)
        return statistics

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
        losses = self._programs.evaluate(self._states)
        for i in indices:
            with self._alone(i) as run:
                run.losses = losses[i]
                self._save_evaluation(i, failure)
                statistics = summarize(run.losses, self._evaluation.draws)
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
        states = {name: np.asarray(leaf) for name, leaf in pack(self._states).items()}
        due = []
        for i in self._running():
            run = self._runs[i]
            arrays = {name: np.asarray(rows[i]) for name, rows in states.items()} | {"losses": run.losses}
            due.append((i, Checkpoint(run.notes(), arrays)))

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

    def _save_evaluation(self, index: int, step: int) -> None:
        """Writes `evaluation/<step>.npz`; the README says what is in it."""
        run, grid, queue = self._runs[index], self._evaluation.grid, self._states.queue
        axes = grid.axes.values()
        cells = np.asarray(self._programs.tasks.cells)
        write_arrays(
            run.folder / "evaluation" / f"{step}.npz",
            losses=run.losses,
            tasks=np.asarray(self._programs.tasks.tasks) / self._scale,
            names=grid.names,
            units=[axis.unit for axis in axes],
            shape=grid.shape,
            low=[axis.low for axis in axes],
            high=[axis.high for axis in axes],
            queue_losses=np.asarray(queue.losses)[index, cells],
            visits=np.asarray(queue.visits)[index, cells],
        )

    def _draw(self, indices: Sequence[int]) -> None:
        """Has the figures of runs drawn beside the training."""
        for i in indices:
            with self._alone(i) as run:
                self._draw_one(run, i)

    def _draw_one(self, run: Run, index: int) -> None:
        from twmaml.figures.run import FigureData, draw_all  # noqa: PLC0415  imported in the background by now

        run.finish_figures()
        queue, probabilities, examples = self._programs.illustrate(self._states, index)
        if examples is not None:
            write_arrays(
                run.folder / "examples.npz",
                tasks=examples.task / self._scale,
                x=examples.x,
                targets=examples.target,
                predictions=examples.predictions,
                support_inputs=examples.support.inputs,
                support_targets=examples.support.targets,
            )
        data = FigureData(
            title=f"{run.title}, meta-step {run.step:,}",
            grid=self._evaluation.learner.family.grid,
            evaluation_grid=self._evaluation.grid,
            draws=self._evaluation.draws,
            queue=queue,
            probabilities=probabilities,
            examples=examples,
            losses=run.losses,
            metrics=read_metrics(run.folder / "metrics.csv"),
        )
        run.figures = (run.step, self._drawing.submit(draw_all, data, run.folder / "figures"))

    def _close(self, run: Run) -> None:
        """Writes summary.json and ends the W&B run."""
        finished = run.status == "finished"
        packages = ("twmaml", "jax", "jaxlib", "optax", "numpy", "hydra-core", "wandb")
        summary = {
            "status": f"failed: {run.status}" if run.failed else run.status,
            "seed": run.seed,
            "step": run.step,
            "wall_seconds": round(time.perf_counter() - self._began, 3),
            "runs_at_once": len(self._runs),
            "meta_steps_per_second": round((run.step - self._start) / self._seconds, 1) if self._seconds > 0 else None,
            **run.latest,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "device": jax.devices()[0].device_kind,
        }
        write_json(run.folder / "summary.json", summary)
        run.metrics.close()
        run.wandb.finish(run.latest, exit_code=0 if finished else 1)
