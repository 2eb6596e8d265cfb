"""Hydra's jobs: what one trains and where, one alone, or many that differ only in their seed as one program."""

import hashlib
import json
import logging
import math
import os
import platform
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration import ConfigurationError, ExpectedError, Job, Settings, build_job, read_settings
from twmaml.session import DoesNotFitError, Plan, Run, Session
from twmaml.statistics import TAILS, reported_steps
from twmaml.terminal import SweepTerminal, Terminal
from twmaml.tracking import MetricsFile, WandbRun

log = logging.getLogger(__name__)

GROUPS = ("sampler", "task", "model", "adaptation")

MEMORY_SHARE = 0.8
"""Of the memory that is free when a program is compiled, what it may take."""


class TrainingFailedError(ExpectedError):
    """A loss stopped being finite; the message is one line that names the meta-step and the likely cause."""


@dataclass(frozen=True)
class Request:
    """What Hydra asks for with one job."""

    config: dict[str, Any]
    """As composed, interpolations resolved."""
    settings: Settings
    folder: Path
    choices: Mapping[str, str]
    """Of the configuration groups."""
    sweep: str | None
    """The name of the sweep that the job is part of."""

    @property
    def folders(self) -> list[Path]:
        """The folder of each run: the job's own, or for a list of seeds one in it for each."""
        if isinstance(self.settings.seed, int):
            return [self.folder]
        return [self.folder / f"seed_{seed}" for seed in self.settings.seeds]

    @property
    def title(self) -> str:
        """The sampler and the task."""
        return f"{self.choices['sampler']} on {self.choices['task']}"


def read_request(cfg: DictConfig) -> Request:
    """What Hydra asks for, read where it calls a job: in there its own configuration is the job's."""
    hydra_config = HydraConfig.get()
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return Request(
        config=config,
        settings=read_settings(OmegaConf.create(config)),
        folder=Path(hydra_config.runtime.output_dir),
        choices={group: str(hydra_config.runtime.choices[group]) for group in GROUPS},
        sweep=Path(hydra_config.sweep.dir).name if hydra_config.mode == RunMode.MULTIRUN else None,
    )


def program_of(config: Mapping[str, Any]) -> str:
    """Equal for jobs that one program can train: those which differ only in the seed, and in what W&B is told."""
    return json.dumps({k: v for k, v in config.items() if k not in ("seed", "wandb")}, sort_keys=True, default=str)


_built: dict[str, Job] = {}


def build_once(config: Mapping[str, Any]) -> Job:
    """The parts of a job, built only once for all jobs that one program can train."""
    program = program_of(config)
    if program not in _built:
        _built[program] = build_job(OmegaConf.create(dict(config)))
    return _built[program]


def validate_job(config: Mapping[str, Any]) -> None:
    """Checks all that a job could stumble over before it compiles.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    prepare_jax()
    read_settings(OmegaConf.create(dict(config)))
    build_once(config)


def run_job(cfg: DictConfig) -> float:
    """Trains what a configuration describes and leaves its files in Hydra's output folder.

    Returns:
        `eval/loss` at the end, its mean over the seeds.

    Raises:
        ConfigurationError: before anything is compiled.
        TrainingFailedError: if a loss stopped being finite; everything up to there is on disk.
        KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
    """
    prepare_jax()
    request = read_request(cfg)
    job = build_once(request.config)
    seeds, steps = request.settings.seeds, request.settings.steps
    with stop_on_interrupt() as stopping, Terminal(steps * len(seeds)) as terminal, _drawing(len(seeds)) as drawing:
        terminal.start(*_describe(request, job))

        def show(stage: str, runs: Sequence[Run]) -> None:
            terminal.update(_steps_done(runs), stage, _mean_metrics(runs))

        (runs,) = train_jobs(job, [request], stopping, drawing, show)
        if stopping:
            terminal.say(f"interrupted after {max(run.step for run in runs):,} of {steps:,} meta-steps")
        terminal.finish(_closing_table(job, runs), _closing_paths(request.folder, runs))
    if stopping:
        raise KeyboardInterrupt
    return _result(runs)


class Sweep:
    """Groups of jobs, each group one program, trained one after the other and watched as a whole.

    Args:
        groups: of each group the jobs, of each job Hydra's overrides and the configuration.
    """

    def __init__(self, groups: Sequence[Sequence[tuple[Sequence[str], Mapping[str, Any]]]]) -> None:
        prepare_jax()
        jobs = [job for group in groups for job in group]
        common = set.intersection(*(set(overrides) for overrides, _ in jobs))
        for _, config in jobs:
            _check_devices(config["devices"]["tasks"])
        self._titles = [_group_title(group, common) for group in groups]
        self._steps = [sum(config["steps"] * len(_seeds(config)) for _, config in group) for group in groups]
        self._runs = sum(len(_seeds(config)) for _, config in jobs)
        self._terminal = SweepTerminal(sum(self._steps), len(jobs), len(groups))
        self._paths: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Sweep":
        self._stopping = self._stack.enter_context(stop_on_interrupt())
        self._drawing = self._stack.enter_context(_drawing(self._runs))
        self._stack.enter_context(self._terminal)
        return self

    def __exit__(self, *error: Any) -> None:
        self._terminal.finish([], self._paths)
        self._stack.__exit__(*error)

    def run_group(self, index: int, requests: Sequence[Request]) -> list[float | Exception]:
        """Trains the jobs of a group.

        Returns:
            What each one would return alone, or the error that it would raise.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
        """
        before = sum(self._steps[:index])
        folder = _shorten(requests[0].folder.parent)
        self._paths["folder"] = str(folder)
        self._terminal.start_group(index, self._titles[index])

        def show(stage: str, runs: Sequence[Run]) -> None:
            self._terminal.update(before + _steps_done(runs), stage, _mean_metrics(runs))

        try:
            of_jobs = train_jobs(build_once(requests[0].config), requests, self._stopping, self._drawing, show)
        except Exception as error:
            log.info("A group of jobs failed", exc_info=True)
            outcomes: list[float | Exception] = [error] * len(requests)
        else:
            if self._stopping:
                self._terminal.say_interrupted()
                raise KeyboardInterrupt
            outcomes = [_outcome(runs) for runs in of_jobs]
            if of_jobs[0][0].wandb.mode == "offline":
                depth = "/seed_*" if isinstance(requests[0].settings.seed, list) else ""
                self._paths["W&B"] = f"wandb sync {folder}/*{depth}/wandb/offline-run-*"
        losses = [outcome for outcome in outcomes if isinstance(outcome, float)]
        self._terminal.finish_group(before + self._steps[index], len(outcomes), losses)
        return outcomes


class ReportedError(BaseException):
    """Carries the error of a single run past Hydra, which would print lines of its own about it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def hydra_job(cfg: DictConfig) -> float:
    """What Hydra runs. In a sweep an error must reach Hydra, so that the other jobs go on."""
    try:
        return run_job(cfg)
    except BaseException as error:
        if HydraConfig.get().mode == RunMode.RUN:
            raise ReportedError(error) from error
        raise


# Hydra hands the task function to its sweeper and its launcher: what twmaml's own ones need of it goes with it.
hydra_job.validate = validate_job  # type: ignore[attr-defined]
hydra_job.program_of = program_of  # type: ignore[attr-defined]
hydra_job.read_request = read_request  # type: ignore[attr-defined]
hydra_job.sweep = Sweep  # type: ignore[attr-defined]


def train_jobs(
    job: Job,
    requests: Sequence[Request],
    stopping: Sequence[Any],
    drawing: Executor,
    show: Callable[[str, Sequence[Run]], None],
) -> list[list[Run]]:
    """Trains jobs that differ only in their seed as one program, or as several if one would not fit into memory.

    Args:
        job: what they have in common.
        requests: what is each one's own.
        stopping: once it is not empty, training ends with the chunk.
        drawing: draws the figures.
        show: told after each chunk what is being done and how the runs stand.

    Returns:
        The runs of each job.
    """
    _check_devices(job.settings.devices.tasks)
    for request in requests:
        _make_folders(request)
    asked = [(r, seed, folder) for r in requests for seed, folder in zip(r.settings.seeds, r.folders, strict=True)]
    settings = job.settings
    plan = Plan(settings.steps, settings.log_every, settings.evaluation.every, settings.figures_every)
    runs: list[Run] = []
    with ThreadPoolExecutor() as background:
        seeds = [seed for _, seed, _ in asked]
        whole = Session(job.learner, job.evaluation, seeds, background, drawing)
        # While the session compiles. The first one loads W&B and finds out whether its server can be reached.
        wandb_runs = [_open_wandb(*asked[0]), *background.map(lambda of_run: _open_wandb(*of_run), asked[1:])]
        try:
            for part, session in _compiled(whole, job, seeds, background, drawing):
                first = len(runs)
                for (request, seed, folder), wandb_run in zip(asked[part], wandb_runs[part], strict=True):
                    metrics = MetricsFile(folder / "metrics.csv", session.metric_names)
                    runs.append(Run(seed, f"{request.title}, seed {seed}", folder, metrics, wandb_run))
                session.train(plan, runs[first:], stopping, lambda stage: show(stage, runs))
        except BaseException:
            for wandb_run in wandb_runs:
                wandb_run.finish({}, exit_code=1)
            raise
    remaining = iter(runs)
    return [[next(remaining) for _ in request.settings.seeds] for request in requests]


def _compiled(
    whole: Session, job: Job, seeds: Sequence[int], background: Executor, drawing: Executor
) -> Iterator[tuple[slice, Session]]:
    """The session of all seeds; where the memory does not hold them, one of half of them and one of the others."""
    memory = job.settings.devices.memory_gib
    parts: list[tuple[int, int, Session | None]] = [(0, len(seeds), whole)]
    while parts:
        start, end, session = parts.pop(0)
        if session is None:
            session = Session(job.learner, job.evaluation, seeds[start:end], background, drawing)
        try:
            session.wait_until_compiled(memory * 2**30 if memory is not None else MEMORY_SHARE * _free_memory())
        except DoesNotFitError as error:
            middle = (start + end) // 2
            log.info("%s; goes on with %d of them", error, middle - start)
            parts[:0] = [(start, middle, None), (middle, end, None)]
        else:
            yield slice(start, end), session


def _free_memory() -> float:
    """Bytes that are free for programs: of the host, or of an accelerator."""
    if jax.default_backend() == "cpu":
        return psutil.virtual_memory().available
    statistics = jax.devices()[0].memory_stats()
    return statistics["bytes_limit"] - statistics["bytes_in_use"] if statistics else math.inf


def _check_devices(asked: int) -> None:
    present = jax.device_count()
    if asked > present:
        raise ConfigurationError(f"devices.tasks={asked}: there {'is' if present == 1 else 'are'} {present} here")


def _make_folders(request: Request) -> None:
    for run_folder in request.folders:
        if (run_folder / "metrics.csv").exists():
            raise ConfigurationError(f"hydra.run.dir={run_folder}: already holds a run; choose another folder")
        for name in ("evaluation", "figures"):
            (run_folder / name).mkdir(parents=True, exist_ok=True)


def _open_wandb(request: Request, seed: int, folder: Path) -> WandbRun:
    """Starts the W&B run of a seed."""
    settings = dict(request.config)
    # A flat name is what W&B can group runs by; what the name stands for goes beside it.
    parts = {f"{name}_config": settings.pop(name) for name in GROUPS}
    wandb = request.settings.wandb
    return WandbRun(
        folder,
        mode=wandb.mode,
        project=wandb.project,
        group=request.sweep if wandb.group is None else wandb.group,
        name=f"{request.choices['sampler']}-{request.choices['task']}-s{seed}",
        tags=[request.choices["sampler"], request.choices["task"]],
        config={**settings, **parts, **request.choices, "seed": seed},
    )


class _FigureProcesses(ProcessPoolExecutor):
    """Processes that draw figures. Ctrl-C, which a terminal sends to all of them, is for this one to handle."""

    def submit(self, *arguments: Any, **keywords: Any) -> Any:
        """Hands over a call; a process that is started for it inherits that SIGINT is blocked."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*arguments, **keywords)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _drawing(runs: int) -> Executor:
    """What draws figures beside the training: a thread for a run, a process a core for several."""
    workers = min(runs, os.cpu_count() or 1)
    return ThreadPoolExecutor(1) if workers == 1 else _FigureProcesses(workers, mp_context=get_context("spawn"))


def _result(runs: Sequence[Run]) -> float:
    """What a job returns: the final `eval/loss`, its mean over the seeds."""
    failed = [run.status for run in runs if run.failed]
    if failed:
        raise TrainingFailedError("; ".join(failed))
    return float(np.mean([run.latest["eval/loss"] for run in runs]))


def _outcome(runs: Sequence[Run]) -> float | Exception:
    try:
        return _result(runs)
    except TrainingFailedError as error:
        return error


def _steps_done(runs: Sequence[Run]) -> int:
    return sum(run.step for run in runs)


def _seeds(config: Mapping[str, Any]) -> list[int]:
    return [config["seed"]] if isinstance(config["seed"], int) else config["seed"]


def _group_title(group: Sequence[tuple[Sequence[str], Mapping[str, Any]]], common: set[str]) -> str:
    """What sets a group apart from the others, and its seeds."""
    own = [override for override in group[0][0] if override not in common and not override.startswith("seed=")]
    seeds = [seed for _, config in group for seed in _seeds(config)]
    return " ".join([*own, f"seed={_shorten_seeds(seeds)}"])


def _shorten_seeds(seeds: Sequence[int]) -> str:
    consecutive = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]},...,{seeds[-1]}" if consecutive else ",".join(map(str, seeds))


def _mean_metrics(runs: Sequence[Run]) -> dict[str, float]:
    """The latest metrics, averaged over the runs that have not failed (over all if none is left)."""
    kept = [run.latest for run in runs if not run.failed] or [run.latest for run in runs]
    names = set.intersection(*(set(latest) for latest in kept))
    return {name: float(np.mean([latest[name] for latest in kept])) for name in names}


def _describe(request: Request, job: Job) -> tuple[str, dict[str, str]]:
    settings, learner, choices = request.settings, job.learner, request.choices
    seeds = ", ".join(map(str, settings.seeds))
    axes = (f"{name} [{axis.low:g}, {axis.high:g}]{axis.unit}" for name, axis in learner.family.grid.axes.items())
    cells = " × ".join(map(str, learner.family.grid.shape))
    weights = jax.eval_shape(learner.model.init, jax.random.key(0), learner.family.example_input)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    return f"twmaml: {request.title}, seed {seeds}", {
        "tasks": f"{', '.join(axes)}; {cells} = {learner.family.grid.size:,} cells",
        "sampler": _sampler_line(request.config),
        "model": f"{choices['model']}, {count:,} weights; {learner.adaptation}",
        "training": f"{settings.steps:,} meta-steps of {settings.meta_batch} tasks, "
        f"{settings.shots} + {settings.queries} examples each",
        "evaluation": f"{job.evaluation.grid.size * job.evaluation.draws:,} fixed tasks every "
        f"{settings.evaluation.every:,} meta-steps, {settings.evaluation.steps} inner steps",
        "folder": str(_shorten(request.folder)),
    }


def _sampler_line(config: Mapping[str, Any]) -> str:
    """The sampler and its options as configured; an optax schedule by its name and arguments."""

    def show(value: Any) -> str:
        if not isinstance(value, dict):
            return str(value)
        inner = ", ".join(f"{k}={show(v)}" for k, v in value.items() if k != "_target_")
        return f"{str(value.get('_target_', '')).rpartition('.')[2]}({inner})"

    return show(config["sampler"])


def _closing_table(job: Job, runs: Sequence[Run]) -> list[tuple[int, dict[str, float]]]:
    mean = _mean_metrics(runs)
    names = {"loss": "mean", "std": "sd", "worst": "worst", **{f"cvar_{t}": f"CVaR, worst {t} %" for t in TAILS}}
    names["diverged"] = "diverged (left out)"
    steps = reported_steps(job.evaluation.steps)
    return [(k, {label: mean[f"eval/{name}_step_{k}"] for name, label in names.items()}) for k in steps]


def _closing_paths(folder: Path, runs: Sequence[Run]) -> dict[str, str]:
    shown = str(_shorten(folder)) + ("" if runs[0].folder == folder else "/seed_*")
    paths = {name: f"{shown}/{file}" for name, file in _FILES.items()}
    if runs[0].wandb.mode == "online":
        paths["W&B"] = " ".join(run.wandb.url for run in runs)
    elif runs[0].wandb.mode == "offline":
        paths["W&B"] = _upload_command(folder, runs)
    return paths


_FILES = {"figures": "figures/", "metrics": "metrics.csv", "evaluation": "evaluation/", "summary": "summary.json"}


def _upload_command(folder: Path, runs: Sequence[Run]) -> str:
    each = "" if runs[0].folder == folder else "/seed_*"
    return f"wandb sync {_shorten(folder)}{each}/wandb/offline-run-*"


def _shorten(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


@contextmanager
def stop_on_interrupt() -> Iterator[list[int]]:
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


@cache
def prepare_jax() -> None:
    """Settings of JAX that have to come before it starts, in whichever process Hydra runs a job."""
    _keep_compiled_programs()
    _use_every_core()


def _keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, which halves the start-up of the next run.

    A folder for each kind of processor, because a home folder is often shared by machines of several kinds and
    compiled programs are not. JAX_COMPILATION_CACHE_DIR, where it is set, decides instead (empty: no cache).
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cpuinfo = Path("/proc/cpuinfo")
        flags = re.search(r"^(flags|Features)\s*:.*$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
        processor = hashlib.sha256((flags.group() if flags else platform.processor()).encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(home / "twmaml" / "jax" / processor))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _use_every_core() -> None:
    """Makes one JAX device of every core, so that several runs share a machine without an accelerator.

    A single run stays on one of them: its products are too small for several cores. JAX_NUM_CPU_DEVICES, where
    it is set, decides instead. Has to come before JAX starts.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
