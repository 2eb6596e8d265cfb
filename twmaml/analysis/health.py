"""How the sampler of a run does, over its evaluations."""

import numpy as np

from twmaml.analysis.finished_runs import FinishedRun
from twmaml.statistics import rank_correlation

HEALTH = {
    "queue/entropy": "entropy of the distribution over cells [nats]",
    "weights/effective_sample_size": "effective sample size of a meta-batch",
    "weights/max": "largest weight of a task",
    "queue/coverage": "share of cells visited",
    "queue/loss_rank_correlation": "rank correlation of the queue with fresh losses",
    "queue/visit_rank_correlation": "rank correlation of visits with fresh losses",
}
"""Figures and their labels: columns of metrics.csv, and two that are computed from the evaluations."""

_LEAST = 3
"""Cells without which a correlation says nothing."""


def health_of(run: FinishedRun, key: str) -> np.ndarray:
    """A figure at each evaluation of a run; NaN where it is not known."""
    if key in run.metrics:
        return run.at_evaluations(key)
    evaluations = run.evaluations
    if evaluations.visits is None or evaluations.queue_losses is None:
        return np.full(len(evaluations.steps), np.nan)
    last = evaluations.losses.shape[-1] - 1
    after = min(int(run.config.get("adaptation.steps", last)), last)  # adaptations of the user's own have other keys
    held = evaluations.queue_losses if key == "queue/loss_rank_correlation" else evaluations.visits
    known = np.where(evaluations.visits > 0, held, np.nan)
    return np.array([_correlation(*each) for each in zip(known, evaluations.losses[..., after], strict=True)])


def _correlation(held: np.ndarray, fresh: np.ndarray) -> float:
    known = np.isfinite(held) & np.isfinite(fresh)
    return rank_correlation(held, fresh) if known.sum() >= _LEAST else np.nan
