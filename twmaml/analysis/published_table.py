"""Published figures and ours as a table in a terminal."""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from twmaml.analysis.published import Reproduced

_LEFT = ("figure", "arm", "split", "at", "verdict")


def print_table(preset: Mapping[str, Any], found: Sequence[Reproduced], notes: Sequence[str]) -> None:
    """Prints the figures, and notes on how they were got."""
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
