"""The answer of a comparison, in a sentence or two that a reader can quote, and in one table."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import Arm
from twmaml.statistics import label_of

FEW_SEEDS = 5
"""With fewer, an interval says little: a bootstrap of so few values is too narrow."""

LEVEL = 0.05
"""The level of significance of the tests, after Holm's correction."""

_WORDS = {"mean": "the mean", "cvar_10": "the worst tenth"}
"""The measures that are spoken of."""

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
    sure: bool
    """Whether a test says so, or the interval where no test can with so few seeds."""


def answer(comparison: Comparison) -> str:
    """Which samplers changed the mean and the worst tenth against the baseline, and how sure that is."""
    others = [arm for arm in comparison.arms if comparison.pairs(arm)]
    if len(comparison.arms) == 1:
        return f"There is only {comparison.arms[0].name}, and nothing to compare it with."
    if comparison.baseline is None or not others:
        return "There is no baseline to compare with, so nothing can be said to help or to hurt."
    if all(math.isnan(changes_of(comparison, key)[arm.name].value) for key in _WORDS for arm in others):
        return "Too many tasks have diverged in every run: there is nothing to compare."
    seeds = min(len(comparison.pairs(arm)) for arm in others)
    if seeds < FEW_SEEDS:
        return f"With {seeds} seed{'s' * (seeds > 1)} nothing can be told: {FEW_SEEDS} are the least, 20 tell more."
    found = {key: [each for each in changes_of(comparison, key).values() if each.sure] for key in _WORDS}
    how = f"p < {LEVEL:g} after Holm's correction" if testable(comparison) else "by their intervals, too few for a test"
    if comparison.lead.higher_is_better:
        how += f"; more {label_of(comparison.lead)} is better"
    if not any(found.values()):
        told = f"No sampler is told apart from {comparison.baseline}, in the mean or in the worst tenth"
        return f"{told} ({seeds} seeds, {how})."
    parts = []
    for key, changes in sorted(found.items(), key=lambda item: not item[1]):
        if not changes:
            parts.append(f"no sampler changes {_WORDS[key]}")
        for better in (True, False):
            own = sorted((each for each in changes if each.better == better), key=lambda each: -abs(each.value))
            if own:
                parts.append(_part(own, _WORDS[key]))
    return f"Against {comparison.baseline}, {'; '.join(parts)} ({seeds} seeds, {how})."


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


def testable(comparison: Comparison) -> bool:
    """Whether the sign-flip test can give a p below the level with so few seeds, after Holm's correction."""
    others = [arm for arm in comparison.arms if comparison.pairs(arm)]
    pairs = min((len(comparison.pairs(arm)) for arm in others), default=1)
    return 2.0 ** (1 - pairs) * len(others) < LEVEL


def changes_of(comparison: Comparison, statistic: str) -> dict[str, Change]:
    """The differences of a statistic of the leading metric to the baseline, by sampler."""
    key, k, by_test = comparison.key(statistic), comparison.inner_steps[-1], testable(comparison)
    changes = {}
    for arm in comparison.arms:
        found = comparison.differences.get((key, arm.name))
        if found is not None:
            value, low, high = (float(part[k]) for part in found.estimate)
            p = float(found.p[k])
            sure = low * high > 0 and (p < LEVEL or not by_test)  # of NaN neither holds
            better = (value > 0) == comparison.measures[key].higher_is_better
            changes[arm.name] = Change(arm.name, value, low, high, p, better, sure)
    return changes


def overview(comparison: Comparison) -> Table:
    """One table of at most 80 columns: mean, worst tenth, their differences to the baseline, spread over seeds."""
    k, lead = comparison.inner_steps[-1], comparison.lead
    seeds = [len(arm.runs) for arm in comparison.arms]
    of_seeds = f"{' to '.join(map(str, sorted({min(seeds), max(seeds)})))} seed{'s' * (max(seeds) > 1)}"
    table = Table(box=None, padding=(0, 0, 0, 1), header_style="bold", title_style="bold", title_justify="left")
    table.title = f"{label_of(lead)} after {k} inner steps, {of_seeds}"
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
                cells += _cells_of(changes[statistic].get(arm.name))
        table.add_row(*cells, _number(_spread(comparison, arm, k)))
    return table


def legend(comparison: Comparison) -> str:
    """The meaning of the table's columns and marks."""
    spread = "sd: over seeds"
    if not comparison.differences:
        return spread
    return f"change: to {comparison.baseline} on the same seeds, ✔ better, ✘ worse; {spread}"


def _cells_of(change: Change | None) -> list[str]:
    """A difference with its mark, and p."""
    if change is None:
        return ["", ""]
    mark, style = (("✔ ", "green") if change.better else ("✘ ", "red")) if change.sure else ("", "default")
    return [f"[{style}]{mark}{change.value:+.2g}[/{style}]", _number(change.p, 2)]


def _spread(comparison: Comparison, arm: Arm, k: int) -> float:
    values = comparison.values(arm, comparison.key("mean"))[:, -1, k]
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}g}"
