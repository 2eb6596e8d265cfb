"""The likely cause of a run's failure."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from twmaml.samplers.base import Sampler
from twmaml.samplers.cells import is_distribution


class Standing(NamedTuple):
    """A run just before it failed."""

    seed: int
    sampler: Sampler
    losses: np.ndarray
    """Scores of the split `eval`, [tasks, inner steps + 1]."""
    first_unadapted_loss: float
    """Their median before any training and adapting."""
    latest: Mapping[str, float]
    """The latest figures by name."""


def describe_failure(run: Standing, step: int, probabilities: np.ndarray | None = None) -> str:
    """The line that says why a run failed.

    Args:
        run: that failed.
        step: of the failure.
        probabilities: of its sampler then, where they may be wrong.
    """
    if probabilities is None or is_distribution(jnp.asarray(probabilities)):
        return f"the loss of seed {run.seed} is not finite at meta-step {step}: {_likely_cause(run)}"
    return (
        f"the probabilities of {type(run.sampler).__name__} are no distribution at meta-step {step} of seed "
        f"{run.seed}: they sum to {probabilities.sum():g}, the least is {probabilities.min():g}"
    )


def _likely_cause(run: Standing) -> str:
    """The first thing that a user should look at."""
    if (run.losses < 0).any():
        return f"a score must not be negative, and the evaluation has {run.losses.min():.3g}"
    if not np.isfinite(run.first_unadapted_loss):
        return "nor is it before any training; look at the task's data and at the model"
    largest = run.latest.get("weights/max", 1.0)
    if largest > 100:
        return f"weights of tasks reached {largest:.3g}; {run.sampler.remedy}"
    if not np.median(run.losses[:, 0]) < 100 * run.first_unadapted_loss:
        return "the meta-update made the network explode; lower optimizer.learning_rate"
    return "adapting to a task diverges; lower adaptation.learning_rate or adaptation.steps"
