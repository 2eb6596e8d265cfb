"""The lines that a person sees while a run goes on. Without a terminal: the first and the last ones only."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from twmaml.jobs.report import mean_metrics
from twmaml.statistics import SCORE
from twmaml.training.runs import RunResult


class _StepsPerSecond(ProgressColumn):
    """The rate since training began, compilation left out."""

    def render(self, task: Task) -> Text:
        rate = task.fields["rate"]
        return Text("" if rate is None else f"{rate:,.0f} steps/s", style="cyan")


Rows = Sequence[tuple[int, Mapping[str, float]]]
"""Figures by name after some inner steps."""


class Terminal:
    """The output of one job.

    Args:
        steps: meta-steps that the job goes on for, summed over its runs.
        metric: key of what is shown while it does.
        losses_if_narrow: whether the latest losses are shown in a terminal of 80 columns, too.
    """

    def __init__(self, steps: int, metric: str, losses_if_narrow: bool = True) -> None:
        self.console = Console(highlight=False, markup=False)
        narrow = self.console.width < 110  # whatever does not fit there would be cut off at the end of each column
        self._shows_losses = not narrow or losses_if_narrow
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8 if narrow else 30),
            TextColumn("{task.completed:,}/{task.total:,}"),
            _StepsPerSecond(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[losses]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("compiling, starting W&B", total=steps, rate=None, losses="")
        self._began: tuple[float, int] | None = None
        self._runs: dict[Path, RunResult] = {}
        self._metric = metric
        self._before, self._label = 0, ""  # steps that were done before these, and a name for them

    def __enter__(self) -> "Terminal":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, title: str, facts: Mapping[str, str]) -> None:
        """Says what is about to run."""
        self.console.print(title, style="bold", soft_wrap=True)
        if self.console.is_terminal:
            for name, fact in facts.items():
                self.console.print(f"  {name:<10} {fact}", soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints one line above the progress bar."""
        self.console.print(text, soft_wrap=True)

    def update(self, stage: str, runs: Sequence[RunResult]) -> None:
        """Shows the steps done, what is being done and the latest losses, of all runs that it has been told of."""
        self._runs |= {run.folder: run for run in runs}
        steps = sum(run.step for run in self._runs.values())
        now = time.perf_counter()
        if self._began is None:
            self._began = (now, steps)
        seconds, since = now - self._began[0], steps - self._began[1]
        names = [f"{split}/{self._metric}" for split in ("train", "eval")]
        metrics = mean_metrics([*self._runs.values()], names)
        known = [f"{name.split('/')[0]} {metrics[name]:.3f}" for name in names if name in metrics]
        losses = "  ".join(known) if self._shows_losses else ""
        rate = since / seconds if since else None
        self._progress.update(
            self._task, completed=self._before + steps, description=self._label + stage, losses=losses, rate=rate
        )

    def finish(self, tables: Mapping[str, Rows], paths: Mapping[str, str | Path]) -> None:
        """The closing tables by title (one row an inner step) and where everything is."""
        for title, rows in tables.items() if self.console.is_terminal else ():
            table = Table(title=title, title_justify="left", header_style="bold")
            table.add_column("inner steps", justify="right")
            for name in rows[0][1]:
                table.add_column(name, justify="right")
            for k, figures in rows:
                table.add_row(str(k), *(f"{v:g}" if v.is_integer() else f"{v:.4f}" for v in figures.values()))
            self.console.print(table)
        for name, path in paths.items():
            self.console.print(f"  {name:<10} {path}", soft_wrap=True)


class SweepTerminal(Terminal):
    """The output of a sweep: one bar for all of its groups, and a line for the jobs that differ only in their seed."""

    def __init__(self, steps: Sequence[int], jobs: int) -> None:
        super().__init__(sum(steps), SCORE, losses_if_narrow=False)
        self._steps, self._jobs, self._groups = steps, jobs, len(steps)
        self._jobs_done = 0
        self._group, self._group_began = 0, 0.0

    def start_group(self, index: int, title: str, metric: str) -> None:
        """Names the group that the next updates are about, and the metric that they show."""
        self._metric = metric
        self._label = f"{self._jobs_done}/{self._jobs} jobs, group {index + 1}/{self._groups}: "
        if self.console.is_terminal:
            self.say(f"  group {index + 1} of {self._groups}: {title}")
        self._group, self._group_began, self._began = index + 1, time.perf_counter(), None
        self._runs, self._before = {}, sum(self._steps[:index])
        self._progress.update(self._task, description=f"{self._label}compiling", losses="", rate=None)

    def finish_group(self, results: Sequence[tuple[str, int, Sequence[float]]]) -> None:
        """Shows of each setting of a group its name, its number of jobs, and their final metric but for failed ones."""
        self._progress.update(self._task, completed=sum(self._steps[: self._group]))
        for title, jobs, values in results:
            self._jobs_done += jobs
            parts = [f"{self._jobs_done:>4}/{self._jobs} jobs  {title}:"]
            if values:
                parts.append(f"eval/{self._metric} {np.mean(values):.4f}")
            if len(values) > 1:
                parts.append(f"(sd {np.std(values, ddof=1):.4f} over {len(values)} jobs)")
            if len(values) < jobs:
                parts.append(f"{jobs - len(values)} failed")
            self.say(" ".join(parts))
        self.say(f"  group {self._group} of {self._groups} took {time.perf_counter() - self._group_began:.0f} s")

    def say_interrupted(self, done: int) -> None:
        """The last line after Ctrl-C, when so many jobs of the group were at their end."""
        self.say(f"interrupted: {self._jobs_done + done} of {self._jobs} jobs done")
