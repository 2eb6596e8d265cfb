"""Finished runs, read back from their folders; what can't be compared is named, with the reason."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from twmaml.space.grid import ParameterGrid
from twmaml.statistics import SCORE
from twmaml.storage import evaluation_file, pictures_file, summary
from twmaml.storage.files import DamagedFileError
from twmaml.storage.flat_config import flatten_run
from twmaml.storage.metrics_file import read_metrics
from twmaml.storage.pictures_file import Pictures
from twmaml.storage.summary import Summary
from twmaml.types import Metric

# What may differ between runs of one arm: it changes no number of the result. (Keys of `sampling` reach a run only
# through its sampler, where they count.)
_INCIDENTAL = (
    *("seed", "wandb", "devices", "log_every", "figures", "figures_every", "checkpoint"),
    "sampling",
)

NAMED_PARTS = ("adaptation", "model")
"""Configuration groups by whose choice runs are told apart, instead of by every key below them."""


class LeftOut(NamedTuple):
    """A folder that is not compared."""

    folder: Path
    reason: str


class UnreadableError(Exception):
    """A folder does not hold a run that can be compared; the message says why, in a few words."""


@dataclass(frozen=True)
class Evaluations:
    """All evaluations of a run on one split."""

    split: str
    steps: np.ndarray
    """Meta-steps, [evaluations]."""
    metrics: Sequence[Metric]
    """The score, and the family's further metrics."""
    values: Mapping[str, np.ndarray]
    """The score's under `loss`, the others' under their keys; each [evaluations, tasks, inner steps + 1]."""
    queue_losses: np.ndarray | None
    """The queue's loss for the cell of each task, [evaluations, tasks]; NaN where it had not been visited. None
    where the queue has no cells for these tasks."""
    visits: np.ndarray | None
    """How often that cell had been drawn, [evaluations, tasks]; None likewise."""
    tasks: np.ndarray
    """Parameters in their configured units, [tasks, axes]."""
    grid: ParameterGrid
    """The evaluation's, whose cells hold the same number of tasks each."""

    @property
    def losses(self) -> np.ndarray:
        """The score's values."""
        return self.values[SCORE]

    @property
    def draws(self) -> int:
        """Tasks of a cell."""
        return len(self.tasks) // self.grid.size

    def at(self, place: int) -> dict[str, np.ndarray]:
        """The values of one of the evaluations, each [tasks, inner steps + 1]."""
        return {key: values[place] for key, values in self.values.items()}

    def protocol(self) -> tuple[Any, ...]:
        """Equal for runs that were judged on the same tasks, by the same metrics, after as many inner steps."""
        return evaluation_file.axes_text(self.grid), self.tasks.shape, self.losses.shape[-1], tuple(self.metrics)


@dataclass(frozen=True)
class FinishedRun:
    """A run that has trained all its meta-steps."""

    folder: Path
    seed: int
    choices: Mapping[str, str]
    """The choice of each configuration group."""
    composed: Mapping[str, Any]
    """The configuration, interpolations resolved."""
    config: Mapping[str, Any]
    """The same by the keys that a user types."""
    summary: Summary
    metrics: Mapping[str, np.ndarray]
    """metrics.csv by column."""
    evaluations: Evaluations
    overrides: Sequence[str]
    """Of the configuration, that it was started with."""
    pictures: Pictures | None
    """Three tasks of `eval` before and after adapting, of a family that shows them; None with another split."""

    def at_evaluations(self, column: str) -> np.ndarray:
        """A column of metrics.csv at each evaluation."""
        return self.metrics[column][np.isin(self.metrics["step"], self.evaluations.steps)]

    def has(self, override: str) -> bool:
        """Whether it was started with an override, or has what that would set."""
        key, _, choice = override.partition("=")
        if override in self.overrides or key in self.choices:
            return override in self.overrides or self.choices[key] == choice
        return key in self.config and self.config[key] == OmegaConf.select(OmegaConf.from_dotlist([override]), key)


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed."""

    name: str
    runs: Sequence[FinishedRun]

    @property
    def seeds(self) -> list[int]:
        """Their seeds, in the same order."""
        return [run.seed for run in self.runs]


def read_runs(paths: Iterable[Path], split: str = "eval") -> tuple[list[FinishedRun], list[LeftOut]]:
    """Reads every run in or below the given folders, with its evaluations on a split.

    Returns:
        The runs that can be compared with each other, and every other folder of a run. Where runs were judged by
        different tasks, those of the most common kind stay.
    """
    runs: list[FinishedRun] = []
    left_out: list[LeftOut] = []
    for folder in _run_folders(paths):
        try:
            runs.append(read_run(folder, split))
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
    own = {"shots", *(f"evaluation.{key}" for key in ("seed", "draws", "inside_cells", "queries"))}
    return {
        key: value
        for key, value in sorted(run.config.items())
        if key in own
        or key.startswith(f"evaluation.splits.{run.evaluations.split}.")
        or (key.startswith("task.") and key.split(".")[-1] not in ("cells", "evaluation_cells"))
    }


def _difference(run: FinishedRun, other: FinishedRun) -> str:
    """The keys that set a run apart from the common kind."""
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


def read_run(folder: Path, split: str = "eval") -> FinishedRun:
    """Reads one run with its evaluations on a split. Nothing in its files is executed.

    Raises:
        UnreadableError: if it is unfinished, failed or damaged, or was not judged on the split.
    """
    try:
        found = _read_summary(folder)
        job = folder if (folder / ".hydra").is_dir() else folder.parent
        config: Any = OmegaConf.to_container(OmegaConf.load(job / ".hydra" / "config.yaml"), resolve=True)
        hydra: Any = OmegaConf.to_container(OmegaConf.load(job / ".hydra" / "hydra.yaml"))["hydra"]  # type: ignore[index]
        metrics = read_metrics(folder / "metrics.csv")
        if split not in (known := evaluation_file.splits_of(folder)):
            raise UnreadableError(f"not judged on {split}, only on {', '.join(known)}")
        evaluations = _read_evaluations(folder, metrics, split)
        if metrics["step"][-1] != found.step or evaluations.steps[-1] != found.step:
            raise UnreadableError(f"its files end before meta-step {found.step}")
        return FinishedRun(
            folder=folder,
            seed=found.seed,
            choices={key: str(choice) for key, choice in hydra["runtime"]["choices"].items()},
            composed=config,
            config=flatten_run(config),
            summary=found,
            metrics=metrics,
            evaluations=evaluations,
            overrides=hydra.get("overrides", {}).get("task", []),
            pictures=pictures_file.read(folder) if split == "eval" else None,
        )
    except DamagedFileError as error:
        raise UnreadableError(str(error)) from error
    except FileNotFoundError as error:
        raise UnreadableError(f"{Path(error.filename).name} is missing") from error
    except (
        OSError,
        ValueError,  # malformed CSV
        LookupError,
        TypeError,
        OmegaConfBaseException,
        YAMLError,
    ) as error:
        raise UnreadableError(f"damaged: {' '.join(str(error).split())[:120]}") from error


def _read_summary(folder: Path) -> Summary:
    try:
        found = summary.read(folder)
    except FileNotFoundError as error:
        began = (folder / "metrics.csv").exists()
        raise UnreadableError("unfinished" if began else "has not begun") from error
    if found.status != summary.FINISHED:
        raise UnreadableError(found.status)
    return found


def _read_evaluations(folder: Path, metrics: Mapping[str, np.ndarray], split: str) -> Evaluations:
    steps = metrics["step"][~np.isnan(metrics[f"{split}/diverged_step_0"])].astype(int)
    files = [evaluation_file.read(evaluation_file.path_of(folder, step, split)) for step in steps.tolist()]
    last = files[-1]
    return Evaluations(
        split=split,
        steps=steps,
        metrics=last.metrics,
        values={key: np.stack([file.values[key] for file in files]) for key in last.values},
        queue_losses=_stack([file.queue_losses for file in files]),
        visits=_stack([file.visits for file in files]),
        tasks=last.tasks,
        grid=last.grid,
    )


def _stack(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [array for array in arrays if array is not None]
    return np.stack(known) if known else None


def group_runs(runs: Sequence[FinishedRun]) -> list[Arm]:
    """Runs that differ only in their seed, under the name of their sampler.

    Where one sampler has several configurations, the name tells them apart by the adaptation and the model, and by the
    keys that differ besides. Of a seed that was trained twice the first run counts.
    """
    by_config: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        key = json.dumps([run.choices["sampler"], counting(run.config)], sort_keys=True, default=str)
        by_config.setdefault(key, {}).setdefault(run.seed, run)
    groups = [[seeds[seed] for seed in sorted(seeds)] for seeds in by_config.values()]
    arms = []
    for group in groups:
        first, sampler = group[0], group[0].choices["sampler"]
        same = [other[0] for other in groups if other[0].choices["sampler"] == sampler]
        parts = [part for part in NAMED_PARTS if len({run.choices.get(part) for run in same}) > 1]
        alike = [run for run in same if all(run.choices.get(part) == first.choices.get(part) for part in parts)]
        own = [f"{part}={first.choices.get(part)}" for part in parts]
        own += [f"{key}={first.config.get(key)}" for key in differing_keys(same) if key.split(".")[0] not in parts]
        own += [f"{key}={first.config.get(key)}" for key in differing_keys(alike) if key.split(".")[0] in parts]
        arms.append(Arm(" ".join([sampler, *own]), group))
    return sorted(arms, key=lambda arm: arm.name)


def counting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a flat configuration on which the numbers of a result depend."""
    return {key: value for key, value in config.items() if key.split(".")[0] not in _INCIDENTAL}


def differing_keys(runs: Sequence[FinishedRun]) -> list[str]:
    """The keys of the configuration in which runs differ, besides those that are each run's own."""
    keys = {key: None for run in runs for key in counting(run.config)}
    return [key for key in keys if len({json.dumps(run.config.get(key), default=str) for run in runs}) > 1]
