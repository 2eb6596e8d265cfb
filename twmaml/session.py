"""The host's side of a job: chunks of the compiled loop, and between them what is logged, evaluated and drawn."""

import importlib
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from twmaml.checkpoint import Checkpoint, Notes, pack, unpack
from twmaml.checkpoint import write as write_checkpoint
from twmaml.evaluation import Evaluation, EvaluationTasks, Example
from twmaml.priority_queue import PriorityQueue, visit_loss_correlation
from twmaml.runner import NO_FAILURE, Chunk, MetaLearner, RunState, over_runs, shard_runs
from twmaml.samplers import Sampler
from twmaml.statistics import summarize
from twmaml.tracking import MetricsFile, WandbRun, at_once, read_metrics, run_log, write_json
from twmaml.types import MetaParams, Step

if TYPE_CHECKING:
    from twmaml.figures import Drawn

# Levels of optimisation below the default 3: the programs are as fast, and compiled in three quarters of the time.
# That was measured on CPUs; other platforms keep their default.
_TRAINING, _QUICKLY = 2, 1

CORRELATION = "queue/visit_loss_correlation"


@dataclass(frozen=True)
class Plan:
    """How far a session goes, and after how many meta-steps it does what; None for never."""

    steps: int
    log_every: int
    evaluate_every: int
    figures_every: int | None
    save_every: int
    keep: int
    """Checkpoints that are kept."""

    def stops_at(self, step: int) -> bool:
        """Whether there is a row of metrics.csv at a step."""
        return self.next_stop(step - 1) == step

    def next_stop(self, step: int) -> int:
        """The next meta-step at which the host has something to do."""
        periods = [self.log_every, self.evaluate_every, self.figures_every]
        return min([(step // period + 1) * period for period in periods if period] + [self.steps])

    def evaluates_at(self, step: int) -> bool:
        """Whether the evaluation runs after so many meta-steps, however long the run is; at its end it does besides.

        Figures show it, so it runs where they are drawn.
        """
        return step % self.evaluate_every == 0 or self.draws_at(step)

    def saves_after(self, previous: int, step: int) -> bool:
        """Whether a checkpoint is due at a stop; they wait for one, because there is a row of metrics.csv."""
        return step // self.save_every > previous // self.save_every

    def draws_at(self, step: int) -> bool:
        """Whether figures are drawn there, however long the run is; at its end they are besides."""
        return self.figures_every is not None and step % self.figures_every == 0


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
        """Whether a loss stopped being finite."""
        return self.status not in ("running", "finished", "interrupted")


@dataclass(kw_only=True)
class Run(RunRecord):
    """The training of one seed as the host sees it: its folder, its files and how it stands."""

    seed: int
    title: str
    config: dict[str, Any]
    """Of the job."""
    metrics: MetricsFile
    wandb: WandbRun
    losses: np.ndarray = field(default_factory=lambda: np.zeros((0, 1)))
    first_unadapted_loss: float = math.nan
    figures: tuple[int, "Future[Drawn]"] | None = None
    """The figures being drawn, and of which step."""

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
        self.losses = checkpoint.arrays["losses"]

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
            run_log(self.folder).error(failure)
        self.wandb.log_figures(step, drawn.paths)


class DoesNotFitError(MemoryError):
    """So many runs in one program need more memory than there is."""


class Session:
    """Trains several runs as one program. What it runs is compiled before, so nothing compiles again later.

    Construction traces the programs, which keeps this thread busy, and leaves their compilation to others: there is
    time for something else until `wait_until_compiled`.

    Args:
        learner: what is trained.
        evaluation: what it is judged by.
        seeds: one run each.
        background: threads, which compile.
        drawing: draws figures; a pool of processes draws those of several runs side by side.
    """

    def __init__(
        self,
        learner: MetaLearner,
        evaluation: Evaluation,
        seeds: Sequence[int],
        background: Executor,
        drawing: Executor,
    ) -> None:
        self.evaluation = evaluation
        self._scale = np.array([axis.scale for axis in evaluation.grid.axes.values()], np.float32)
        self._background, self._drawing = background, drawing
        self._sharding = shard_runs(len(seeds), learner.task_devices)
        everywhere = NamedSharding(self._sharding.mesh, PartitionSpec())
        # Runs are padded to a multiple of the devices by repeating the last one, of which nobody hears.
        padding = [seeds[-1]] * (-len(seeds) % self._sharding.mesh.shape["runs"])
        self._seeds = np.array([*seeds, *padding], np.uint32)
        self._runs = len(seeds)
        init = over_runs(lambda seed, _: learner.init(seed), self._sharding).lower(self._seeds, None)
        train = over_runs(learner.train_chunk, self._sharding).lower(init.out_info, jnp.int32(0))
        training: Future[Any] = background.submit(_compile, train, _TRAINING)
        fix = jax.jit(evaluation.tasks, out_shardings=everywhere).lower()
        evaluate = over_runs(evaluation.losses, self._sharding).lower(init.out_info.meta_params, fix.out_info)
        others: Future[Any] = background.submit(
            lambda: [_compile(program, _QUICKLY) for program in (evaluate, init, fix)]
        )
        self._compiling = (training, others)
        nothing = np.zeros((evaluation.grid.size * evaluation.draws, evaluation.steps + 1))
        self.metric_names = [*train.out_info[1].metrics, CORRELATION, *summarize(nothing, evaluation.draws)]
        self._saving: Future[None] = background.submit(lambda: None)
        self._saved: int | None = None
        self.states: RunState
        self.fixed: EvaluationTasks

    def wait_until_compiled(self, memory: float) -> None:
        """Makes the session ready to train.

        Args:
            memory: bytes that the programs may take.

        Raises:
            DoesNotFitError: if several runs take more than that, as the compiler counts it; one is tried anyway.
        """
        training, others = self._compiling
        self._train = training.result()
        self._evaluate, init, fix = others.result()
        needed = max(_bytes_taken(program, self._sharding) for program in (self._train, self._evaluate))
        if needed > memory and self._runs > 1:
            raise DoesNotFitError(f"{self._runs} runs need {needed / 2**30:.2g} GiB of {memory / 2**30:.2g}")
        self.states, self.fixed = init(jax.device_put(self._seeds, self._sharding), None), fix()
        self._background.submit(importlib.import_module, "twmaml.figures")
        self._illustrate: Future[Any] = self._background.submit(self._compile_illustrate)
        self._seconds = 0.0
        self._began = time.perf_counter()

    def start(self, runs: Sequence[Run], checkpoints: Sequence[Checkpoint | None]) -> None:
        """Makes the runs, one for each seed in their order, what they were, or evaluates and logs their beginning.

        Args:
            runs: with their files.
            checkpoints: of each one, all of the same step; or none of any.

        Raises:
            CheckpointError: if a checkpoint is not of this program.
        """
        known = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
        if known:
            padded = [*known, *[known[-1]] * (len(self._seeds) - self._runs)]
            names = [name for name in pack(self.states) if all(name in each.arrays for each in padded)]
            stacked = {name: np.stack([each.arrays[name] for each in padded]) for name in names}
            self.states = jax.device_put(unpack(self.states, stacked), self._sharding)
            for run, checkpoint in zip(runs, known, strict=True):
                run.go_on_from(checkpoint)
            self._saved = known[0].notes.step
        else:
            self._log(runs, 0, self._judge(runs, 0))
            for run in runs:
                run.first_unadapted_loss = float(np.median(run.losses[:, 0]))

    def train(self, plan: Plan, runs: Sequence[Run], stopping: Sequence[Any], show: Callable[[str], None]) -> None:
        """The loop. Ends with the plan, when every run has failed, or after the chunk in which `stopping` fills.

        Args:
            plan: what happens when.
            runs: one for each seed, in their order; they have begun.
            stopping: ends the session once it is not empty.
            show: told what is being done after each chunk.
        """
        self._start = step = runs[0].step
        show("training")
        while step < plan.steps and not stopping:
            stop = plan.next_stop(step)
            began = time.perf_counter()
            states, chunk = self._train(self.states, jnp.int32(stop - step))
            chunk = jax.device_get(chunk)
            self._seconds += time.perf_counter() - began
            for i, run in enumerate(runs):
                if run.status == "running" and chunk.first_failure[i] != NO_FAILURE:
                    self._fail(run, i, step, int(chunk.first_failure[i]))
            if all(run.status != "running" for run in runs):
                break
            previous, self.states, step = step, states, stop
            rows = self._rows(chunk)[: len(runs)]
            if plan.evaluates_at(step):
                rows = [{**row, **statistics} for row, statistics in zip(rows, self._judge(runs, step), strict=True)]
            self._log(runs, step, rows)
            show("training")
            if plan.saves_after(previous, step) and step < plan.steps:
                self._save(runs, plan.keep)
            if plan.draws_at(step) and step < plan.steps:
                self._draw(runs)
        self._end(plan, runs, step, show)

    def _end(self, plan: Plan, runs: Sequence[Run], step: int, show: Callable[[str], None]) -> None:
        """Writes what a run leaves at its end, planned or not."""
        self._save(runs, plan.keep)
        if not plan.evaluates_at(step):  # the checkpoint has the row without it, as a longer run would
            for run, statistics in zip(runs, self._judge(runs, step), strict=True):
                if run.status == "running":
                    run.amend(statistics)
        show("drawing figures")
        self._draw(runs)
        self._saving.result()
        for run in runs:
            if run.status == "running":
                run.finish_figures()
                run.status = "finished" if step == plan.steps else "interrupted"
                if not np.isfinite(run.losses[:, 0]).any():  # the very last update broke the network
                    run.status = self._failure(run, step)
                self._close(run)

    def _log(self, runs: Sequence[Run], step: int, rows: Sequence[Mapping[str, float]]) -> None:
        for run, row in zip(runs, rows, strict=True):
            if run.status == "running":
                run.log(step, row)

    def _judge(self, runs: Sequence[Run], step: int) -> list[dict[str, float]]:
        """Evaluates; the statistics of every run that is running, none of the others."""
        losses = np.asarray(self._evaluate(self.states.meta_params, self.fixed))
        statistics: list[dict[str, float]] = [{} for _ in runs]
        for i, run in enumerate(runs):  # behind the last run there is padding
            if run.status == "running":
                run.losses = losses[i]
                self._save_evaluation(run, i, step)
                statistics[i] = summarize(run.losses, self.evaluation.draws)
        return statistics

    def _save(self, runs: Sequence[Run], keep: int) -> None:
        """Has checkpoints written beside the training, once the ones before are; those of a step only once."""
        self._saving.result()
        step = max(run.step for run in runs)
        if step == self._saved:
            return
        self._saved = step
        states = {name: np.asarray(leaf) for name, leaf in pack(self.states).items()}
        due = [
            (
                run.folder,
                Checkpoint(run.notes(), {n: np.asarray(s[i]) for n, s in states.items()} | {"losses": run.losses}),
            )
            for i, run in enumerate(runs)
            if run.status == "running"
        ]

        def write_all() -> None:
            for folder, checkpoint in due:
                write_checkpoint(folder, checkpoint, keep)

        self._saving = self._background.submit(write_all)

    def _save_evaluation(self, run: Run, index: int, step: int) -> None:
        """Writes `evaluation/<step>.npz`; the README says what is in it."""
        axes = self.evaluation.grid.axes.values()
        cells = np.asarray(self.fixed.cells)
        _save_arrays(
            run.folder / "evaluation" / f"{step}.npz",
            losses=run.losses,
            tasks=np.asarray(self.fixed.tasks) / self._scale,
            names=self.evaluation.grid.names,
            units=[axis.unit for axis in axes],
            shape=self.evaluation.grid.shape,
            low=[axis.low for axis in axes],
            high=[axis.high for axis in axes],
            queue_losses=np.asarray(self.states.queue.losses)[index, cells],
            visits=np.asarray(self.states.queue.visits)[index, cells],
        )

    def _rows(self, chunk: Chunk) -> list[dict[str, float]]:
        """What is logged of a chunk, for each run."""
        losses, visits = np.asarray(self.states.queue.losses), np.asarray(self.states.queue.visits)
        return [
            {name: float(values[i]) for name, values in chunk.metrics.items()}
            | {CORRELATION: visit_loss_correlation(losses[i], visits[i])}
            for i in range(len(losses))
        ]

    def _fail(self, run: Run, index: int, start: int, failure: int) -> None:
        """Ends a run whose loss is not finite in this chunk: goes again to just before that step, and keeps that."""
        healthy = self.states
        row = None
        if failure > start:
            self.states, chunk = self._train(healthy, jnp.int32(failure - start))
            row = self._rows(jax.device_get(chunk))[index]
        run.losses = np.asarray(self._evaluate(self.states.meta_params, self.fixed))[index]
        self._save_evaluation(run, index, failure)
        if row is None:  # the row of this step is written already
            run.latest |= summarize(run.losses, self.evaluation.draws)
        else:
            run.log(failure, {**row, **summarize(run.losses, self.evaluation.draws)})
        self._draw_one(run, index)
        run.finish_figures()
        run.status = self._failure(run, failure)
        self._close(run)
        self.states = healthy

    def _failure(self, run: Run, step: int) -> str:
        """The line that says why a run failed, which is logged too."""
        cause = _likely_cause(run, self.evaluation.learner.sampler)
        line = f"the loss of seed {run.seed} is not finite at meta-step {step}: {cause}"
        run_log(run.folder).info(line)
        return line

    def _draw(self, runs: Sequence[Run]) -> None:
        for i, run in enumerate(runs):
            if run.status == "running":
                self._draw_one(run, i)

    def _draw_one(self, run: Run, index: int) -> None:
        from twmaml.figures import FigureData, draw_all  # noqa: PLC0415  imported in the background by now

        run.finish_figures()
        shown = (self.states.meta_params, self.states.queue, self.states.step)
        meta_params, queue, step = jax.tree.map(lambda leaf: np.asarray(leaf)[index], shown)
        probabilities, examples = jax.device_get(self._illustrate.result()(meta_params, queue, step))
        if examples is not None:
            _save_arrays(
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
            grid=self.evaluation.learner.family.grid,
            evaluation_grid=self.evaluation.grid,
            draws=self.evaluation.draws,
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
            "meta_steps_per_second": round((run.step - self._start) / self._seconds, 1) if self._seconds > 0 else None,
            **run.latest,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "device": jax.devices()[0].device_kind,
        }
        write_json(run.folder / "summary.json", summary)
        run.metrics.close()
        run.wandb.finish(run.latest, exit_code=0 if finished else 1)

    def _compile_illustrate(self) -> Any:
        """What figures show of one run besides: the distribution over cells and the examples."""

        def illustrate(meta_params: MetaParams, queue: PriorityQueue, step: Step) -> tuple[jax.Array, Example | None]:
            p = self.evaluation.learner.sampler.probabilities(queue, step)
            return p, self.evaluation.examples(meta_params)

        states = jax.eval_shape(lambda: self.evaluation.learner.init(0))
        return _compile(jax.jit(illustrate).lower(states.meta_params, states.queue, states.step), _QUICKLY)


def _compile(program: Any, level: int) -> Any:
    return program.compile({"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" else None)


def _bytes_taken(program: Any, sharding: NamedSharding) -> float:
    """Memory that a compiled program takes while it runs, on one device, or on all those that share the host's."""
    size = program.memory_analysis()
    of_device = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
    return of_device * (sharding.mesh.size if jax.default_backend() == "cpu" else 1)


def _save_arrays(path: Path, **arrays: Any) -> None:
    """Writes a file that `numpy.load` reads, at once or not at all."""
    with at_once(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _likely_cause(run: Run, sampler: Sampler) -> str:
    """What a user should look at first."""
    largest = run.latest.get("weights/max", 1.0)
    if largest > 100:
        remedy = "raise sampler.uniform_fraction" if hasattr(sampler, "uniform_fraction") else "bound them"
        return f"importance weights reached {largest:.3g}; {remedy}"
    if not np.median(run.losses[:, 0]) < 100 * run.first_unadapted_loss:
        return "the meta-update made the network explode; lower optimizer.learning_rate"
    return "adapting to a task diverges; lower adaptation.learning_rate or adaptation.steps"
