"""The results of an evaluation: every metric of every split, in files, in checkpoints and as figures by name."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from twmaml.meta_learning.evaluation import Evaluation, EvaluationTasks
from twmaml.space.priority_queue import PriorityQueue
from twmaml.statistics import summarize
from twmaml.storage.evaluation_file import EvaluationRecord, path_of, write

Results = Mapping[str, Mapping[str, np.ndarray]]
"""Every metric of every split, [tasks, inner steps + 1]; of all runs with a leading axis of runs."""


def columns_of(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The names of the figures, in their order."""
    nothing = {
        name: dict.fromkeys(["loss", *(m.key for m in e.metrics)], np.zeros((e.grid.size * e.draws, e.steps + 1)))
        for name, e in evaluations.items()
    }
    return [*summarize_splits(nothing, evaluations)]


def summarize_splits(results: Results, evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """The figures of all splits by metric name."""
    figures = [summarize(results[name], e.metrics, e.draws, name) for name, e in evaluations.items()]
    return {name: value for of_split in figures for name, value in of_split.items()}


def pack_results(results: Results) -> dict[str, np.ndarray]:
    """The results by the names that they have in a checkpoint."""
    named = {f"results.{split}.{metric}": array for split, own in results.items() for metric, array in own.items()}
    return {"losses" if name == "results.eval.loss" else name: array for name, array in named.items()}


def unpack_results(arrays: Mapping[str, np.ndarray]) -> Results:
    """The reverse of `pack_results`; other arrays may be among them."""
    results: dict[str, dict[str, np.ndarray]] = {"eval": {"loss": arrays["losses"]}}
    for name, array in arrays.items():
        if name.startswith("results."):
            _, split, metric = name.split(".")
            results.setdefault(split, {})[metric] = array
    return results


def write_results(
    folder: Path,
    step: int,
    results: Results,
    evaluations: Mapping[str, Evaluation],
    tasks: Mapping[str, EvaluationTasks],
    queue: PriorityQueue,
) -> None:
    """Writes the evaluation of every split of the run in a folder."""
    for split, evaluation in evaluations.items():
        fixed = tasks[split]
        cells = None if fixed.cells is None else np.asarray(fixed.cells)
        record = EvaluationRecord(
            grid=evaluation.grid,
            metrics=evaluation.metrics,
            values=results[split],
            tasks=np.asarray(fixed.tasks) / evaluation.grid.scale,
            queue_losses=None if cells is None else np.asarray(queue.losses)[cells],
            visits=None if cells is None else np.asarray(queue.visits)[cells],
        )
        write(path_of(folder, step, split), record)
