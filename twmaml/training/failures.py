"""The end of runs that have failed: what they were just before."""

from collections.abc import Sequence
from concurrent.futures import Executor

import jax

from twmaml.meta_learning.chunk import NO_FAILURE, Chunk
from twmaml.meta_learning.learner import RunState
from twmaml.training.diagnosis import describe_failure
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
        judged = jax.device_get(programs.evaluate(before))
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
                run.close(describe_failure(run.standing, failure, probabilities), seconds, len(runs))
