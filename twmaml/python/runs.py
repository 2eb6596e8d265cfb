"""Runs that are trained in memory: no files, no W&B."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from twmaml.configuration.settings import Settings
from twmaml.errors import ConfigurationError, TrainingFailedError
from twmaml.figures.data import FigureData
from twmaml.meta_learning.chunk import NO_FAILURE, Chunk
from twmaml.meta_learning.evaluation import Judgement
from twmaml.meta_learning.learner import RunState
from twmaml.python.notebook import Line, show_figures
from twmaml.python.trained import Trained
from twmaml.samplers.base import Sampler
from twmaml.space.grid import ParameterGrid
from twmaml.storage.evaluation_file import EvaluationRecord
from twmaml.training.diagnosis import Standing, describe_failure
from twmaml.training.members import Group
from twmaml.training.memory import allowed_memory
from twmaml.training.parts import Parts
from twmaml.training.process import stop_on_interrupt
from twmaml.training.programs import DoesNotFitError, Tracing
from twmaml.training.results import columns_of, records_of, summarize_splits
from twmaml.training.rows import columns_of_chunks, row_of, spent
from twmaml.training.showing import figure_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Runs:
    """The runs of an experiment, one for each of its seeds, which one program trains; `Experiment.begin` makes them.

    `runs[0]` is the first of them, and `for run in runs` goes over all.
    """

    def __init__(self, title: str, settings: Settings, parts: Parts) -> None:
        self.title, self.seeds, self._parts = title, settings.seeds, parts
        self.step = 0
        """Meta-steps that they have been trained for."""
        self._plan, self._leading = settings.plan, f"eval/{parts.evaluation.leading}"
        background = ThreadPoolExecutor()
        try:
            group = Group([parts] * len(self.seeds), self.seeds, [{}] * len(self.seeds))
            self._programs = Tracing(group, background).compiled(allowed_memory(settings.devices.memory_gib))
        except DoesNotFitError as error:
            raise ConfigurationError(f"seed={settings.seed}: {error}; train fewer at once") from error
        finally:
            background.shutdown(wait=False)  # the program of figures is compiled beside what follows
        self._states = self._programs.begin()
        self._runs = [Run(self, index) for index in range(len(self.seeds))]
        self._judged_at = -1
        self._log(None)
        self._judge()
        self._refuse_failed(self._programs.advance(self._states, 0)[1])  # a sampler may be wrong at once

    def __getitem__(self, index: int) -> "Run":
        return self._runs[index]

    def __iter__(self) -> "Iterator[Run]":
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))

    def train(self, steps: int | None = None) -> None:
        """Goes on for so many meta-steps, and evaluates at the end; as often as you like.

        Rows and evaluations come where the command line has them. Progress is shown from the third second on.

        Args:
            steps: how many; the rest of the configured ones if None.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when the chunk is done and evaluated: the runs can go on from there. A
                second Ctrl-C ends at once, and leaves them at the chunk before.
            TrainingFailedError: if a loss stops being finite. All runs stand at the meta-step that the line names.
        """
        end = self._plan.steps if steps is None else self.step + steps
        plan, first, used = replace(self._plan, steps=end), self.step, None
        with stop_on_interrupt() as stop, Line() as line:
            began = time.perf_counter()
            while self.step < end and not stop.asked:
                before = self._states
                self._advance(plan.next_stop(self.step), used)
                used = before
                if self.step == end or plan.evaluates_at(self.step):
                    self._judge()
                rate = (self.step - first) / (time.perf_counter() - began)
                mean = np.mean([run.latest[self._leading] for run in self])
                line.show(f"{self.step:,}/{end:,} meta-steps, {rate:,.0f} a second, {self._leading} {mean:.3g}")
            self._judge()
        if stop.asked:
            raise KeyboardInterrupt(stop.signal)

    def _advance(self, step: int, used: RunState | None) -> None:
        """A chunk up to a step, or to where a run fails."""
        states, chunk = self._programs.advance(self._states, step - self.step, used)
        failure = int(np.min(chunk.first_failure[: len(self)]))
        if failure == NO_FAILURE:
            self._states, self.step = states, step
            self._log(chunk)
            return
        if failure > self.step:
            self._states, sound = self._programs.advance(self._states, failure - self.step)
            self.step = failure
            self._log(sound)
        self._judge()
        self._refuse_failed(chunk)

    def _log(self, chunk: Chunk | None) -> None:
        for run in self:
            run._log(self.step, chunk)

    def _judge(self) -> None:
        """Evaluates, unless that is done at this step."""
        if self._judged_at < self.step:
            judged = jax.device_get(self._programs.evaluate(self._states))
            for run in self:
                run._judge(judged)
            self._judged_at = self.step

    def _refuse_failed(self, chunk: Chunk) -> None:
        """Raises the error of the runs that a chunk says fail at this step."""
        failed = [run for run, failure in zip(self, chunk.first_failure, strict=False) if failure == self.step]
        if failed:
            raise TrainingFailedError("; ".join(run._describe_failure() for run in failed))


class Run:
    """The training of one seed as it stands; `Runs` has it, and moves it on.

    Args:
        runs: that it is one of.
        index: which of them.
    """

    def __init__(self, runs: "Runs", index: int) -> None:
        self._runs, self._index = runs, index
        self._rows: list[dict[str, float]] = []
        self._first_unadapted_loss = float("nan")
        self.latest: dict[str, float] = {}
        """The latest value of every column of `history`: `latest["eval/cvar_10"]`."""
        self.evaluations: Mapping[str, EvaluationRecord] = {}
        """The latest evaluation by the name of its split: of every task its parameters in configured units, and the
        loss and metrics after 0, 1, ... inner steps."""

    def __repr__(self) -> str:
        leading = self._runs._leading
        title = f"{self._runs.title}, seed {self.seed}, meta-step {self.step:,}"
        return f"<{title}: {leading} {self.latest[leading]:.4g}>"

    @property
    def seed(self) -> int:
        """All of its randomness follows from it."""
        return self._runs.seeds[self._index]

    @property
    def step(self) -> int:
        """Meta-steps that it has been trained for."""
        return self._runs.step

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The columns of metrics.csv by name, `step` among them; NaN in a row without that figure."""
        figures = columns_of_chunks(self._runs._programs, self._sampler)
        columns = ["step", *figures, *columns_of(self._parts.evaluations)]
        return {name: np.array([row.get(name, np.nan) for row in self._rows]) for name in columns}

    @property
    def grid(self) -> ParameterGrid:
        """The cells of the queue."""
        return self._parts.learner.family.grid

    @property
    def queue(self) -> dict[str, np.ndarray]:
        """What is known of each cell, in the shape of the grid: `losses`, `deltas`, `visits`, `last_visit`.

        NaN stands for a loss or a change that has not been measured, -1 for the step of no visit.
        """
        queue = jax.tree.map(self._own, self._runs._states.queue)
        return {name: values.reshape(self.grid.shape) for name, values in queue._asdict().items()}

    @property
    def probabilities(self) -> np.ndarray:
        """The sampler's distribution over cells, in the shape of the grid."""
        return self._runs._programs.illustrate(self._runs._states, self._index).probabilities.reshape(self.grid.shape)

    @property
    def trained(self) -> Trained:
        """Its initialisation, to predict with and to adapt: what `load` gives of a run on disk."""
        learner = self._parts.learner
        meta_params = jax.tree.map(lambda leaf: jnp.asarray(self._own(leaf)), self._runs._states.meta_params)
        return Trained(learner.family, learner.model, learner.adaptation, meta_params, self.step, learner.shots)

    @property
    def figure_data(self) -> FigureData:
        """All that its figures are drawn from."""
        shown = self._runs._programs.illustrate(self._runs._states, self._index)
        title = f"{self._runs.title}, seed {self.seed}, meta-step {self.step:,}"
        results = {split: record.values for split, record in self.evaluations.items()}
        return figure_data(title, self._parts, self._sampler, shown, results, self.history)

    def figure(self, name: str) -> "Figure":
        """A figure of the run, which a notebook shows.

        Args:
            name: `queue`, `evaluation`, `adaptation`, `learning_curves`, `pictures`, `learned`, `contexts`; with
                `_<split>` behind it (`evaluation_noisy`) of another split; or one of your own under `figures`.

        Raises:
            ConfigurationError: if there is none of that name, or nothing to show in it.
        """
        from twmaml.figures.run import draw_figure, figures_of  # noqa: PLC0415  brings Matplotlib

        data, own = self.figure_data, self._parts.figures
        if name not in figures_of(data, own):
            raise ConfigurationError(f"figure {name}: must be one of {', '.join(figures_of(data, own))}")
        figure = draw_figure(name, data, own)
        if figure is None:
            raise ConfigurationError(f"figure {name}: this run has nothing to show in it")
        show_figures()
        return figure

    @property
    def _parts(self) -> Parts:
        return self._runs._parts

    @property
    def _sampler(self) -> Sampler:
        return self._parts.learner.sampler

    def _own(self, leaf: Any) -> np.ndarray:
        """Its row of an array of all runs, as a copy: later steps write over the array's memory."""
        return np.array(np.asarray(leaf)[self._index])

    def _log(self, step: int, chunk: Chunk | None) -> None:
        """Begins a row, that of a chunk or the first."""
        trained = 0 if chunk is None else int(chunk.tasks_trained[self._index])
        row = spent(step, self._parts.learner.meta_batch, trained, self.latest)
        if chunk is not None:
            row |= row_of(chunk, self._index, columns_of_chunks(self._runs._programs, self._sampler))
        self._rows.append({"step": float(step), **row})
        self.latest |= row

    def _judge(self, judged: Mapping[str, Judgement]) -> None:
        """Adds an evaluation, of all runs, to the last row."""
        own = jax.tree.map(lambda values: values[self._index], dict(judged))
        self.evaluations = records_of(own, self._parts.evaluations, self._runs._programs.tasks)
        results = {split: record.values for split, record in self.evaluations.items()}
        figures = summarize_splits(results, self._parts.evaluations)
        if not self.latest.keys() & figures.keys():
            self._first_unadapted_loss = float(np.median(results["eval"]["loss"][:, 0]))
        self._rows[-1] |= figures
        self.latest |= figures

    def _describe_failure(self) -> str:
        losses = self.evaluations["eval"].values["loss"]
        standing = Standing(self.seed, self._sampler, losses, self._first_unadapted_loss, self.latest)
        return describe_failure(standing, self.step, self.probabilities.ravel())
