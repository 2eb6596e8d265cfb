"""The words of a job in the terminal: its aim, its state, its results and where they are."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twmaml.configuration.build import Job
from twmaml.configuration.settings import listed
from twmaml.jobs.job import Request
from twmaml.statistics import DIVERGED, LOGGED, column_of, label_of, reported_steps
from twmaml.storage.files import shorten
from twmaml.training.recorder import Run, RunRecord

_FURTHER = ("mean", "cvar_10")
"""Statistics of the closing table for metrics besides the score."""

_LONGEST = 5
"""Labels of an axis in a line; of more the middle is left out."""

_FILES = {"figures": "figures/", "metrics": "metrics.csv", "evaluation": "evaluation/", "summary": "summary.json"}


def describe(request: Request, job: Job) -> tuple[str, dict[str, str]]:
    """The title of a job, and what it is about to do, by aspect."""
    settings, learner, choices = request.settings, job.learner, request.choices
    seeds = ", ".join(map(str, settings.seeds))
    axes = (f"{name} {_range(axis)}" for name, axis in learner.family.grid.axes.items())
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
        "folder": str(shorten(request.folder)),
    }


def _range(axis: Any) -> str:
    ticks, edges = axis.ticks(), axis.edges()
    labels = [f"{edges[0]:g}", f"{edges[-1]:g}"] if ticks is None else ticks[1]
    shown = labels if len(labels) <= _LONGEST else [*labels[: _LONGEST - 1], "...", labels[-1]]
    return f"[{', '.join(shown)}]{axis.unit}"


def _sampler_line(config: Mapping[str, Any]) -> str:
    """The sampler and its options as configured; an optax schedule by its name and arguments."""

    def show(value: Any) -> str:
        if not isinstance(value, dict):
            return str(value)
        inner = ", ".join(f"{k}={show(v)}" for k, v in value.items() if k != "_target_")
        return f"{str(value.get('_target_', '')).rpartition('.')[2]}({inner})"

    return show(config["sampler"])


def mean_metrics(runs: Sequence[RunRecord]) -> dict[str, float]:
    """The latest metrics, averaged over the runs that have not failed (over all if none is left)."""
    kept = [run.latest for run in runs if not run.failed] or [run.latest for run in runs if run.latest]
    names = set.intersection(*(set(latest) for latest in kept))
    return {name: float(np.mean([latest[name] for latest in kept])) for name in names}


def closing_table(job: Job, runs: Sequence[RunRecord]) -> list[tuple[int, dict[str, float]]]:
    """The statistics after each reported inner step, averaged over the runs."""
    mean = mean_metrics(runs)
    names = {column_of(statistic): statistic.label for statistic in LOGGED} | {"diverged": DIVERGED}
    for metric in job.evaluation.learner.family.metrics:
        label = label_of(metric)
        names |= {column_of(each, metric): f"{label}: {each.label}" for each in LOGGED if each.key in _FURTHER}
    steps = reported_steps(job.evaluation.steps)
    return [(k, {label: mean[f"eval/{name}_step_{k}"] for name, label in names.items()}) for k in steps]


def closing_paths(folder: Path, runs: Sequence[RunRecord]) -> dict[str, str]:
    """Where a job has left what."""
    shown = str(shorten(folder)) + ("" if runs[0].folder == folder else "/seed_*")
    paths = {name: f"{shown}/{file}" for name, file in _FILES.items()}
    wandb_runs = [run.wandb for run in runs if isinstance(run, Run)]
    if any(wandb.mode == "online" for wandb in wandb_runs):
        paths["W&B"] = " ".join(wandb.url for wandb in wandb_runs)
    elif any(wandb.mode == "offline" for wandb in wandb_runs):
        paths["W&B"] = upload_command(shown)
    return paths


def resume_command(folder: Path) -> str:
    """Goes on with an interrupted run or sweep."""
    return f"python -m twmaml.train {shlex.quote(f'resume={shorten(folder)}')}"


def upload_command(folders: str) -> str:
    """Sends what W&B has kept offline in the folders of runs."""
    return f"wandb sync {folders}/wandb/offline-run-*"


def jobs_title(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> str:
    """The overrides that set some jobs of a sweep apart from the others, and their seeds.

    Args:
        jobs: of each the overrides that set it apart, and its configuration.
    """
    values: dict[str, dict[str, None]] = {}  # by key, each once, in their order
    for overrides, _ in jobs:
        for override in overrides:
            key, _, value = override.partition("=")
            values.setdefault(key, {})[value] = None
    values.pop("seed", None)
    seeds = list(dict.fromkeys(seed for _, config in jobs for seed in listed(config["seed"])))
    consecutive = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    own = [f"{key}={_shorten(list(of_key))}" for key, of_key in values.items()]
    return " ".join([*own, f"seed={_shorten(seeds) if consecutive else ','.join(map(str, seeds))}"])


def _shorten(values: Sequence[Any]) -> str:
    return f"{values[0]},...,{values[-1]}" if len(values) > 2 else ",".join(map(str, values))
