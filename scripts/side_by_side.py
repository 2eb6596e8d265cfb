"""Samplers side by side, as a Markdown table: mean, tail, worst cell, and how far the seeds lie apart.

`python scripts/side_by_side.py outputs/multirun/<date>_<time>` reads a finished sweep: each figure is the mean over its
seeds with a 95 % bootstrap interval, then the paired difference to uniform sampling and its p, by a sign-flip test with
Holm's correction for the number of samplers. `--budget tasks_trained` compares when each has trained on as many tasks.
`--axis noise` adds the share of the training tasks in each fifth of an axis.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twmaml.analysis.alignment import BUDGETS, by_budget
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import Arm, group_runs, read_runs
from twmaml.storage.checkpoint import newest

MEASURES = {"mean": "mean", "cvar_10": "CVaR, worst 10 %", "worst_cell": "worst cell"}


def row(comparison: Comparison, arm: Arm) -> list[str]:
    """The cells of a sampler."""
    k, cells = comparison.inner_steps[-1], [f"`{arm.name}`"]
    for key in MEASURES:
        value, low, high = (float(part[-1, k]) for part in comparison.estimates[key, arm.name])
        cells.append(f"{value:.3g} [{low:.3g}, {high:.3g}]")
        found = comparison.differences.get((key, arm.name))
        if found is None:
            cells.append("")
            continue
        value, low, high = (float(part[k]) for part in found.estimate)
        mark = "**" if found.p[k] < 0.05 else ""
        cells.append(f"{mark}{value:+.3g}{mark} [{low:+.3g}, {high:+.3g}], p {found.p[k]:.2g}")
    cells.append(f"{np.std(comparison.values(arm, 'mean')[:, -1, k], ddof=1):.2g}")
    return cells


def shares(arm: Arm, axis: str) -> str:
    """The share of the training tasks in each fifth of an axis, mean over seeds."""
    found = []
    for run in arm.runs:
        axes = {name: value["cells"] for name, value in run.composed["task"].items() if isinstance(value, dict)}
        (checkpoint,) = newest([run.folder])
        assert checkpoint is not None
        visits = np.moveaxis(checkpoint.arrays["queue.visits"].reshape(list(axes.values())), [*axes].index(axis), 0)
        along = visits.reshape(len(visits), -1).sum(axis=1)
        found.append([part.sum() / along.sum() for part in np.array_split(along, 5)])
    return " / ".join(f"{100 * share:.0f}" for share in np.mean(found, axis=0))


def table(comparison: Comparison, axis: str | None) -> Sequence[str]:
    """All lines."""
    heads = ["sampler"]
    for label in MEASURES.values():
        heads += [label, "difference to uniform"]
    heads += ["sd of the mean over seeds", *([f"draws by fifths of {axis} [%]"] if axis else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for arm in comparison.arms:
        cells = [*row(comparison, arm), *([shares(arm, axis)] if axis else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--budget", default="meta_steps", choices=list(BUDGETS))
    parser.add_argument("--axis", help="of the training tasks")
    arguments = parser.parse_args()
    runs, left_out = read_runs(arguments.folders)
    comparison = Comparison(group_runs(runs), "uniform", align=lambda runs: by_budget(runs, BUDGETS[arguments.budget]))
    print(f"After {comparison.alignment.reached}, {len(runs)} runs, {len(left_out)} left out.\n")
    print("\n".join(table(comparison, arguments.axis)))


if __name__ == "__main__":
    main()
