"""The words of a job in the terminal: its plan, how it stands, its results and where they are."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jax

from twmaml.configuration.settings import listed
from twmaml.jobs.job import Job
from twmaml.statistics import DIVERGED, LOGGED, column_of, label_of, reported_steps
from twmaml.storage.files import shorten
from twmaml.training.runs import RunResult

_BRIEFLY = ("mean", "sd", "cvar_10")
"""Statistics of the closing tables where there are several metrics."""

_NAMES = {"eval": "evaluation"}
"""Names of splits in the terminal, where they are others."""

_FILES = {"figures": "figures/", "metrics": "metrics.csv", "evaluation": "evaluation/", "summary": "summary.json"}


def describe(job: Job) -> tuple[str, dict[str, str]]:
    """The title of a job, and what it is about to do, by aspect."""
    settings, choices, learner = job.settings, job.choices, job.parts.learner
    seeds = ", ".join(map(str, settings.seeds))
    axes = (f"{name} {axis.span}" for name, axis in learner.family.grid.axes.items())
    cells = " × ".join(map(str, learner.family.grid.shape))
    learned = jax.eval_shape(lambda: learner.init(0)).meta_params
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(learned))
    every = f"every {settings.evaluation.every:,} meta-steps"
    evaluations = {_NAMES.get(name, name): f"{each.protocol}; {every}" for name, each in job.parts.evaluations.items()}
    of_data = learner.family.describe_data(job.parts.data["train"])
    return f"twmaml: {job.title}, seed {seeds}", {
        "tasks": f"{', '.join(axes)}; {cells} = {learner.family.grid.size:,} cells",
        **({"data": of_data} if of_data else {}),
        "sampler": _sampler_line(job.config),
        "model": f"{choices['model']}, {count:,} weights; {learner.adaptation}",
        "training": f"{settings.steps:,} meta-steps of {settings.meta_batch} tasks, "
        f"{settings.shots} + {settings.queries} examples each",
        **evaluations,
        "folder": str(shorten(job.folder)),
    }


def _sampler_line(config: Mapping[str, Any]) -> str:
    """The sampler and its options as configured; an optax schedule by its name and arguments."""

    def show(value: Any) -> str:
        if not isinstance(value, dict):
            return str(value)
        inner = ", ".join(f"{k}={show(v)}" for k, v in value.items() if k != "_target_")
        return f"{str(value.get('_target_', '')).rpartition('.')[2]}({inner})"

    return show(config["sampler"])


def mean_metrics(runs: Sequence[RunResult], names: Iterable[str]) -> dict[str, float]:
    """Some of the latest metrics, averaged over the runs that have not failed (over all if none is left).

    One that not every run has is left out.
    """
    kept = [run.latest for run in runs if not run.failed] or [run.latest for run in runs if run.latest]
    known = [name for name in names if kept and all(name in latest for latest in kept)]
    return {name: fmean(latest[name] for latest in kept) for name in known}


def closing_tables(job: Job, runs: Sequence[RunResult]) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """The statistics of each split after each reported inner step, averaged over the runs, by title."""
    tables = {}
    for split, evaluation in job.parts.evaluations.items():
        names = {}
        further = evaluation.metrics[1:]
        for metric in further:
            label = label_of(metric)
            names |= {column_of(each, metric): f"{label}: {each.label}" for each in LOGGED if each.key in _BRIEFLY}
        shown = [each for each in LOGGED if each.key in _BRIEFLY or not further]
        prefix = f"{label_of(evaluation.metrics[0])}: " if further else ""
        names |= {column_of(each): f"{prefix}{each.label}" for each in shown} | {"diverged": DIVERGED}
        title = f"{_NAMES.get(split, split)} over the grid of tasks: {evaluation.protocol}"
        tables[title] = []
        for k in reported_steps(evaluation.steps):
            columns = {f"{split}/{name}_step_{k}": label for name, label in names.items()}
            mean = mean_metrics(runs, columns)
            tables[title].append((k, {label: mean[column] for column, label in columns.items()}))
    return tables


def closing_paths(folder: Path, runs: Sequence[RunResult]) -> dict[str, str]:
    """The places of all that a job has left."""
    shown = str(shorten(folder)) + ("" if runs[0].folder == folder else "/seed_*")
    paths = {name: f"{shown}/{file}" for name, file in _FILES.items()}
    best = [f"{run.best_step:,} of {run.step:,}" for run in runs if run.best_step is not None]
    if best:
        paths["best"] = f"on validation after {', '.join(best)} meta-steps"
    if any(run.wandb_mode == "online" for run in runs):
        paths["W&B"] = " ".join(run.wandb_url for run in runs)
    elif any(run.wandb_mode == "offline" for run in runs):
        if runs[0].folder == folder:  # the viewer takes the folder of one run
            paths["W&B here"] = view_command(folder)
        paths["W&B later"] = upload_command(shown)
    return paths


def resume_command(folder: Path) -> str:
    """Goes on with an interrupted run or sweep."""
    return f"python -m twmaml.train {shlex.quote(f'resume={shorten(folder)}')}"


def view_command(folder: Path) -> str:
    """Shows in the terminal what W&B has kept offline in the folder of a run."""
    return f"wandb leet {shlex.quote(f'{shorten(folder)}/wandb')}"


def upload_command(folders: str) -> str:
    """Sends what W&B has kept offline in the folders of runs, in which a `*` stands for any name."""
    parts = [part if "*" in part or not part else shlex.quote(part) for part in folders.split("/")]
    return f"wandb sync {'/'.join(parts)}/wandb/offline-run-*"


def jobs_title(jobs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> str:
    """The settings that set some jobs of a sweep apart from the others, and their seeds.

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
    own = [f"{key}={_ends(list(of_key))}" for key, of_key in values.items()]
    return " ".join([*own, f"seed={_ends(seeds) if consecutive else ','.join(map(str, seeds))}"])


def _ends(values: Sequence[Any]) -> str:
    return f"{values[0]},...,{values[-1]}" if len(values) > 2 else ",".join(map(str, values))
