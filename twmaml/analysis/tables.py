"""The tables of a comparison in the terminal and as CSV."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twmaml.analysis.comparison import Comparison
    from twmaml.analysis.finished_runs import Arm, LeftOut
    from twmaml.analysis.resampling import Estimate

FEW_SEEDS = 5
"""With fewer, an interval says little: a bootstrap of so few values is too narrow."""

_TABLE = ("mean", "mean_median", "mean_iqm", "iqm", "sd", "worst_task", "cvar_50", "cvar_30", "cvar_10", "cvar_5")


def compare(folders: Sequence[Path], baseline: str, output: Path) -> "Comparison":
    """Reads the runs, prints the table, and writes `index.html`, `statistics.csv` and `figures/` to a folder.

    Raises:
        ValueError: if there is nothing to compare; the message is one line.
    """
    from rich.console import Console  # noqa: PLC0415

    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if narrow else 200)
    with console.status("reading") as status:
        from twmaml.analysis.comparison import Comparison  # noqa: PLC0415
        from twmaml.analysis.figures import draw_comparison  # noqa: PLC0415
        from twmaml.analysis.finished_runs import group_runs, read_runs  # noqa: PLC0415
        from twmaml.analysis.page import write_page  # noqa: PLC0415
        from twmaml.analysis.page_data import page_data  # noqa: PLC0415

        for folder in folders:
            if not folder.is_dir():
                raise ValueError(f"{folder}: there is no such folder")
        runs, left_out = read_runs(folders)
        if not runs:
            reasons = "; ".join(f"{_short(folder)}: {reason}" for folder, reason in left_out[:3])
            raise ValueError(f"{', '.join(map(str, folders))}: no finished run in there. {reasons}".rstrip(" ."))
        arms = group_runs(runs)
        names = [arm.name for arm in arms]
        if baseline not in names and len(arms) > 1 and baseline != "uniform":
            raise ValueError(f"--baseline {baseline}: must be one of {', '.join(names)}")
        comparison = Comparison(arms, baseline if baseline in names else None)
        (output / "figures").mkdir(parents=True, exist_ok=True)
        status.update("resampling")
        notes = describe_limits(comparison, left_out)
        _print_tables(console, comparison, notes)
        _write_statistics(comparison, output / "statistics.csv")
        status.update("writing the page")
        write_page(page_data(comparison, notes, output), output / "index.html")
        draw_comparison(comparison, output / "figures", lambda name: status.update(f"drawing {name}"))
    for name, path in (("page", "index.html"), ("figures", "figures/"), ("statistics", "statistics.csv")):
        console.print(f"  {name:<10} {_short(output)}/{path}", soft_wrap=True)
    return comparison


def describe_limits(comparison: "Comparison", left_out: "Sequence[LeftOut]") -> list[str]:
    """What a reader has to know before believing the figures, in whole sentences."""
    from twmaml.analysis.finished_runs import differing_keys  # noqa: PLC0415

    notes = []
    seeds = [len(arm.runs) for arm in comparison.arms]
    if min(seeds) < FEW_SEEDS:
        least = "one seed" if min(seeds) == 1 else f"{min(seeds)} seeds"
        notes.append(
            f"With {least} little can be concluded: "
            + ("no interval can be given." if min(seeds) == 1 else "the intervals are too narrow, read them as ranges.")
        )
    pairs = [each.pairs for each in comparison.differences.values()]
    if pairs and 2 ** (1 - min(pairs)) * (len(seeds) - 1) > 0.05:
        smallest = 2.0 ** (1 - min(pairs))
        notes.append(
            f"With {min(pairs)} pairs of seeds the sign-flip test cannot give a p below {smallest:.2g} "
            f"({min(1.0, smallest * (len(seeds) - 1)):.2g} after Holm's correction for {len(seeds) - 1} comparisons), "
            "however large a difference is: judge by the intervals, or run more seeds."
        )
    if comparison.baseline is None and len(comparison.arms) > 1:
        present = [arm.name for arm in comparison.arms if arm.name.split()[0] == "uniform"]
        found = f"There are several uniform ones, {', '.join(present)}" if present else "No uniform sampler is there"
        notes.append(f"{found}: choose a --baseline to see differences.")
    for arm in comparison.arms:
        if comparison.baseline not in (None, arm.name) and ("mean", arm.name) not in comparison.differences:
            notes.append(f"{arm.name} and {comparison.baseline} have no seed in common, so there is no difference.")
    for arm in comparison.arms:
        k = comparison.inner_steps[-1]
        shares = comparison.values(arm, "diverged")[:, -1, k]
        if (most := shares.max()) > 0:
            notes.append(
                f"{arm.name}: after {k} inner steps up to {most:.3g} % of a run's tasks have diverged; "
                "they are left out of its figures."
            )
        if none := [str(seed) for seed, share in zip(arm.seeds, shares, strict=True) if share == 100]:
            notes.append(
                f"{arm.name}: every task of seed {', '.join(none)} has diverged, so there is no mean over seeds; "
                "for the median and the interquartile mean it is the worst."
            )
    firsts = [arm.runs[0] for arm in comparison.arms]
    if others := [key for key in differing_keys(firsts) if not key.startswith(("sampler.", "evaluation.", "steps"))]:
        notes.append(f"Not only the samplers differ, but also {', '.join(others)}.")
    if "seconds" not in comparison.units:
        notes.append("Seconds are no budget here: not all speeds were measured with as many runs at once.")
    if len(set(seeds)) > 1:
        counts = ", ".join(f"{arm.name} {len(arm.runs)}" for arm in comparison.arms)
        notes.append(f"The numbers of seeds differ: {counts}.")
    if any(list(run.evaluations.steps) != list(comparison.steps) for arm in comparison.arms for run in arm.runs):
        notes.append(f"Compared at the evaluations that all runs have, up to meta-step {comparison.steps[-1]:,}.")
    notes += [f"Left out: {_short(folder)} ({reason})." for folder, reason in left_out]
    return notes


def _short(folder: Path) -> str:
    relative = os.path.relpath(folder)
    return str(folder) if relative.startswith("..") else relative


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _interval(estimate: "Estimate", *index: int) -> str:
    value, low, high = (float(part[index]) for part in estimate)
    return _number(value) if math.isnan(low) else f"{_number(value)} [dim]\\[{_number(low)}, {_number(high)}][/dim]"


def _print_tables(console: Any, comparison: "Comparison", notes: Sequence[str]) -> None:
    from rich.table import Table  # noqa: PLC0415

    from twmaml.analysis.comparison import METRICS  # noqa: PLC0415

    def print_table(title: str, columns: Sequence[str], cell: "Callable[[Arm, int], str]") -> None:
        table = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
        table.add_column("sampler")
        for column in columns:
            table.add_column(column, justify="right")
        for arm in comparison.arms:
            table.add_row(arm.name, *(cell(arm, i) for i in range(len(columns))))
        console.print(table)

    estimates, differences, k = comparison.estimates, comparison.differences, comparison.inner_steps[-1]
    runs = comparison.arms[0].runs[0]
    counts = sorted({len(arm.runs) for arm in comparison.arms})
    console.print(
        f"{runs.choices['task']}: {len(comparison.arms)} samplers, {' to '.join(map(str, counts))} seeds each, "
        f"{len(runs.evaluations.tasks):,} tasks after {comparison.steps[-1]:,} meta-steps. "
        "Mean over seeds \\[95 % bootstrap interval over seeds]."
    )
    for start in (0, 5):
        keys = _TABLE[start : start + 5]
        print_table(
            f"loss after {k} inner steps",
            [METRICS[key].label for key in keys],
            lambda arm, i, keys=keys: _interval(estimates[keys[i], arm.name], -1, k),
        )
    steps = comparison.inner_steps
    print_table(
        "mean loss by inner steps; share of diverged tasks after the last",
        [*(f"{step} steps" for step in steps), "diverged [%]"],
        lambda arm, i: (
            _interval(estimates["mean", arm.name], -1, steps[i])
            if i < len(steps)
            else _interval(estimates["diverged", arm.name], -1, k)
        ),
    )
    if differences:
        keys = ("mean", "sd", "worst_cell", "cvar_10", "cvar_5")

        def difference(arm: "Arm", i: int) -> str:
            found = differences.get((keys[i], arm.name))
            if found is None:
                return "–"
            p = "" if math.isnan(found.p[k]) else f" p={found.p[k]:.2g}"
            return f"{_interval(found.estimate, k)}{p}"

        print_table(
            f"difference to {comparison.baseline} on the same seeds, p after Holm (negative is better)",
            [METRICS[key].label for key in keys],
            difference,
        )
    budgets = {unit: comparison.at_budget(unit) for unit in comparison.units}
    print_table(
        f"mean loss after {k} inner steps at equal budgets",
        [f"{budget:,.3g} {unit}" if budget < 100 else f"{budget:,.0f} {unit}" for unit, (budget, _) in budgets.items()],
        lambda arm, i: _interval(_estimate_mean(list(budgets.values())[i][1][arm.name]), k),
    )
    for arm in comparison.arms:
        worst = comparison.worst_task(arm, k)
        if worst is None:
            continue
        loss, task, seed = worst
        where = ", ".join(f"{name} {value:.3g}" for name, value in task.items())
        console.print(f"  worst task of {arm.name}: {where} (seed {seed}): loss {loss:.3g}")
    for note in notes:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)


def _estimate_mean(values: Any) -> "Estimate":
    import numpy as np  # noqa: PLC0415

    from twmaml.analysis.resampling import estimate  # noqa: PLC0415

    return estimate(values, np.mean)


def _write_statistics(comparison: "Comparison", path: Path) -> None:
    """Every figure of the table in one long CSV: sampler, metric, inner step, value, interval, difference, p."""
    import csv  # noqa: PLC0415

    from twmaml.analysis.comparison import METRICS  # noqa: PLC0415

    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["sampler", "metric", "inner_step", "meta_step", "seeds", "value", "low", "high"]
        writer.writerow([*columns, "difference", "difference_low", "difference_high", "p_holm"])
        for key in METRICS:
            for arm in comparison.arms:
                found = comparison.differences.get((key, arm.name))
                for k in comparison.inner_steps:
                    row = [part[-1, k] for part in comparison.estimates[key, arm.name]]
                    row += [*(part[k] for part in found.estimate), found.p[k]] if found else [math.nan] * 4
                    numbers = ["" if math.isnan(value) else f"{value:.9g}" for value in row]
                    writer.writerow([arm.name, key, k, comparison.steps[-1], len(arm.runs), *numbers])
