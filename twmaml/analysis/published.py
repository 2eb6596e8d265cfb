"""Published figures beside those of runs, and the verdict on each."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        if comparison is not None and comparison.split != split_of(figure):
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
                split=split_of(figure),
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


def split_of(figure: Mapping[str, Any]) -> str:
    """The split that a figure is of."""
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
