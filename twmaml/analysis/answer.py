"""The answer of a comparison, in a sentence or two that a reader can quote, and in one table."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import Arm
from twmaml.statistics import counted, label_of, span

FEW_SEEDS = 5
"""With fewer, an interval says nothing: a bootstrap of so few values is too narrow."""

LEVEL = 0.05
"""The level of significance of the tests, after Holm's correction."""

_WORDS = {"mean": "the mean", "cvar_10": "the worst tenth"}
"""The measures that are spoken of."""

_UNKNOWN = "in some pair of runs every task has diverged in one or the other"

_MOST_NAMED = 3
"""Samplers that a sentence names with their numbers."""


class Change(NamedTuple):
    """A sampler's difference to the baseline at a measure."""

    arm: str
    value: float
    low: float
    high: float
    p: float
    better: bool
    found: bool
    """Whether the interval does not contain zero. No gain is found where more tasks have diverged than of the baseline:
    they are the hard ones, and left out."""


def answer(comparison: Comparison) -> str:
    """Which samplers changed the mean and the worst tenth against the baseline, and how sure that is."""
    pairs = {arm.name: len(comparison.pairs(arm)) for arm in comparison.arms if comparison.pairs(arm)}
    if len(comparison.arms) == 1:
        return f"There is only {comparison.arms[0].name}, and nothing to compare it with."
    if comparison.baseline is None or not pairs:
        return "There is no baseline to compare with, so nothing can be said to help or to hurt."
    changes = {key: changes_of(comparison, key) for key in _WORDS}
    unknown = [name for name in pairs if any(math.isnan(of_key[name].value) for of_key in changes.values())]
    if len(unknown) == len(pairs):
        return f"There is no difference to {comparison.baseline}: {_UNKNOWN}."
    known = [name for name in pairs if name not in unknown]
    enough = [name for name in known if pairs[name] >= FEW_SEEDS]
    if not enough:
        most = counted(max(pairs[name] for name in known), "seed")
        return f"With {most} nothing can be told: {FEW_SEEDS} are the least, 20 tell more."
    tested = [name for name in enough if testable(comparison, pairs[name])]
    judged = tested or enough
    seeds = span([pairs[name] for name in judged], "seed")
    told = _told(comparison, {key: [each[name] for name in judged] for key, each in changes.items()})
    more = f"; more {label_of(comparison.lead)} is better" if comparison.lead.higher_is_better else ""
    if tested:
        sentence = f"{told[0].upper()}{told[1:]} ({seeds}, p < {LEVEL:g} after Holm's correction{more})."
    else:
        sentence = f"Hints only, as {seeds} are too few for a test and their intervals too narrow{more}: {told}."
    return " ".join([sentence, *_asides(comparison, pairs, judged, unknown)])


def _asides(
    comparison: Comparison, pairs: Mapping[str, int], judged: Sequence[str], unknown: Sequence[str]
) -> Iterator[str]:
    """Sentences on the samplers that the answer cannot judge, or by a part of the tasks only."""
    if few := [f"{name} ({pairs[name]})" for name in pairs if name not in judged and name not in unknown]:
        yield f"Too few seeds to judge: {', '.join(few)}."
    if unknown:
        yield f"No difference is known of {', '.join(unknown)}: {_UNKNOWN}."
    for name in judged:
        if diverges(comparison, name):
            yield f"Of {name} {_share_diverged(comparison, name):.3g} % of the tasks have diverged and are left out."


def _told(comparison: Comparison, changes: Mapping[str, Sequence[Change]]) -> str:
    """The sentence on changes, by measure, without the seeds that say so."""
    found = {key: [each for each in of_key if each.found] for key, of_key in changes.items()}
    if not any(found.values()):
        return f"no sampler is told apart from {comparison.baseline}, in the mean or in the worst tenth"
    parts = []
    for key, of_key in sorted(found.items(), key=lambda item: not item[1]):
        if not of_key:
            parts.append(f"no sampler changes {_WORDS[key]}")
        for better in (True, False):
            own = sorted((each for each in of_key if each.better == better), key=lambda each: -abs(each.value))
            if own:
                parts.append(_part(own, _WORDS[key]))
    return f"against {comparison.baseline}, {'; '.join(parts)}"


def _part(changes: Sequence[Change], words: str) -> str:
    """A part of the sentence on changes in one direction, the largest first."""
    first, *others = changes[:_MOST_NAMED]
    text = f"{first.arm} {'lowers' if first.value < 0 else 'raises'} {words} by {_size(first)}"
    text += "".join(f", {each.arm} by {_size(each)}" for each in others)
    left = len(changes) - _MOST_NAMED
    return text + (f", and {left} other{'s' * (left > 1)} by less" if left > 0 else "")


def _size(change: Change) -> str:
    ends = sorted((abs(change.low), abs(change.high)))
    return f"{abs(change.value):.3g} [{ends[0]:.3g}, {ends[1]:.3g}]"


def testable(comparison: Comparison, pairs: int) -> bool:
    """Whether the sign-flip test can give a p below the level with so many pairs of seeds, after Holm's correction."""
    others = sum(bool(comparison.pairs(arm)) for arm in comparison.arms)
    return 2.0 ** (1 - pairs) * others < LEVEL


def diverges(comparison: Comparison, name: str) -> bool:
    """Whether at least a hundredth more of an arm's tasks have diverged than of the baseline's."""
    return _share_diverged(comparison, name) - _share_diverged(comparison, f"{comparison.baseline}") >= 1


def _share_diverged(comparison: Comparison, name: str) -> float:
    """The percentage of the tasks, mean over the runs of an arm in the end."""
    return float(comparison.estimates["diverged", name].value[-1, comparison.inner_steps[-1]])


def changes_of(comparison: Comparison, statistic: str) -> dict[str, Change]:
    """The differences of a statistic of the leading metric to the baseline, by sampler."""
    key, k = comparison.key(statistic), comparison.inner_steps[-1]
    changes = {}
    for arm in comparison.arms:
        difference = comparison.differences.get((key, arm.name))
        if difference is not None:
            value, low, high = (float(part[k]) for part in difference.estimate)
            p, by_test = float(difference.p[k]), testable(comparison, difference.pairs)
            better = (value > 0) == comparison.measures[key].higher_is_better
            found = low * high > 0 and (p < LEVEL or not by_test)  # of NaN neither holds
            found &= not (better and diverges(comparison, arm.name))
            changes[arm.name] = Change(arm.name, value, low, high, p, better, found)
    return changes


def overview(comparison: Comparison) -> Table:
    """One table of at most 80 columns: mean, worst tenth, their differences to the baseline, spread over seeds."""
    k, lead = comparison.inner_steps[-1], comparison.lead
    table = Table(box=None, padding=(0, 0, 0, 1), header_style="bold", title_style="bold", title_justify="left")
    table.title = f"{label_of(lead)} after {counted(k, 'inner step')}, {comparison.seeds}"
    table.add_column("sampler", no_wrap=True, overflow="ellipsis", min_width=8)
    for words in ("mean", "worst 10 %"):
        table.add_column(words, justify="right", no_wrap=True)
        if comparison.differences:
            table.add_column("change", justify="right", no_wrap=True)
            table.add_column("p", justify="right", no_wrap=True)
    table.add_column("sd", justify="right", no_wrap=True)
    changes = {statistic: changes_of(comparison, statistic) for statistic in _WORDS}
    for arm in comparison.arms:
        cells = [arm.name]
        for statistic in _WORDS:
            cells.append(_number(float(comparison.estimates[comparison.key(statistic), arm.name].value[-1, k])))
            if comparison.differences:
                marks = testable(comparison, len(comparison.pairs(arm)))
                cells += _cells_of(changes[statistic].get(arm.name), marks)
        table.add_row(*cells, _number(_spread(comparison, arm, k)))
    return table


def legend(comparison: Comparison) -> str:
    """The meaning of the table's columns and marks."""
    spread = "sd: over seeds"
    if not comparison.differences:
        return spread
    return f"change: to {comparison.baseline} on the same seeds, ✔ better, ✘ worse; {spread}"


def _cells_of(change: Change | None, marks: bool) -> list[str]:
    """A difference, with its mark if a test may give it one, and p."""
    if change is None:
        return ["", ""]
    if math.isnan(change.value):
        return ["–", "–"]
    mark, style = "", "default"
    if change.found and marks:
        mark, style = ("✔ ", "green") if change.better else ("✘ ", "red")
    return [f"[{style}]{mark}{change.value:+.2g}[/{style}]", _number(change.p, 2)]


def _spread(comparison: Comparison, arm: Arm, k: int) -> float:
    values = comparison.values(arm, comparison.key("mean"))[:, -1, k]
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}g}"
