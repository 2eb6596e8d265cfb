"""Published results, reproduced and compared."""

import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twmaml.analysis.comparison import Comparison
    from twmaml.analysis.finished_runs import Arm, FinishedRun


Compose = Callable[[Sequence[str], Mapping[str, Any]], Mapping[str, Any]]
"""Makes a configuration out of overrides, and of values by key that count more."""


@dataclass(frozen=True)
class Reproduced:
    """A published figure and ours."""

    metric: str
    arm: str
    inner_steps: int
    split: str
    at: str
    """`last`, or `best`: which evaluation of the runs, that in the end or that at the best checkpoint."""
    published: float | None
    """None where there is none, be it that there is a re-run."""
    read: str
    """Where the published one stands: in a `text`, a table say, in a `figure`; or `derived` from what was published."""
    read_to: float
    """How exactly the published one could be read off."""
    published_sd: float | None
    """Its standard deviation over runs, if that was published."""
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
    compose: Compose,
) -> list[Reproduced]:
    """Trains a preset, unless there are runs of it, and writes `reproduction.json` beside them.

    Exits with code 1 at the end if a run has failed. What its runs have otherwise than the preset, which `compose`
    composes, is a note.

    Raises:
        ValueError: if there is no data to train on or no run to compare; the message is one line.
    """
    folder = runs or Path("outputs") / "reproduce" / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    failed = False
    if runs is None:
        failed = _train(name, preset, seeds or preset["seeds"], [*_lead_to(data, name, preset), *overrides], folder)
    elif seeds is not None or overrides:
        raise ValueError(f"--runs {runs}: are there already; --seeds and overrides are of runs that are to be trained")
    elif not runs.is_dir():
        raise ValueError(f"--runs {runs}: there is no such folder")
    from twmaml.analysis.finished_runs import read_runs  # noqa: PLC0415  half a second that training need not wait for

    found: list[Reproduced] = []
    protocols: dict[str, None] = {}
    finished, left_out = read_runs([folder])
    for split in dict.fromkeys(_split_of(figure) for figure in preset["figures"]):
        comparisons = compare_runs(preset, read_runs([folder], split)[0])
        found += compare_with(preset, comparisons)
        protocols |= dict.fromkeys(comparisons["last"].protocols if comparisons else [])
    if not found:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in left_out[:3])
        raise ValueError(f"{folder}: no finished run that the preset {name} can be compared with. {reasons}".rstrip())
    notes = [*preset["protocol"], *_settings_of(preset), *protocols]
    steps = {run.config["steps"] for run in finished}
    configs = {arm.name: arm.runs[0].config for arm in arms_of(preset, finished)}
    notes += dict.fromkeys(changes_here(name, preset, configs, compose))
    notes += [f"left out: {path} ({reason})" for path, reason in left_out]
    notes.append(f"meta-steps of these runs: {', '.join(f'{step:,}' for step in sorted(steps))}")
    _print(preset, found, notes)
    report = {"preset": name, "source": preset["source"], "notes": notes, "figures": [asdict(each) for each in found]}
    (folder / "reproduction.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"  saved      {folder}/reproduction.json\n  compare    python -m twmaml.compare {folder}")
    if failed:
        sys.exit(1)
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


def _settings_of(preset: Mapping[str, Any]) -> Iterator[str]:
    """A sentence on each arm that is not called as its sampler."""
    for arm, overrides in preset["arms"].items():
        if overrides != [f"sampler={arm}"]:
            yield f"{arm} is {' '.join(overrides)}"


def changes_here(
    name: str, preset: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]], compose: Compose
) -> Iterator[str]:
    """A sentence on each value that the runs of an arm have otherwise than the preset; their configurations by arm."""
    from twmaml.analysis.finished_runs import counting  # noqa: PLC0415
    from twmaml.storage.flat_config import flatten_run  # noqa: PLC0415

    for arm, config in configs.items():
        changes: Any = {}
        if "data" in preset:
            changes = config.get(preset["data"])
            for part in reversed(preset["data"].split(".")):
                changes = {part: changes}
        asked = counting(flatten_run(compose([f"experiment={name}", *preset["arms"][arm]], changes)))
        own = counting(config)
        for key in {**asked, **own}:
            if json.dumps(own.get(key), default=str) != json.dumps(asked.get(key), default=str):
                yield f"changed here: {key}={own.get(key)} instead of {asked.get(key)}"


def _train(name: str, preset: Mapping[str, Any], seeds: int, overrides: Sequence[str], folder: Path) -> bool:
    """Runs the preset by the command line, as a user would, so that what is reproduced is what users get.

    Returns:
        Whether a run has failed; its line is printed.
    """
    commands, failed = commands_of(name, preset, seeds, overrides, folder), False
    for number, (own_folder, command) in enumerate(commands, 1):
        print(f"twmaml: {_shown(command)}", flush=True)
        code = _run(command)
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            for _, later in commands[number:]:
                print(f"twmaml: not begun: {_shown(later)}", flush=True)
            raise KeyboardInterrupt
        if code and not own_folder.exists():  # the line that says why is printed already
            sys.exit(code)
        failed |= code != 0
    return failed


def _run(command: Sequence[str]) -> int:
    """Runs a command; its exit code. Ctrl-C reaches it too, and it is waited for while it leaves all in order."""
    process = subprocess.Popen(command)
    while True:
        with suppress(KeyboardInterrupt):
            return process.wait()


def _shown(command: Sequence[str]) -> str:
    return " ".join(["python", *command[1:]])


def commands_of(
    name: str, preset: Mapping[str, Any], seeds: int, overrides: Sequence[str], folder: Path
) -> list[tuple[Path, list[str]]]:
    """The sweeps of a preset and their folders: arms of which only the sampler differs share one."""
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for arm, of_arm in preset["arms"].items():
        (sampler,) = (each.removeprefix("sampler=") for each in of_arm if each.startswith("sampler="))
        alike.setdefault(tuple(each for each in of_arm if not each.startswith("sampler=")), {})[arm] = sampler
    found = []
    for others, samplers in alike.items():
        own_folder = folder if len(alike) == 1 else folder / "+".join(samplers)
        command = [sys.executable, "-m", "twmaml.train", "--multirun", f"experiment={name}"]
        command += [f"sampler={','.join(samplers.values())}", f"seed={','.join(map(str, range(seeds)))}"]
        found.append((own_folder, [*command, *others, *overrides, f"hydra.sweep.dir={own_folder}"]))
    return found


def arms_of(preset: Mapping[str, Any], runs: "Sequence[FinishedRun]") -> "list[Arm]":
    """The arms of a preset of which there are runs. A run is of the arm of which it has the most overrides.

    Raises:
        ValueError: if runs of an arm differ in more than their seeds.
    """
    from twmaml.analysis.finished_runs import Arm, group_runs  # noqa: PLC0415

    found: dict[str, Arm] = {}
    for group in group_runs(runs):
        whole = {arm: own for arm, own in preset["arms"].items() if all(map(group.runs[0].has, own))}
        if whole:
            name = max(whole, key=lambda arm: len(whole[arm]))
            if name in found:
                folders = ", ".join(str(arm.runs[0].folder) for arm in (found[name], group))
                raise ValueError(f"there are runs of {name} of several configurations: {folders}")
            found[name] = Arm(name, group.runs)
    return [found[name] for name in preset["arms"] if name in found]


def compare_runs(preset: Mapping[str, Any], runs: "Sequence[FinishedRun]") -> "dict[str, Comparison]":
    """The arms of a preset at their `last` evaluation, and those that have one at their `best`."""
    from twmaml.analysis.alignment import at_best, by_budget  # noqa: PLC0415
    from twmaml.analysis.comparison import Comparison  # noqa: PLC0415

    arms = arms_of(preset, runs)
    chosen = [arm for arm in arms if all(run.summary.best_step is not None for run in arm.runs)]
    kinds = {"last": (arms, by_budget), "best": (chosen, at_best)}
    return {kind: Comparison(of_kind, None, align=align) for kind, (of_kind, align) in kinds.items() if of_kind}


def compare_with(preset: Mapping[str, Any], comparisons: "Mapping[str, Comparison]") -> list[Reproduced]:
    """Every published figure for which there are runs, and ours."""
    found = []
    for figure in preset["figures"]:
        metric, name, k, at = figure["metric"], figure["arm"], figure["inner_steps"], figure.get("at", "last")
        comparison = comparisons.get(at)
        if comparison is not None and comparison.split != _split_of(figure):
            continue
        arm = next((arm for arm in comparison.arms if arm.name == name), None) if comparison else None
        if comparison is None or arm is None or k not in comparison.inner_steps or metric not in comparison.measures:
            continue
        ours, low, high = (float(part[-1, k]) for part in comparison.estimates[metric, name])
        of_seeds = sorted(comparison.values(arm, metric)[:, -1, k].tolist())
        published, read_to = figure.get("published"), figure.get("read_to", 0.0)
        plus_minus = figure.get("published_plus_minus")
        interval = comparison.key("task_interval", comparison.measures[metric].metric)
        over_tasks = float(comparison.estimates[interval, name].value[-1, k])
        found.append(
            Reproduced(
                metric=metric,
                arm=name,
                inner_steps=k,
                split=_split_of(figure),
                at=at,
                published=published,
                read=figure.get("read", "text"),
                read_to=read_to,
                published_sd=figure.get("published_sd"),
                published_plus_minus=plus_minus,
                rerun=figure.get("rerun"),
                rerun_plus_minus=figure.get("rerun_plus_minus"),
                ours=ours,
                low=low,
                high=high,
                ours_plus_minus=None if plus_minus is None else over_tasks,
                of_seeds=of_seeds,
                verdict=figure.get("no_verdict") or judge(ours, of_seeds, published, read_to, plus_minus),
            )
        )
    return found


def _split_of(figure: Mapping[str, Any]) -> str:
    return figure.get("split", "eval")


def judge(
    ours: float, of_seeds: Sequence[float], published: float | None, read_to: float, plus_minus: float | None = None
) -> str:
    """Whether a published figure could be one more seed of ours.

    What was published is one trained network, which varies as much as one seed does: it is held against the range of
    our seeds, not against the interval of their mean, which is narrower the more seeds there are. Where it has an
    interval of its own, over the tasks that it was tested on, it agrees as well if our mean lies in that.
    """
    if published is None:
        return "nothing published"
    off = f"our mean is {ours / published - 1:+.0%}"
    if len(of_seeds) < 2:
        return f"undecided with one seed; {off}"
    if of_seeds[0] - read_to <= published <= of_seeds[-1] + read_to:
        return f"agrees: inside the range of our seeds; {off}"
    if plus_minus is not None and abs(ours - published) <= plus_minus:
        return f"agrees: our mean is inside the published interval; {off}"
    return f"differs: outside the range of our seeds; {off}"


_LEFT = ("figure", "arm", "split", "at", "verdict")


def _print(preset: Mapping[str, Any], found: Sequence[Reproduced], notes: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(title=f"{preset['title']}\n{preset['source']}", title_justify="left", header_style="bold")
    rows = [_row(each) for each in found]
    for column in ("split", "at"):  # where it is the same of all
        if len({row[column] for row in rows}) == 1:
            for row in rows:
                row[column] = ""
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
    if any(each.published_sd is not None for each in found):
        console.print(
            "  published ±: standard deviation over runs; of a figure, how exactly it was read", soft_wrap=True
        )
    if any(each.ours_plus_minus is not None for each in found):
        console.print("  ± over tasks: half the 95 % interval of one network's mean, mean over seeds", soft_wrap=True)
    for note in notes:
        console.print(f"  protocol: {note}", markup=False, soft_wrap=True)


def _row(each: Reproduced) -> dict[str, str]:
    """The cells of a figure by column, empty where there is nothing."""
    published = _number(each.published, each.published_plus_minus or each.published_sd or each.read_to)
    interval = "" if math.isnan(each.low) else f" \\[{each.low:.3f}, {each.high:.3f}]"
    return {
        "figure": each.metric,
        "arm": each.arm,
        "inner steps": str(each.inner_steps),
        "split": each.split,
        "at": each.at,
        "published": published if each.read == "text" or not published else f"{published} ({each.read})",
        "re-run": _number(each.rerun, each.rerun_plus_minus),
        "ours [95 %]": f"{each.ours:.3f}{interval}",
        "± over tasks": "" if each.ours_plus_minus is None else f"{each.ours_plus_minus:.2g}",
        "median": f"{statistics.median(each.of_seeds):.3f}",
        "range over seeds": f"{each.of_seeds[0]:.3f} to {each.of_seeds[-1]:.3f}",
        "verdict": each.verdict,
    }


def _number(value: float | None, plus_minus: float | None) -> str:
    return "" if value is None else f"{value:.4g}" + (f" ± {plus_minus:.2g}" if plus_minus else "")
