"""Adaptations crossed with samplers: Markdown tables of mean and tail, and one picture of both.

`python scripts/cross.py FOLDER ... --picture docs/cross.png` reads a finished sweep of `experiment=cross_adaptations`.
Each figure is the mean over seeds with its 95 % bootstrap interval, after as many inner steps as were trained; bold
where it differs from uniform sampling with the same adaptation (paired by seed, sign-flip test, p < .05 after Holm's
correction for the samplers).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import Arm, FinishedRun, read_runs
from twmaml.figures.panels import make_panels, set_title

MEASURES = {"mean": "mean loss", "cvar_10": "CVaR, worst 10 % of the cells"}
UNIFORM = "uniform"


def by_adaptation(runs: Sequence[FinishedRun]) -> dict[str, Comparison]:
    """A comparison of the samplers for every adaptation."""
    found: dict[str, dict[str, list[FinishedRun]]] = {}
    for run in runs:
        found.setdefault(run.choices["adaptation"], {}).setdefault(run.choices["sampler"], []).append(run)
    return {
        adaptation: Comparison([Arm(name, own[name]) for name in sorted(own)], UNIFORM)
        for adaptation, own in sorted(found.items())
    }


def trained_steps(comparison: Comparison) -> int:
    """The inner steps that the runs of an adaptation were trained for."""
    (steps,) = {run.composed["adaptation"]["steps"] for run in comparison.runs}
    return steps


def table(comparisons: Mapping[str, Comparison], key: str) -> list[str]:
    """The lines of a measure."""
    samplers = [arm.name for arm in next(iter(comparisons.values())).arms]
    lines = [f"| {MEASURES[key]} | {' | '.join(f'`{name}`' for name in samplers)} |"]
    lines.append("|---" * (len(samplers) + 1) + "|")
    for adaptation, comparison in comparisons.items():
        cells, k = [], trained_steps(comparison)
        for name in samplers:
            value, low, high = (float(part[-1, k]) for part in comparison.estimates[key, name])
            found = comparison.differences.get((key, name))
            mark = "**" if found is not None and found.p[k] < 0.05 else ""
            cells.append(f"{mark}{value:.3g}{mark} [{low:.3g}, {high:.3g}]")
        lines.append(f"| `{adaptation}` | {' | '.join(cells)} |")
    return lines


def draw(comparisons: Mapping[str, Comparison], path: Path) -> None:
    """A panel for each measure: the value of every pair, its colour the ratio to uniform sampling."""
    samplers = [arm.name for arm in next(iter(comparisons.values())).arms]
    figure, (row,) = make_panels(1, len(MEASURES), 7.0, 4.6, left=1.7, bottom=1.1, right=0.3)
    for axes, (key, label) in zip(row, MEASURES.items(), strict=True):
        values = np.array(
            [[c.estimates[key, name].value[-1, trained_steps(c)] for name in samplers] for c in comparisons.values()]
        )
        ratios = np.log2(values / values[:, samplers.index(UNIFORM), None])
        most = float(np.abs(ratios[np.isfinite(ratios)]).max())
        axes.imshow(ratios, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            comparison = [*comparisons.values()][i]
            found = comparison.differences.get((key, samplers[j]))
            sure = found is not None and found.p[trained_steps(comparison)] < 0.05
            colour = "white" if abs(ratios[i, j]) > 0.6 * most else "black"
            weight = "bold" if sure else "normal"
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", fontweight=weight, color=colour)
        axes.set_xticks(range(len(samplers)), samplers, rotation=30, ha="right")
        names = [f"{name}, {trained_steps(comparison)}" for name, comparison in comparisons.items()]
        axes.set_yticks(range(len(comparisons)), names)
        axes.set_ylabel("adaptation, its inner steps")
        set_title(axes, f"{label} after the inner steps of training")
    title = "red: worse than uniform sampling with the same adaptation, blue: better; bold: p < .05 after Holm"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prints the tables and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    runs, left_out = read_runs(arguments.folders)
    comparisons = by_adaptation(runs)
    reached = next(iter(comparisons.values())).reached
    print(f"After {reached}; {len(runs)} runs, {len(left_out)} left out.\n")
    for key in MEASURES:
        print("\n".join([*table(comparisons, key), ""]))
    if arguments.picture:
        draw(comparisons, arguments.picture)


if __name__ == "__main__":
    main()
