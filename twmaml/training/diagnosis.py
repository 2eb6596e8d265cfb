"""The end of runs that have failed: what they were just before, and the likely cause."""

from collections.abc import Sequence
from concurrent.futures import Executor

import jax.numpy as jnp
import numpy as np

from twmaml.meta_learning.chunk import NO_FAILURE, Chunk
from twmaml.meta_learning.learner import RunState
from twmaml.samplers.cells import is_distribution
from twmaml.storage.files import run_log
from twmaml.training.programs import Programs
from twmaml.training.recorder import Recorder, running


def end_failed(
    programs: Programs,
    runs: Sequence[Recorder],
    states: RunState,
    step: int,
    chunk: Chunk,
    seconds: float,
    drawing: Executor,
) -> None:
    """Ends the runs that have failed in a chunk, as they were at the step before the failure.

    The chunk began after `step` meta-steps with `states`; `seconds` is the time of all meta-steps up to its end.
    """
    failing: dict[int, list[Recorder]] = {}
    for run in runs:
        if run.running and chunk.first_failure[run.index] != NO_FAILURE:
            failing.setdefault(int(chunk.first_failure[run.index]), []).append(run)
    for failure, failed in failing.items():
        before, replayed = (states, None) if failure == step else programs.advance(states, failure - step)
        judged = programs.evaluate(before)
        for run in failed:
            with run.isolating_failures():
                statistics = run.judge(failure, judged)
                if replayed is None:  # the row of this step is written already
                    run.result.latest |= statistics
                else:
                    run.log(failure, {**run.row(failure, replayed), **statistics})
                run.draw(before, drawing)
        for run in running(failed):
            with run.isolating_failures():
                run.finish_figures()
                probabilities = programs.illustrate(before, run.index).probabilities
                run.close(describe_failure(run, failure, probabilities), seconds, len(runs))


def describe_failure(run: Recorder, step: int, probabilities: np.ndarray | None = None) -> str:
    """The line that says why a run failed, which is logged too."""
    if probabilities is None or is_distribution(jnp.asarray(probabilities)):
        line = f"the loss of seed {run.spec.seed} is not finite at meta-step {step}: {_likely_cause(run)}"
    else:
        line = (
            f"the probabilities of {type(run.spec.sampler).__name__} are no distribution at meta-step {step} of seed "
            f"{run.spec.seed}: they sum to {probabilities.sum():g}, the least is {probabilities.min():g}"
        )
    run_log(run.folder).info(line)
    return line


def _likely_cause(run: Recorder) -> str:
    """The first thing that a user should look at."""
    if (run.losses < 0).any():
        return f"a score must not be negative, and the evaluation has {run.losses.min():.3g}"
    if not np.isfinite(run.first_unadapted_loss):
        return "nor is it before any training; look at the task's data and at the model"
    largest = run.result.latest.get("weights/max", 1.0)
    if largest > 100:
        return f"weights of tasks reached {largest:.3g}; {run.spec.sampler.remedy}"
    if not np.median(run.losses[:, 0]) < 100 * run.first_unadapted_loss:
        return "the meta-update made the network explode; lower optimizer.learning_rate"
    return "adapting to a task diverges; lower adaptation.learning_rate or adaptation.steps"
