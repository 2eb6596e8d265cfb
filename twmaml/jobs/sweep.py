"""Groups of jobs, watched as a whole."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

from hydra_plugins.twmaml_launcher.contract import Described, RunGroup
from twmaml.configuration.settings import listed
from twmaml.errors import ConfigurationError, TrainingFailedError
from twmaml.figures.pool import drawing_executor
from twmaml.jobs.job import (
    OBJECTIVE,
    Job,
    build_key,
    build_once,
    finished_job,
    result_of,
    train_jobs,
)
from twmaml.jobs.report import jobs_title, resume_command, upload_command
from twmaml.jobs.terminal import SweepTerminal
from twmaml.statistics import SCORE
from twmaml.storage.files import shorten
from twmaml.training.devices import check_machine
from twmaml.training.plan import Stop
from twmaml.training.process import allow_open_files, stop_on_interrupt
from twmaml.training.runs import RunResult

log = logging.getLogger(__name__)


@contextmanager
def sweep(groups: Sequence[Described], folder: Path) -> Iterator[RunGroup]:
    """Makes ready to train groups of jobs, each as one program; refuses those that the machine is too small for."""
    folder = folder.absolute()
    checked: set[str] = set()
    for number, (overrides, config) in [job for group in groups for job in group.items()]:
        if build_key(config) not in checked:
            checked.add(build_key(config))
            try:
                check_machine(build_once(config))
            except ConfigurationError as error:
                raise ConfigurationError(f"job {number} ({' '.join(overrides)}): {error}") from error
    configs = [[config for _, config in group.values()] for group in groups]
    runs = [sum(len(listed(config["seed"])) for config in group) for group in configs]
    steps = [sum(config["steps"] * len(listed(config["seed"])) for config in group) for group in configs]
    for of_group, group in zip(runs, configs, strict=True):
        allow_open_files(of_group, any(config["wandb"]["mode"] != "disabled" for config in group))
    terminal = SweepTerminal(steps, sum(map(len, groups)))
    with stop_on_interrupt() as stop, drawing_executor(sum(runs)) as drawing, terminal:
        going = Sweep(groups, folder, terminal, stop, drawing)
        try:
            yield going.run_group
        finally:
            terminal.finish({}, going.paths)
            if stop.asked:
                terminal.say(f"  go on with {resume_command(folder)}")


class Sweep:
    """A sweep that goes on."""

    def __init__(
        self, groups: Sequence[Described], folder: Path, terminal: SweepTerminal, stop: Stop, drawing: Executor
    ) -> None:
        self._groups, self._folder = groups, folder
        self._terminal, self._stop, self._drawing = terminal, stop, drawing
        self.paths: dict[str, str] = {}
        """The places of all that it has left."""

    def run_group(self, index: int, prepared: Mapping[int, Job]) -> dict[int, float | Exception]:
        """Trains the jobs of a group that could be prepared; their results, or the errors that they would raise alone.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
        """
        group = self._groups[index]
        metric = next((job.parts.evaluation.leading for job in prepared.values()), SCORE)
        self._terminal.start_group(index, jobs_title([*group.values()]), metric)
        outcomes: dict[int, float | Exception] = {}
        shown: dict[int, float | Exception] = {}
        try:
            if prepared:
                runs_of_jobs = train_jobs([*prepared.values()], self._terminal, self._stop, self._drawing)
                self._note_paths(runs_of_jobs)
                if not self._stop.asked:  # some have not begun then
                    outcomes, shown = (
                        {number: outcome_of(runs, of) for number, runs in zip(prepared, runs_of_jobs, strict=True)}
                        for of in (OBJECTIVE, f"eval/{metric}")
                    )
        except Exception as error:
            log.info("A group of jobs failed", exc_info=True)
            outcomes = {**dict.fromkeys(prepared, error), **_ends_of(prepared, OBJECTIVE)}
            shown = {**_ends_of(prepared, f"eval/{metric}")}
        if self._stop.asked:
            self._terminal.say_interrupted(len(_ends_of(prepared, OBJECTIVE)))
            raise KeyboardInterrupt(self._stop.signal)
        settings: dict[tuple[str, ...], list[int]] = {}  # what differs only in the seed is one line
        for number, (overrides, _) in group.items():
            settings.setdefault(tuple(o for o in overrides if not o.startswith("seed=")), []).append(number)
        results = []
        for numbers in settings.values():
            values = [value for n in numbers if isinstance(value := shown.get(n), float)]
            results.append((jobs_title([group[n] for n in numbers]), len(numbers), values))
        self._terminal.finish_group(results)
        return outcomes

    def _note_paths(self, runs_of_jobs: Sequence[Sequence[RunResult]]) -> None:
        folder = self._folder
        self.paths["folder"] = str(shorten(folder))
        runs = [run for of_job in runs_of_jobs for run in of_job]
        if online := {run.wandb_group_url: None for run in runs if run.wandb_mode == "online"}:
            self.paths["W&B"] = " ".join(online)
        if offline := [run.folder for run in runs if run.wandb_mode == "offline"]:
            depth = len(offline[0].relative_to(folder).parts) if offline[0].is_relative_to(folder) else 1
            self.paths["W&B later"] = upload_command("/".join([str(shorten(folder)), *["*"] * depth]))


def outcome_of(runs: Sequence[RunResult], metric: str) -> float | Exception:
    """A final metric of a job, or the error that says why it has none."""
    try:
        return result_of(runs, metric)
    except TrainingFailedError as error:
        return error


def _ends_of(jobs: Mapping[int, Job], metric: str) -> dict[int, float]:
    """A final metric of the finished jobs, by job number."""
    ends = {number: finished_job(job.config, job.folder, metric) for number, job in jobs.items()}
    return {number: end for number, end in ends.items() if end is not None}
