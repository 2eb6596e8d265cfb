"""Meta-trains one configuration: `python -m twmaml.train sampler=importance_delta task=sin3d`."""

import hashlib
import logging
import math
import os
import platform
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hydra
import jax
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration import (
    ConfigurationError,
    Job,
    build_job,
    configuration_folder,
    explain,
    help_text,
    register_resolvers,
)
from twmaml.evaluation import TAILS
from twmaml.session import Plan, Run, Session, metric_names
from twmaml.terminal import Terminal
from twmaml.tracking import MetricsFile, WandbRun

log = logging.getLogger(__name__)


class TrainingFailedError(Exception):
    """A loss stopped being finite; the message is one line that names the meta-step and the likely cause."""


def run_job(cfg: DictConfig) -> float:
    """Trains what a configuration describes and leaves its files in Hydra's output folder.

    Returns:
        `eval/loss` at the end, its mean over the seeds.

    Raises:
        ConfigurationError: before anything is compiled.
        TrainingFailedError: if a loss stopped being finite; everything up to there is on disk.
        KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
    """
    job = build_job(cfg)
    settings = job.settings
    folder = Path(HydraConfig.get().runtime.output_dir)
    folders = _make_folders(folder, settings.seed)
    plan = Plan(settings.steps, settings.log_every, settings.evaluation.every, settings.figures_every)
    with ExitStack() as stack:
        stopping = stack.enter_context(_stop_on_interrupt())
        terminal = stack.enter_context(Terminal(settings.steps))
        terminal.start(*_describe(cfg, job, folder))
        executor = stack.enter_context(ThreadPoolExecutor())  # W&B starts while programs compile
        opening = [executor.submit(_open_run, cfg, job, *pair) for pair in zip(settings.seeds, folders, strict=True)]
        session = Session(job.learner, job.evaluation, settings.seeds, executor)
        runs = [run.result() for run in opening]
        if runs[0].wandb.mode == "offline":
            terminal.say(f"W&B is offline here; to upload: {_upload_command(folder, runs)}")
        session.train(plan, runs, stopping, lambda stage: terminal.update(_step(runs), stage, _mean_metrics(runs)))
    if stopping:
        terminal.say(f"interrupted after {_step(runs):,} of {settings.steps:,} meta-steps")
    terminal.finish(_closing_table(job, runs), _closing_paths(folder, runs))
    failed = [run.status for run in runs if run.failed]
    if failed:
        raise TrainingFailedError("; ".join(failed))
    if stopping:
        raise KeyboardInterrupt
    return float(np.mean([run.latest["eval/loss"] for run in runs]))


def _make_folders(folder: Path, seed: int | Sequence[int]) -> list[Path]:
    """The folder of each run: the job's own, or for a list of seeds one in it for each."""
    folders = [folder] if isinstance(seed, int) else [folder / f"seed_{s}" for s in seed]
    for run_folder in folders:
        if (run_folder / "metrics.csv").exists():
            raise ConfigurationError(f"hydra.run.dir={run_folder}: already holds a run; choose another folder")
        for name in ("evaluation", "figures"):
            (run_folder / name).mkdir(parents=True, exist_ok=True)
    return folders


def _open_run(cfg: DictConfig, job: Job, seed: int, folder: Path) -> Run:
    """Starts the files and the W&B run of a seed."""
    hydra_config = HydraConfig.get()
    choices = {group: str(hydra_config.runtime.choices[group]) for group in ("sampler", "task", "model", "adaptation")}
    group = job.settings.wandb.group
    if group is None and hydra_config.mode == RunMode.MULTIRUN:
        group = Path(hydra_config.sweep.dir).name
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    # A flat name is what W&B can group runs by; what the name stands for goes beside it.
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
    metrics = MetricsFile(folder / "metrics.csv", metric_names(job.learner, job.evaluation))
    return Run(seed, f"{choices['sampler']} on {choices['task']}, seed {seed}", folder, metrics, wandb_run)


def _step(runs: Sequence[Run]) -> int:
    return max(run.step for run in runs)


def _mean_metrics(runs: Sequence[Run]) -> dict[str, float]:
    """The latest metrics, averaged over the runs that have not failed (over all if none is left)."""
    kept = [run.latest for run in runs if not run.failed] or [run.latest for run in runs]
    names = set.intersection(*(set(latest) for latest in kept))
    return {name: float(np.mean([latest[name] for latest in kept])) for name in names}


def _describe(cfg: DictConfig, job: Job, folder: Path) -> tuple[str, dict[str, str]]:
    settings, learner = job.settings, job.learner
    choices = HydraConfig.get().runtime.choices
    seeds = ", ".join(map(str, settings.seeds))
    axes = (f"{name} [{axis.low:g}, {axis.high:g}]{axis.unit}" for name, axis in learner.family.grid.axes.items())
    cells = " × ".join(map(str, learner.family.grid.shape))
    weights = jax.eval_shape(learner.model.init, jax.random.key(0), learner.family.example_input)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    return f"twmaml: {choices['sampler']} on {choices['task']}, seed {seeds}", {
        "tasks": f"{', '.join(axes)}; {cells} = {learner.family.grid.size:,} cells",
        "sampler": _sampler_line(cfg),
        "model": f"{choices['model']}, {count:,} weights; {learner.adaptation}",
        "training": f"{settings.steps:,} meta-steps of {settings.meta_batch} tasks, "
        f"{settings.shots} + {settings.queries} examples each",
        "evaluation": f"{job.evaluation.grid.size * job.evaluation.draws:,} fixed tasks every "
        f"{settings.evaluation.every:,} meta-steps, {settings.evaluation.steps} inner steps",
        "folder": str(_shorten(folder)),
    }


def _sampler_line(cfg: DictConfig) -> str:
    """The sampler and its options as configured; an optax schedule by its name and arguments."""

    def show(value: Any) -> str:
        if not OmegaConf.is_dict(value):
            return str(value)
        inner = ", ".join(f"{k}={show(v)}" for k, v in value.items() if k != "_target_")
        return f"{str(value.get('_target_', '')).rpartition('.')[2]}({inner})"

    return show(cfg.sampler)


def _closing_table(job: Job, runs: Sequence[Run]) -> list[tuple[int, dict[str, float]]]:
    mean = _mean_metrics(runs)
    names = {"loss": "mean", "std": "sd", "worst": "worst", **{f"cvar_{t}": f"CVaR, worst {t} %" for t in TAILS}}
    names["diverged"] = "diverged (left out)"
    steps = job.evaluation.reported_steps()
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


def main() -> None:
    """The command line. A user's mistake ends in one line and exit code 1."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return
    register_resolvers()
    _keep_compiled_programs()
    _use_every_core()
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


if __name__ == "__main__":
    main()
