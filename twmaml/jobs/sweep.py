"""Groups of jobs, watched as a whole."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

from twmaml.configuration.settings import listed
from twmaml.errors import ConfigurationError
from twmaml.figures.pool import drawing_executor
from twmaml.jobs.job import Request, build_once, ends_of, outcome_of, steps_done
from twmaml.jobs.process import prepare_jax, stop_on_interrupt
from twmaml.jobs.report import jobs_title, mean_metrics, resume_command, shorten, upload_command
from twmaml.jobs.terminal import SweepTerminal
from twmaml.training.group import check_devices, check_memory, train_jobs
from twmaml.training.recorder import Run, RunRecord

log = logging.getLogger(__name__)


class Sweep:
    """Groups of jobs, each group one program, trained one after the other and watched as a whole.

    Args:
        groups: of each group its jobs by their numbers: the overrides that set each apart, and its configuration.
        folder: of the sweep.
    """

    def __init__(self, groups: Sequence[Mapping[int, tuple[Sequence[str], Mapping[str, Any]]]], folder: Path) -> None:
        prepare_jax()
        self._groups, self._folder = groups, folder.absolute()
        for number, (overrides, config) in chain(*[group.items() for group in groups]):
            try:
                check_devices(config["devices"]["tasks"])
                check_memory([build_once(config)])
            except ConfigurationError as error:
                raise ConfigurationError(f"job {number} ({' '.join(overrides)}): {error}") from error
        configs = [[config for _, config in group.values()] for group in groups]
        self._steps = [sum(config["steps"] * len(listed(config["seed"])) for config in group) for group in configs]
        self._runs = sum(len(listed(config["seed"])) for config in chain(*configs))
        self._terminal = SweepTerminal(sum(self._steps), sum(map(len, groups)), len(groups))
        self._paths: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Sweep":
        self._stopping = self._stack.enter_context(stop_on_interrupt())
        self._drawing = self._stack.enter_context(drawing_executor(self._runs))
        self._stack.enter_context(self._terminal)
        return self

    def __exit__(self, *error: Any) -> None:
        self._terminal.finish([], self._paths)
        if self._stopping:
            self._terminal.say(f"  go on with {resume_command(self._folder)}")
        self._stack.__exit__(*error)

    def run_group(self, index: int, requests: Mapping[int, Request]) -> dict[int, float | Exception]:
        """Trains the jobs of a group, those that could be prepared.

        Args:
            index: of the group.
            requests: by the numbers of the jobs.

        Returns:
            What each one would return alone, or the error that it would raise.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when everything up to there is on disk.
        """
        before, group = sum(self._steps[:index]), self._groups[index]
        self._terminal.start_group(index, jobs_title([*group.values()]))

        def show(stage: str, runs: Sequence[RunRecord]) -> None:
            self._terminal.update(before + steps_done(runs), stage, mean_metrics(runs))

        outcomes: dict[int, float | Exception] = {}
        try:
            if requests:
                asked = [*requests.values()]
                jobs = [build_once(request.config) for request in asked]
                runs_of_jobs = train_jobs(jobs, asked, self._stopping, self._drawing, show)
                self._note_paths(runs_of_jobs)
                if not self._stopping:  # some have not begun then
                    outcomes = dict(zip(requests, map(outcome_of, runs_of_jobs), strict=True))
        except Exception as error:
            log.info("A group of jobs failed", exc_info=True)
            outcomes = {**dict.fromkeys(requests, error), **ends_of(requests)}
        if self._stopping:
            self._terminal.say_interrupted(len(ends_of(requests)))
            raise KeyboardInterrupt(self._stopping[0])
        settings: dict[tuple[str, ...], list[int]] = {}  # what differs only in the seed is one line
        for number, (overrides, _) in group.items():
            settings.setdefault(tuple(o for o in overrides if not o.startswith("seed=")), []).append(number)
        results = []
        for numbers in settings.values():
            losses = [loss for n in numbers if isinstance(loss := outcomes.get(n), float)]
            results.append((jobs_title([group[n] for n in numbers]), len(numbers), losses))
        self._terminal.finish_group(before + self._steps[index], results)
        return outcomes

    def _note_paths(self, runs_of_jobs: Sequence[Sequence[RunRecord]]) -> None:
        folder = self._folder
        self._paths["folder"] = str(shorten(folder))
        runs = [run for runs in runs_of_jobs for run in runs if isinstance(run, Run) and run.wandb.mode == "offline"]
        if runs:
            depth = len(runs[0].folder.relative_to(folder).parts) if runs[0].folder.is_relative_to(folder) else 1
            self._paths["W&B"] = upload_command("/".join([str(shorten(folder)), *["*"] * depth]))
