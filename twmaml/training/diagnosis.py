"""The likely cause of a failed run."""

import jax.numpy as jnp
import numpy as np

from twmaml.samplers.cells import is_distribution
from twmaml.storage.files import run_log
from twmaml.training.recorder import Run


def describe_failure(run: Run, step: int, probabilities: np.ndarray | None = None) -> str:
    """The line that says why a run failed, which is logged too."""
    if probabilities is None or is_distribution(jnp.asarray(probabilities)):
        line = f"the loss of seed {run.seed} is not finite at meta-step {step}: {_likely_cause(run)}"
    else:
        line = (
            f"the probabilities of {type(run.sampler).__name__} are no distribution at meta-step {step} of seed "
            f"{run.seed}: they sum to {probabilities.sum():g}, the least is {probabilities.min():g}"
        )
    run_log(run.folder).info(line)
    return line


def _likely_cause(run: Run) -> str:
    """What a user should look at first."""
    if (run.losses < 0).any():
        return f"a score must not be negative, and the evaluation has {run.losses.min():.3g}"
    if not np.isfinite(run.first_unadapted_loss):
        return "nor is it before any training; look at the task's data and at the model"
    largest = run.latest.get("weights/max", 1.0)
    if largest > 100:
        remedy = "raise sampler.uniform_fraction" if hasattr(run.sampler, "uniform_fraction") else "bound them"
        return f"importance weights reached {largest:.3g}; {remedy}"
    if not np.median(run.losses[:, 0]) < 100 * run.first_unadapted_loss:
        return "the meta-update made the network explode; lower optimizer.learning_rate"
    return "adapting to a task diverges; lower adaptation.learning_rate or adaptation.steps"
