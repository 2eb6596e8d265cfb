"""Meta-trains one configuration: `python -m twmaml.train sampler=importance_delta task=sin3d`."""

import importlib
import logging
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration import (
    ConfigurationError,
    Job,
    Settings,
    build_job,
    configuration_folder,
    explain,
    help_text,
)
from twmaml.evaluation import TAILS, EvaluationTasks, Example
from twmaml.grid import ParameterGrid
from twmaml.priority_queue import visit_loss_correlation
from twmaml.runner import NO_FAILURE, Chunk, RunState, over_runs, stack_runs, take_run
from twmaml.terminal import Terminal
from twmaml.tracking import MetricsFile, WandbRun, read_metrics, write_json

log = logging.getLogger(__name__)

CORRELATION = "queue/visit_loss_correlation"


class TrainingFailedError(Exception):
    """A loss stopped being finite; the message is one line that names the meta-step and the likely cause."""


@dataclass
class Run:
    """The host side of the training of one seed: its folder, its files and how it stands."""

    seed: int
    title: str
    folder: Path
    metrics: MetricsFile
    wandb: WandbRun
    latest: dict[str, float] = field(default_factory=dict)
    losses: np.ndarray | None = None
    first_unadapted_loss: float = math.nan
    step: int = 0
    status: str = "running"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one row to metrics.csv and to W&B."""
        self.step = step
        self.latest |= metrics
        self.metrics.write(step, metrics)
        self.wandb.log(step, metrics)


@dataclass(frozen=True)
class Programs:
    """The compiled programs of a job, over its runs. Being compiled already, they can't compile again."""

    train: Any
    evaluate: Any
    illustrate: Future[Any]
    """What figures show besides: of one run's state the distribution over cells and the examples. Not needed
    before training ends, so compiled while it goes on."""


def run_job(cfg: DictConfig) -> float:
    """Trains what a configuration describes and leaves its files in Hydra's output folder.

    Returns:
        `eval/loss` at the end, its mean over the seeds.

    Raises:
        ConfigurationError: before anything is compiled.
        TrainingFailedError: if a loss stopped being finite; everything up to there is on disk.
    """
    job = build_job(cfg)
    settings = job.settings
    folder = Path(HydraConfig.get().runtime.output_dir)
    folders = [folder] if isinstance(settings.seed, int) else [folder / f"seed_{seed}" for seed in settings.seeds]
    for run_folder in folders:
        if (run_folder / "metrics.csv").exists():
            raise ConfigurationError(f"hydra.run.dir={run_folder}: already holds a run; choose another folder")
        for name in ("evaluation", "figures"):
            (run_folder / name).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stopping = stack.enter_context(_stop_on_interrupt())
        terminal = stack.enter_context(Terminal(settings.steps))
        terminal.start(*_describe(job, folder))
        states = jax.jit(lambda: stack_runs([job.learner.init(seed) for seed in settings.seeds]))()
        fixed = jax.jit(job.evaluation.tasks)()
        pool = stack.enter_context(ThreadPoolExecutor())  # W&B, the compilers and matplotlib start side by side
        trackers = [pool.submit(_open_run, cfg, job, *pair) for pair in zip(settings.seeds, folders, strict=True)]
        programs = _compile(job, states, fixed, pool)
        pool.submit(importlib.import_module, "twmaml.figures")
        runs = [tracker.result() for tracker in trackers]
        for run in runs:
            if run.wandb.mode == "offline":
                terminal.say(f"W&B is offline here; to upload the run: {run.wandb.where}")
        _train(job, programs, states, fixed, runs, terminal, stopping)
    if stopping:
        terminal.say(f"interrupted after {runs[0].step:,} of {settings.steps:,} meta-steps")
    terminal.finish(_closing_table(job, runs), _closing_paths(folder, runs))
    failed = [run for run in runs if run.status.startswith("failed")]
    if failed:
        raise TrainingFailedError("; ".join(run.status for run in failed))
    if stopping:
        raise KeyboardInterrupt
    return float(np.mean([run.latest["eval/loss"] for run in runs]))


def _train(
    job: Job,
    programs: Programs,
    states: RunState,
    fixed: EvaluationTasks,
    runs: Sequence[Run],
    terminal: Terminal,
    stopping: Sequence[int],
) -> None:
    """The loop: chunks of meta-steps, each ending where something is logged, evaluated or drawn."""
    settings = job.settings
    _evaluate(job, programs, states, fixed, runs, 0, {})
    for run in runs:
        run.first_unadapted_loss = run.latest["eval/loss_step_0"]
    terminal.update(0, _mean_metrics(runs))
    step, began, seconds = 0, time.perf_counter(), 0.0
    while step < settings.steps and not stopping and any(run.status == "running" for run in runs):
        stop = _next_stop(step, settings)
        chunk_began = time.perf_counter()
        new_states, chunk = programs.train(states, jnp.int32(stop - step))
        chunk = jax.device_get(chunk)
        seconds += time.perf_counter() - chunk_began
        for i, run in enumerate(runs):
            if run.status == "running" and chunk.first_failure[i] != NO_FAILURE:
                _fail(job, programs, states, chunk, fixed, run, i)
        if not any(run.status == "running" for run in runs):
            break
        states, step = new_states, stop
        metrics = {i: _row(chunk, states, i) for i in range(len(runs))}
        if step % settings.evaluation.every == 0 or step == settings.steps or stopping:
            _evaluate(job, programs, states, fixed, runs, step, metrics)
        else:
            for i, run in enumerate(runs):
                if run.status == "running":
                    run.log(step, metrics[i])
        terminal.update(step, _mean_metrics(runs))
        if settings.figures_every and step % settings.figures_every == 0 and step < settings.steps:
            for i, run in enumerate(runs):
                if run.status == "running":
                    _draw(job, programs, take_run(states, i), run)
    terminal.stage("drawing figures")
    for i, run in enumerate(runs):
        if run.status == "running":
            run.status = "interrupted" if step < settings.steps else "finished"
            _close(job, programs, take_run(states, i), run, seconds, time.perf_counter() - began)


def _row(chunk: Chunk, states: RunState, run: int) -> dict[str, float]:
    """What is logged of a chunk for one of its runs."""
    losses, visits = np.asarray(states.queue.losses[run]), np.asarray(states.queue.visits[run])
    metrics = {name: float(values[run]) for name, values in chunk.metrics.items()}
    return {**metrics, CORRELATION: visit_loss_correlation(losses, visits)}


def _next_stop(step: int, settings: Settings) -> int:
    """The next meta-step at which the host has something to do."""
    periods = [settings.log_every, settings.evaluation.every, settings.figures_every]
    return min([(step // period + 1) * period for period in periods if period] + [settings.steps])


def _evaluate(
    job: Job,
    programs: Programs,
    states: RunState,
    fixed: EvaluationTasks,
    runs: Sequence[Run],
    step: int,
    metrics: Mapping[int, Mapping[str, float]],
) -> None:
    """Evaluates every run and writes its row, together with what is logged anyway."""
    losses = np.asarray(programs.evaluate(states.meta_params, fixed))
    for i, run in enumerate(runs):
        if run.status == "running":
            run.losses = losses[i]
            _save_evaluation(run.folder, step, losses[i], np.asarray(fixed.tasks), job.evaluation.grid)
            run.log(step, {**metrics.get(i, {}), **job.evaluation.summarize(losses[i])})


def _save_evaluation(folder: Path, step: int, losses: np.ndarray, tasks: np.ndarray, grid: ParameterGrid) -> None:
    """`evaluation/<step>.npz`: losses [tasks, inner steps + 1] and task parameters in their configured units."""
    scale = np.array([axis.scale for axis in grid.axes.values()], np.float32)
    units = [axis.unit for axis in grid.axes.values()]
    partial = folder / "evaluation" / f".{step}.npz"
    np.savez(partial, losses=losses, tasks=tasks / scale, names=grid.names, units=units, shape=grid.shape)
    partial.rename(folder / "evaluation" / f"{step}.npz")


def _fail(
    job: Job, programs: Programs, states: RunState, chunk: Chunk, fixed: EvaluationTasks, run: Run, index: int
) -> None:
    """Ends a run whose loss is not finite in this chunk: goes again to just before that step, and keeps that."""
    failure = int(chunk.first_failure[index])
    start = int(states.step[index])
    if failure > start:
        states, chunk = programs.train(states, jnp.int32(failure - start))
        metrics = _row(jax.device_get(chunk), states, index)
        losses = np.asarray(programs.evaluate(states.meta_params, fixed))[index]
        run.losses = losses
        _save_evaluation(run.folder, failure, losses, np.asarray(fixed.tasks), job.evaluation.grid)
        run.log(failure, {**metrics, **job.evaluation.summarize(losses)})
    run.status = f"failed: the loss of seed {run.seed} is not finite at meta-step {failure}: {_likely_cause(run)}"
    log.error(run.status)
    _close(job, programs, take_run(states, index), run, math.nan, math.nan)


def _likely_cause(run: Run) -> str:
    """What a user should look at first."""
    largest = run.latest.get("weights/max", 1.0)
    if largest > 100:
        return (
            f"importance weights reached {largest:.3g}, which a larger sampler.uniform_fraction bounds "
            "(weights are at most one over it)"
        )
    before, after = run.first_unadapted_loss, run.latest.get("eval/loss_step_0", math.nan)
    if not after < 100 * before:
        return "the meta-update made the network explode; lower optimizer.learning_rate"
    return "adapting to a task diverges; lower adaptation.learning_rate, or adaptation.steps"


def _draw(job: Job, programs: Programs, state: RunState, run: Run) -> None:
    """Draws the figures of a run and sends them to W&B."""
    from twmaml.figures import FigureData, draw_all  # noqa: PLC0415  matplotlib is imported while programs compile

    probabilities, examples = jax.device_get(programs.illustrate.result()(state))
    data = FigureData(
        title=f"{run.title}, meta-step {run.step:,}",
        evaluation=job.evaluation,
        queue=jax.device_get(state.queue),
        probabilities=probabilities,
        examples=examples,
        losses=run.losses if run.losses is not None else np.zeros((0, job.evaluation.steps + 1)),
        metrics=read_metrics(run.folder / "metrics.csv"),
    )
    figures = draw_all(data, run.folder / "figures")
    run.wandb.log_figures(run.step, figures)


def _close(job: Job, programs: Programs, state: RunState, run: Run, seconds: float, wall: float) -> None:
    """Draws the last figures, writes summary.json and ends the W&B run."""
    _draw(job, programs, state, run)
    finished = run.status == "finished"
    summary = {
        "status": run.status,
        "seed": run.seed,
        "step": run.step,
        "wall_seconds": round(wall, 3),
        "meta_steps_per_second": round(run.step / seconds, 1) if seconds > 0 else math.nan,
        **run.latest,
        "python": platform.python_version(),
        **{name: version(name) for name in ("twmaml", "jax", "jaxlib", "optax", "numpy", "hydra-core", "wandb")},
        "device": jax.devices()[0].device_kind,
    }
    write_json(run.folder / "summary.json", summary)
    run.metrics.close()
    run.wandb.finish(run.latest, exit_code=0 if finished else 1)


def _compile(job: Job, states: RunState, fixed: EvaluationTasks, pool: ThreadPoolExecutor) -> Programs:
    train = over_runs(job.learner.train_chunk)
    evaluate = over_runs(job.evaluation.losses)
    pending = pool.submit(lambda: evaluate.lower(states.meta_params, fixed).compile())
    compiled = train.lower(states, jnp.int32(1)).compile()
    return Programs(compiled, pending.result(), pool.submit(_compile_illustrate, job, states))


def _compile_illustrate(job: Job, states: RunState) -> Any:
    def illustrate(state: RunState) -> tuple[jax.Array, Example | None]:
        p = job.learner.sampler.probabilities(state.queue, state.step)
        return p, job.evaluation.examples(state.meta_params)

    return jax.jit(illustrate).lower(take_run(states, 0)).compile()


def _open_run(cfg: DictConfig, job: Job, seed: int, folder: Path) -> Run:
    shapes = jax.eval_shape(lambda: job.learner.train_chunk(job.learner.init(0), jnp.int32(1)))
    nothing = np.zeros((job.evaluation.grid.size * job.evaluation.draws, job.evaluation.steps + 1))
    columns = [*shapes[1].metrics, CORRELATION, *job.evaluation.summarize(nothing)]
    hydra_config = HydraConfig.get()
    choices = {group: str(hydra_config.runtime.choices[group]) for group in ("sampler", "task", "model", "adaptation")}
    group = job.settings.wandb.group
    if group is None and hydra_config.mode == RunMode.MULTIRUN:
        group = Path(hydra_config.sweep.dir).name
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    # The groups stay readable under their own names; a flat name is what W&B can group runs by.
    parts = {f"{name}_config": settings.pop(name) for name in choices}
    wandb_run = WandbRun(
        folder,
        mode=job.settings.wandb.mode,
        project=job.settings.wandb.project,
        group=group,
        name=f"{choices['sampler']}-{choices['task']}-s{seed}",
        tags=[choices["sampler"], choices["task"]],
        config={**settings, **parts, **choices, "seed": seed},
    )
    title = f"{choices['sampler']} on {choices['task']}, seed {seed}"
    return Run(seed, title, folder, MetricsFile(folder / "metrics.csv", columns), wandb_run)


def _mean_metrics(runs: Sequence[Run]) -> dict[str, float]:
    names = set.intersection(*(set(run.latest) for run in runs))
    return {name: float(np.mean([run.latest[name] for run in runs])) for name in names}


def _describe(job: Job, folder: Path) -> tuple[str, dict[str, str]]:
    settings, learner = job.settings, job.learner
    choices = HydraConfig.get().runtime.choices
    seeds = ", ".join(map(str, settings.seeds))
    axes = (f"{name} [{axis.low:g}, {axis.high:g}]{axis.unit}" for name, axis in learner.family.grid.axes.items())
    cells = " × ".join(map(str, learner.family.grid.shape))
    weights = jax.eval_shape(learner.model.init, jax.random.key(0), learner.family.example_input)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    return f"twmaml: {choices['sampler']} on {choices['task']}, seed {seeds}", {
        "tasks": f"{', '.join(axes)}; {cells} = {learner.family.grid.size:,} cells",
        "sampler": str(learner.sampler),
        "model": f"{choices['model']}, {count:,} weights; {learner.adaptation}",
        "training": f"{settings.steps:,} meta-steps of {settings.meta_batch} tasks, "
        f"{settings.shots} + {settings.queries} examples each",
        "evaluation": f"{job.evaluation.grid.size * job.evaluation.draws:,} fixed tasks every "
        f"{settings.evaluation.every:,} meta-steps, {settings.evaluation.steps} inner steps",
        "folder": str(folder),
    }


def _closing_table(job: Job, runs: Sequence[Run]) -> list[tuple[int, dict[str, float]]]:
    mean = _mean_metrics(runs)
    names = {"loss": "mean", "std": "sd", "worst": "worst", **{f"cvar_{t}": f"CVaR, worst {t} %" for t in TAILS}}
    names["diverged"] = "diverged (left out)"
    steps = job.evaluation.reported_steps()
    return [(k, {label: mean[f"eval/{name}_step_{k}"] for name, label in names.items()}) for k in steps]


def _closing_paths(folder: Path, runs: Sequence[Run]) -> dict[str, str]:
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    each = "" if len(runs) == 1 and runs[0].folder == folder else "seed_*/"
    paths = {
        "figures": f"{shown}/{each}figures/",
        "metrics": f"{shown}/{each}metrics.csv",
        "summary": f"{shown}/{each}summary.json",
    }
    if runs[0].wandb.where is not None:
        paths["W&B"] = runs[0].wandb.where
    return paths


@contextmanager
def _stop_on_interrupt() -> Iterator[list[int]]:
    """Collects Ctrl-C: the first one lets the chunk end and everything be written; the second ends at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log.warning("Interrupted: writing what there is; once more to end at once")

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: whoever started this thread handles signals
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


def main() -> None:
    """The command line. A user's mistake ends in one line and exit code 1."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return
    OmegaConf.register_new_resolver(
        "seed_name", lambda seed: f"s{seed}" if not OmegaConf.is_list(seed) else f"{len(seed)}seeds", replace=True
    )
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here instead of in Hydra's own report
    try:
        hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="train")(_job)()
    except _Reported as reported:
        if wants_traceback:
            raise reported.error from None
        _exit_with(reported.error)
    except Exception as error:
        if wants_traceback:
            raise
        _exit_with(error)


class _Reported(BaseException):
    """Carries the error of a single run past Hydra, which would print lines of its own about it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _job(cfg: DictConfig) -> float:
    """What Hydra runs. In a sweep an error must reach Hydra, so that the other jobs go on."""
    try:
        return run_job(cfg)
    except BaseException as error:
        if HydraConfig.get().mode == RunMode.RUN:
            raise _Reported(error) from error
        raise


def _exit_with(error: BaseException) -> None:
    """Ends the process with the one line that an expected error has, or with a traceback."""
    if isinstance(error, KeyboardInterrupt):
        sys.exit(130)
    line = str(error) if isinstance(error, TrainingFailedError) else explain(error)
    if line is None:
        raise error
    sys.exit(f"twmaml: {line}")


if __name__ == "__main__":
    main()
