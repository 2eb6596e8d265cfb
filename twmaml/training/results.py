"""The results of an evaluation: every metric of every split, as records, in checkpoints and as figures by name."""

from collections.abc import Mapping

import jax
import numpy as np

from twmaml.meta_learning.evaluation import Evaluation, EvaluationTasks, Judgement
from twmaml.statistics import summarize
from twmaml.storage.evaluation_file import EvaluationRecord

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


def records_of(
    judged: Mapping[str, Judgement], evaluations: Mapping[str, Evaluation], tasks: Mapping[str, EvaluationTasks]
) -> dict[str, EvaluationRecord]:
    """The evaluation of every split of one run."""
    records = {}
    for split, evaluation in evaluations.items():
        own = jax.tree.map(np.asarray, judged[split])
        records[split] = EvaluationRecord(
            grid=evaluation.grid,
            metrics=evaluation.metrics,
            values=own.results,
            tasks=np.asarray(tasks[split].tasks) / evaluation.grid.scale,
            queue_losses=own.queue_losses,
            visits=own.visits,
        )
    return records
