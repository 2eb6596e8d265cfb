"""Published results, reproduced and compared."""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twmaml.analysis.comparison import Comparison


@dataclass(frozen=True)
class Reproduced:
    """A published figure and ours."""

    metric: str
    sampler: str
    inner_steps: int
    published: float | None
    """None where there is only a re-run."""
    read_to: float
    """How exactly the published one could be read off."""
    published_plus_minus: float | None
    """Half its 95 % interval over tasks, if that was published."""
    rerun: float | None
    rerun_plus_minus: float | None
    ours: float
    low: float
    high: float
    """Ours, with its 95 % bootstrap interval over seeds."""
    ours_plus_minus: float | None
    """Half the 95 % interval over tasks of one network, mean over seeds; where it was published."""
    of_seeds: list[float]
    """Ours of each seed, in ascending order."""
    verdict: str


def reproduce(
    name: str,
    preset: Mapping[str, Any],
    seeds: int | None,
    overrides: Sequence[str],
    data: Path | None,
    runs: Path | None,
) -> list[Reproduced]:
    """Trains a preset, unless there are runs of it, and writes `reproduction.json` beside them.

    Raises:
        ValueError: if there is no data to train on or no run to compare; the message is one line.
    """
    folder = runs or Path("outputs") / "reproduce" / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    if runs is None:
        _train(name, preset, seeds or preset["seeds"], [*_lead_to(data, name, preset), *overrides], folder)
    elif not runs.is_dir():
        raise ValueError(f"--runs {runs}: there is no such folder")
    from twmaml.analysis.comparison import Comparison  # noqa: PLC0415  half a second that training need not wait for
    from twmaml.analysis.finished_runs import group_runs, read_runs  # noqa: PLC0415

    finished, left_out = read_runs([folder])
    arms = group_runs(finished)
    comparison = Comparison(arms, None)
    found = compare_with(preset, comparison) if arms else []
    if not found:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in left_out[:3])
        raise ValueError(f"{folder}: no finished run that the preset {name} can be compared with. {reasons}".rstrip())
    notes = [*preset["protocol"], *comparison.protocols]
    steps = {run.config["steps"] for run in finished}
    notes += [f"changed here: {override}" for override in overrides]
    notes += [f"left out: {path} ({reason})" for path, reason in left_out]
    notes.append(f"meta-steps of these runs: {', '.join(f'{step:,}' for step in sorted(steps))}")
    _print(preset, found, notes)
    report = {"preset": name, "source": preset["source"], "notes": notes, "figures": [asdict(each) for each in found]}
    (folder / "reproduction.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"  saved      {folder}/reproduction.json\n  compare    python -m twmaml.compare {folder}")
    return found


def _lead_to(data: Path | None, name: str, preset: Mapping[str, Any]) -> list[str]:
    """The override that leads the runs of a preset to their data, if it needs any."""
    if "data" not in preset:
        if data is not None:
            raise ValueError(f"--data {data}: {name} needs none")
        return []
    if data is None:
        raise ValueError(f"{name} needs --data FOLDER: {preset['data_help']}")
    if not data.is_dir():
        raise ValueError(f"--data {data}: there is no such folder")
    quoted = str(data.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return [f"{preset['data']}='{quoted}'"]


def _train(name: str, preset: Mapping[str, Any], seeds: int, overrides: Sequence[str], folder: Path) -> None:
    """Runs the preset by the command line, as a user would, so that what is reproduced is what users get."""
    command = [sys.executable, "-m", "twmaml.train", "--multirun", f"experiment={name}"]
    command += [f"sampler={','.join(preset['samplers'])}", f"seed={','.join(map(str, range(seeds)))}"]
    command += [*overrides, f"hydra.sweep.dir={folder}"]
    print(f"twmaml: {' '.join(['python', *command[1:]])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code and not folder.exists():  # the line that says why is printed already
        sys.exit(code)


def compare_with(preset: Mapping[str, Any], comparison: "Comparison") -> list[Reproduced]:
    """Every published figure for which there are runs, and ours at the last evaluation."""
    arms = {arm.name: arm for arm in comparison.arms}
    found = []
    for figure in preset["figures"]:
        metric, sampler, k = figure["metric"], figure["sampler"], figure["inner_steps"]
        if sampler not in arms or k not in comparison.inner_steps or metric not in comparison.measures:
            continue
        ours, low, high = (float(part[-1, k]) for part in comparison.estimates[metric, sampler])
        of_seeds = sorted(comparison.values(arms[sampler], metric)[:, -1, k].tolist())
        published, read_to = figure.get("published"), figure.get("read_to", 0.0)
        plus_minus = figure.get("published_plus_minus")
        interval = comparison.key("task_interval", comparison.measures[metric].metric)
        over_tasks = float(comparison.estimates[interval, sampler].value[-1, k])
        found.append(
            Reproduced(
                metric=metric,
                sampler=sampler,
                inner_steps=k,
                published=published,
                read_to=read_to,
                published_plus_minus=plus_minus,
                rerun=figure.get("rerun"),
                rerun_plus_minus=figure.get("rerun_plus_minus"),
                ours=ours,
                low=low,
                high=high,
                ours_plus_minus=None if plus_minus is None else over_tasks,
                of_seeds=of_seeds,
                verdict=judge(ours, of_seeds, published, read_to),
            )
        )
    return found


def judge(ours: float, of_seeds: Sequence[float], published: float | None, read_to: float) -> str:
    """Whether a published figure could be one more seed of ours.

    What was published is one trained network, which varies as much as one seed does: it is held against the range of
    our seeds, not against the interval of their mean, which is narrower the more seeds there are.
    """
    if published is None:
        return "nothing published"
    off = f"our mean is {ours / published - 1:+.0%}"
    if len(of_seeds) < 2:
        return f"undecided with one seed; {off}"
    inside = of_seeds[0] - read_to <= published <= of_seeds[-1] + read_to
    return f"{'agrees: inside' if inside else 'differs: outside'} the range of our seeds; {off}"


_LEFT = ("figure", "sampler", "verdict")


def _print(preset: Mapping[str, Any], found: Sequence[Reproduced], notes: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(title=f"{preset['title']}\n{preset['source']}", title_justify="left", header_style="bold")
    rows = [_row(each) for each in found]
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    for column in columns:
        table.add_column(column, justify="left" if column in _LEFT else "right")
    for row in rows:
        table.add_row(*(row[column] or "–" for column in columns))
    console.print(table)
    if any(each.rerun is not None for each in found):
        console.print(f"  re-run: {preset['rerun']}", soft_wrap=True)
    counts = sorted({len(each.of_seeds) for each in found})
    console.print(
        f"  ours: mean over {' or '.join(map(str, counts))} seeds \\[95 % bootstrap interval of it]", soft_wrap=True
    )
    if any(each.ours_plus_minus is not None for each in found):
        console.print("  ± over tasks: half the 95 % interval of one network's mean, mean over seeds", soft_wrap=True)
    for note in notes:
        console.print(f"  protocol: {note}", markup=False, soft_wrap=True)


def _row(each: Reproduced) -> dict[str, str]:
    """The cells of a figure by column, empty where there is nothing."""
    interval = "" if math.isnan(each.low) else f" \\[{each.low:.3f}, {each.high:.3f}]"
    return {
        "figure": each.metric,
        "sampler": each.sampler,
        "inner steps": str(each.inner_steps),
        "published": _number(each.published, each.published_plus_minus or each.read_to),
        "re-run": _number(each.rerun, each.rerun_plus_minus),
        "ours [95 %]": f"{each.ours:.3f}{interval}",
        "± over tasks": "" if each.ours_plus_minus is None else f"{each.ours_plus_minus:.2g}",
        "median": f"{statistics.median(each.of_seeds):.3f}",
        "range over seeds": f"{each.of_seeds[0]:.3f} to {each.of_seeds[-1]:.3f}",
        "verdict": each.verdict,
    }


def _number(value: float | None, plus_minus: float | None) -> str:
    return "" if value is None else f"{value:.4g}" + (f" ± {plus_minus:.2g}" if plus_minus else "")
