"""A run like `python -m twmaml.train`'s that prints how much of its time the host takes: `scripts/timed_run.py ...`.

That is, of the time from the first state to where figures are drawn, in percent, all that chunks alone do not take:
rows, evaluations, checkpoints, and whatever happens beside the chunks and makes them slower. What chunks take alone is
measured in the same process, before and after. Of a single run that has not begun.
"""

import time
from concurrent.futures import Executor
from typing import Any
from unittest.mock import patch

from twmaml.meta_learning.learner import RunState
from twmaml.train import main
from twmaml.training.programs import Programs
from twmaml.training.recorder import Recorder

CHUNKS = 80


class Clock:
    """Stands in for the first and the last thing that a run does, and times what is between."""

    def __init__(self) -> None:
        self._begin, self._draw = Programs.begin, Recorder.draw
        self._alone: list[float] = []
        self._first, self._began = True, 0.0

    def time_alone(self, programs: Programs, states: RunState, steps: int) -> None:
        """Times chunks of so many meta-steps with nothing between or beside them."""
        used, states = programs.advance(states, steps)[0], programs.advance(states, steps)[0]
        began = time.perf_counter()
        for _ in range(CHUNKS):
            used, states = states, programs.advance(states, steps, used)[0]
        self._alone.append((time.perf_counter() - began) / CHUNKS / steps)

    def begin(self, programs: Programs) -> RunState:
        """Times chunks, at first, and starts the clock."""
        states = self._begin(programs)
        first, self._first = self._first, False  # a chunk that reuses no states calls this too
        if first:
            self.time_alone(programs, states, 250)
            self._began = time.perf_counter()
        return states

    def draw(self, recorder: Recorder, states: RunState, drawing: Executor) -> Any:
        """Stops the clock, times chunks once more, and tells what it has found."""
        whole, steps = time.perf_counter() - self._began, recorder.result.step
        self.time_alone(recorder._programs, states, 250)
        share = 100 * (1 - steps * sum(self._alone) / 2 / whole)
        print(f"{share:.3g} % of {whole:.3g} s for {steps:,} meta-steps")
        return self._draw(recorder, states, drawing)


if __name__ == "__main__":
    clock = Clock()
    with (
        patch.object(Programs, "begin", autospec=True, side_effect=clock.begin),
        patch.object(Recorder, "draw", autospec=True, side_effect=clock.draw),
    ):
        main()
