"""Finished runs, read back from their folders; what can't be compared is named, with the reason."""

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from twmaml.space.axis import Interval
from twmaml.space.grid import ParameterGrid
from twmaml.storage.metrics_file import read_metrics

# What may differ between runs of one arm: it changes no number of the result. (The last two reach a run only through
# its sampler, where they count.)
_INCIDENTAL = (
    *("seed", "wandb", "devices", "log_every", "figures_every", "checkpoint", "resume"),
    *("uniform_fraction", "epsilon"),
)


class LeftOut(NamedTuple):
    """A folder that is not compared."""

    folder: Path
    reason: str


class UnreadableError(Exception):
    """A folder does not hold a run that can be compared; the message says why, in a few words."""


@dataclass(frozen=True)
class Evaluations:
    """All evaluations of a run."""

    steps: np.ndarray
    """Meta-steps, [evaluations]."""
    losses: np.ndarray
    """[evaluations, tasks, inner steps + 1]"""
    queue_losses: np.ndarray
    """What the queue held for the cell of each task, [evaluations, tasks]; NaN where it had not been visited."""
    visits: np.ndarray
    """How often that cell had been drawn, [evaluations, tasks]."""
    tasks: np.ndarray
    """Parameters in their configured units, [tasks, axes]."""
    grid: ParameterGrid
    """Of the evaluation, whose cells hold the same number of tasks each."""

    @property
    def draws(self) -> int:
        """Tasks of a cell."""
        return len(self.tasks) // self.grid.size

    def protocol(self) -> tuple[Any, ...]:
        """Equal for runs that were judged on the same tasks after the same number of inner steps."""
        axes = tuple((name, axis.low, axis.high, axis.unit) for name, axis in self.grid.axes.items())
        return axes, self.grid.shape, self.tasks.shape, self.losses.shape[-1]


@dataclass(frozen=True)
class FinishedRun:
    """A run that has trained all its meta-steps."""

    folder: Path
    seed: int
    choices: Mapping[str, str]
    """Of the configuration groups."""
    config: Mapping[str, Any]
    """Interpolations resolved; nested keys joined by dots."""
    summary: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    """metrics.csv by column."""
    evaluations: Evaluations
    examples: Mapping[str, np.ndarray] | None
    """Of a regression, three tasks before and after adapting."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed."""

    name: str
    runs: Sequence[FinishedRun]

    @property
    def seeds(self) -> list[int]:
        """Of the runs, in their order."""
        return [run.seed for run in self.runs]


def read_runs(paths: Iterable[Path]) -> tuple[list[FinishedRun], list[LeftOut]]:
    """Reads every run in or below the given folders.

    Returns:
        The runs that can be compared with each other, and every other folder of a run. Where runs were judged by
        different tasks, those of the most common kind stay.
    """
    runs: list[FinishedRun] = []
    left_out: list[LeftOut] = []
    for folder in _run_folders(paths):
        try:
            runs.append(read_run(folder))
        except UnreadableError as error:
            left_out.append(LeftOut(folder, str(error)))
    if not runs:
        return runs, left_out
    kinds = Counter(_kind(run) for run in runs)
    (common, _), *_ = kinds.most_common(1)
    example = next(run for run in runs if _kind(run) == common)
    for run in [run for run in runs if _kind(run) != common]:
        left_out.append(LeftOut(run.folder, f"of another task or evaluation: {_difference(run, example)}"))
    return [run for run in runs if _kind(run) == common], left_out


def _kind(run: FinishedRun) -> tuple[Any, ...]:
    return run.choices["task"], json.dumps(_judged_by(run), default=str), run.evaluations.protocol()


def _judged_by(run: FinishedRun) -> dict[str, Any]:
    """The keys that say what tasks a run was judged on, and their data. (The cells of the queue are the sampler's.)"""
    own = {"shots", *(f"evaluation.{key}" for key in ("seed", "draws", "queries"))}
    return {
        key: value
        for key, value in sorted(run.config.items())
        if key in own or (key.startswith("task.") and key.split(".")[-1] not in ("cells", "evaluation_cells"))
    }


def _difference(run: FinishedRun, other: FinishedRun) -> str:
    """What sets a run apart from the common kind."""
    ours, theirs = _judged_by(run), _judged_by(other)
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key}={ours.get(key)}" for key in keys[:3]) or run.choices["task"]


def _run_folders(paths: Iterable[Path]) -> list[Path]:
    """The folder of every run, begun or not: a job's, or those of its seeds where it has several."""
    folders: dict[Path, None] = {}
    for path in paths:
        jobs = [config.parent.parent for config in sorted(path.rglob(".hydra/config.yaml"))]
        if path.name.startswith("seed_"):
            jobs.append(path)
        for job in sorted(jobs, key=_natural):
            for folder in sorted(job.glob("seed_*"), key=_natural) or [job]:
                folders[folder.resolve()] = None
    return list(folders)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def read_run(folder: Path) -> FinishedRun:
    """Reads one run. Nothing in its files is executed.

    Raises:
        UnreadableError: if it is unfinished, failed or damaged.
    """
    try:
        summary = _read_summary(folder)
        job = folder if (folder / ".hydra").is_dir() else folder.parent
        config: Any = OmegaConf.to_container(OmegaConf.load(job / ".hydra" / "config.yaml"), resolve=True)
        choices: Any = OmegaConf.to_container(OmegaConf.load(job / ".hydra" / "hydra.yaml"))
        metrics = read_metrics(folder / "metrics.csv")
        evaluations = _read_evaluations(folder / "evaluation", metrics)
        examples = _read_arrays(folder / "examples.npz") if (folder / "examples.npz").exists() else None
        if metrics["step"][-1] != summary["step"] or evaluations.steps[-1] != summary["step"]:
            raise UnreadableError(f"its files end before meta-step {summary['step']}")
        return FinishedRun(
            folder=folder,
            seed=int(summary["seed"]),
            choices={key: str(choice) for key, choice in choices["hydra"]["runtime"]["choices"].items()},
            config=dict(_flatten(config)),
            summary=summary,
            metrics=metrics,
            evaluations=evaluations,
            examples=examples,
        )
    except FileNotFoundError as error:
        raise UnreadableError(f"{Path(error.filename).name} is missing") from error
    except (
        OSError,
        ValueError,  # malformed JSON, CSV or arrays
        LookupError,
        TypeError,
        zipfile.BadZipFile,
        OmegaConfBaseException,
        YAMLError,
    ) as error:
        raise UnreadableError(f"damaged: {' '.join(str(error).split())[:120]}") from error


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.exists():
        began = (folder / "metrics.csv").exists()
        raise UnreadableError("unfinished" if began else "has not begun")
    summary = json.loads(path.read_text())
    if summary["status"] != "finished":
        raise UnreadableError(str(summary["status"]))
    return summary


def _read_evaluations(folder: Path, metrics: Mapping[str, np.ndarray]) -> Evaluations:
    steps = metrics["step"][~np.isnan(metrics["eval/loss_step_0"])].astype(int)
    files = [_read_arrays(folder / f"{step}.npz") for step in steps]
    last = files[-1]
    axes = zip(last["names"], last["low"], last["high"], last["shape"], last["units"], strict=True)
    grid = ParameterGrid({str(n): Interval(float(low), float(high), int(c), str(u)) for n, low, high, c, u in axes})
    of_files = {key: np.stack([file[key] for file in files]) for key in ("losses", "queue_losses", "visits")}
    tasks = last["tasks"]
    if of_files["losses"].shape[1] != len(tasks) or len(tasks) % grid.size:
        raise UnreadableError(f"damaged: {len(tasks)} tasks do not fill {grid.size} cells")
    return Evaluations(steps=steps, tasks=tasks, grid=grid, **of_files)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as opened:  # np.load alone leaks a damaged one
        try:
            with np.load(opened) as file:
                return dict(file)
        except (ValueError, LookupError, zipfile.BadZipFile) as error:
            raise UnreadableError(f"{path.name} is damaged: {' '.join(str(error).split())[:120]}") from error


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def group_runs(runs: Sequence[FinishedRun]) -> list[Arm]:
    """Runs that differ only in their seed, under the name of their sampler.

    Where one sampler has several configurations, the name tells them apart by the keys that differ. Of a seed that was
    trained twice the first run counts.
    """
    by_config: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        own = {key: value for key, value in run.config.items() if key.split(".")[0] not in _INCIDENTAL}
        key = json.dumps([run.choices["sampler"], own], sort_keys=True, default=str)
        by_config.setdefault(key, {}).setdefault(run.seed, run)
    groups = [[seeds[seed] for seed in sorted(seeds)] for seeds in by_config.values()]
    arms = []
    for group in groups:
        sampler = group[0].choices["sampler"]
        same = [other[0] for other in groups if other[0].choices["sampler"] == sampler]
        own = [f"{key}={group[0].config.get(key)}" for key in differing_keys(same)]
        arms.append(Arm(" ".join([sampler, *own]), group))
    return sorted(arms, key=lambda arm: arm.name)


def differing_keys(runs: Sequence[FinishedRun]) -> list[str]:
    """The keys of the configuration in which runs differ, besides those that are each run's own."""
    keys = {key: None for run in runs for key in run.config if key.split(".")[0] not in _INCIDENTAL}
    return [key for key in keys if len({json.dumps(run.config.get(key), default=str) for run in runs}) > 1]
