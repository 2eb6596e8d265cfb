"""What priority changes, family by family: `docs/findings.json` from finished sweeps, its tables and pictures.

`python scripts/findings.py collect FOLDER ...` reads sweeps of the six samplers, one of each family, and writes what
the page needs to `docs/findings.json` (`--json` names another file). `python scripts/findings.py draw` prints the
tables of docs/findings.md from that file and draws its pictures into docs/.

Differences are paired by seed, with 95 % bootstrap intervals over seeds and sign-flip tests after Holm's correction for
the samplers, as `python -m twmaml.compare` has them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from twmaml.analysis.answer import answer
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import group_runs, read_runs
from twmaml.analysis.resampling import estimate
from twmaml.figures.panels import COLOURS, axis_label, cell_labels
from twmaml.statistics import label_of

DOCS = Path(__file__).parent.parent / "docs"
UNIFORM = "uniform"
MEASURES = {"mean": "mean", "cvar_10": "worst tenth", "worst_cell": "worst cell"}
LEVEL = 0.05


def collect(comparison: Comparison) -> dict[str, Any]:
    """The figures of a family that the page shows, after the last inner step."""
    k, lead = comparison.inner_steps[-1], comparison.lead
    found: dict[str, Any] = {
        "task": comparison.task,
        "metric": label_of(lead),
        "higher_is_better": lead.higher_is_better,
        "inner_steps": k,
        "meta_steps": comparison.points.tolist(),
        "seeds": len(comparison.arms[0].runs),
        "answer": answer(comparison),
        "measures": {},
        "diverged": {a.name: float(comparison.estimates["diverged", a.name].value[-1, k]) for a in comparison.arms},
        "axes": {},
    }
    for name in MEASURES:
        key = comparison.key(name)
        found["measures"][name] = {arm.name: of_measure(comparison, key, arm.name, k) for arm in comparison.arms}
    for axis in range(len(comparison.grid.shape)):
        label = axis_label(comparison.grid, comparison.grid.names[axis])
        found["axes"][label] = {
            "centres": np.unique(np.asarray(comparison.grid.centres() / comparison.grid.scale)[:, axis]).tolist(),
            "names": cell_labels(comparison.grid.axes[comparison.grid.names[axis]]),
            "change": {
                arm.name: along(comparison, arm.name, axis, k) for arm in comparison.arms if arm.name != UNIFORM
            },
        }
    return found


def of_measure(comparison: Comparison, key: str, name: str, k: int) -> dict[str, Any]:
    """A measure of an arm: of every seed, over the meta-steps, and its difference to uniform sampling."""
    arm = next(arm for arm in comparison.arms if arm.name == name)
    estimates = comparison.estimates[key, name]
    known = comparison.differences.get((key, name))
    change = None if known is None else [float(part[k]) for part in (*known.estimate, known.p)]
    return {
        "of_seeds": comparison.values(arm, key)[:, -1, k].tolist(),
        "curve": [part[:, k].tolist() for part in estimates],
        "change": change,
    }


def along(comparison: Comparison, name: str, axis: int, k: int) -> list[list[float]]:
    """The difference to uniform sampling along an axis, relative to uniform's size there, with its interval."""
    shape, others = comparison.grid.shape, tuple(i + 1 for i in range(len(comparison.grid.shape)) if i != axis)
    profiles = []
    for each in (name, UNIFORM):
        arm = next(arm for arm in comparison.arms if arm.name == each)
        maps = comparison.seed_maps(arm, comparison.lead, -1)[..., k]
        profiles.append(np.nanmean(maps.reshape(-1, *shape), axis=others))
    return [part.tolist() for part in estimate(np.stack(profiles, axis=1), relative_change)]


def relative_change(profiles: np.ndarray, axis: int = 0) -> np.ndarray:
    """The relative change from the second profile to the first, of means over the axis of the seeds."""
    ours, theirs = np.nanmean(profiles, axis=axis)
    return (ours - theirs) / np.abs(theirs)


def table(family: Mapping[str, Any]) -> list[str]:
    """Every sampler of a family: each measure with its interval, the change to uniform, and the spread over seeds."""
    heads = ["sampler"]
    for label in MEASURES.values():
        heads += [label, "change"]
    lines = [f"| {' | '.join([*heads, 'sd over seeds'])} |", f"|{'---|' * (len(heads) + 1)}"]
    for name in family["measures"]["mean"]:
        cells = [f"`{name}`"]
        for measure in MEASURES:
            own = family["measures"][measure][name]
            value, low, high = (part[-1] for part in own["curve"])
            cells.append(f"{value:.3g} [{low:.3g}, {high:.3g}]")
            cells.append("" if own["change"] is None else change_text(own["change"]))
        spread = np.std(family["measures"]["mean"][name]["of_seeds"], ddof=1)
        lines.append(f"| {' | '.join([*cells, f'{spread:.2g}'])} |")
    return lines


def change_text(change: Sequence[float]) -> str:
    """A difference with its interval, bold where it is significant."""
    value, low, high, p = change
    mark = "**" if p < LEVEL else ""
    return f"{mark}{value:+.2g}{mark} [{low:+.2g}, {high:+.2g}]"


def of_uniform(family: Mapping[str, Any], measure: str, name: str) -> tuple[float, float, float, bool]:
    """The change as a share of uniform's figure, positive where it is worse; its ends, and whether it is sure."""
    value, low, high, p = family["measures"][measure][name]["change"]
    size = abs(family["measures"][measure][UNIFORM]["curve"][0][-1]) * (-1 if family["higher_is_better"] else 1)
    low, high = sorted((low / size, high / size))
    return value / size, low, high, p < LEVEL


def draw_changes(families: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each family: what every sampler changes of mean, worst tenth and worst cell."""
    figure, row = panels(len(families), 3.4)
    for axes, family in zip(row, families, strict=True):
        samplers = [name for name in family["measures"]["mean"] if name != UNIFORM]
        for shift, (measure, label), colour in zip((-0.24, 0, 0.24), MEASURES.items(), COLOURS, strict=False):
            for place, name in enumerate(samplers):
                value, low, high, sure = of_uniform(family, measure, name)
                axes.plot([low, high], [place + shift] * 2, color=colour, linewidth=1.5)
                face = colour if sure else "white"
                axes.plot(value, place + shift, "o", color=colour, markerfacecolor=face, label="_" if place else label)
        axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(samplers)), samplers if axes is row[0] else [""] * len(samplers))
        axes.invert_yaxis()
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("change to uniform")
        axes.set_title(f"{family['task']}: {family['metric']}", fontsize=9)
    figure.suptitle("right: worse than uniform sampling; filled: p < .05 after Holm", fontsize=9)
    finish(figure, row[0], path)


def draw_curves(families: Sequence[Mapping[str, Any]], measure: str, path: Path) -> None:
    """A panel for each family: the change of a measure to uniform's at the same meta-step."""
    figure, row = panels(len(families), 3.0)
    for axes, family in zip(row, families, strict=True):
        own = family["measures"][measure]
        uniform = np.array(own[UNIFORM]["curve"][0])
        for name in colours(family):
            curve = (np.array(own[name]["curve"]) - uniform) / np.abs(uniform) * (-1) ** family["higher_is_better"]
            draw_band(axes, family["meta_steps"], curve, name, colours(family)[name])
        axes.set_xlabel("meta-step")
        axes.set_title(f"{family['task']}: {family['metric']}", fontsize=9)
    row[0].set_ylabel(f"{MEASURES[measure]}: change to uniform\n(up: worse)", fontsize=9)
    finish(figure, row[0], path)


def draw_axes(family: Mapping[str, Any], path: Path) -> None:
    """A panel for each axis of a family: where along it every sampler is better and worse than uniform sampling."""
    figure, row = panels(len(family["axes"]), 3.0)
    for axes, (label, axis) in zip(row, family["axes"].items(), strict=True):
        for name, change in axis["change"].items():
            curve = np.array(change, float) * (-1) ** family["higher_is_better"]
            draw_band(axes, axis["centres"], curve, name, colours(family)[name])
        axes.set_xlabel(label)
        if axis["names"]:
            axes.set_xticks(axis["centres"], axis["names"], fontsize=8)
    row[0].set_ylabel(f"{family['task']}: change to uniform\n(up: worse)", fontsize=9)
    finish(figure, row[0], path)


def panels(count: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Panels beside each other."""
    figure = Figure(figsize=(2.5 * max(count, 3), height), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def colours(family: Mapping[str, Any]) -> dict[str, str]:
    """The colour of every sampler, the same in all pictures."""
    return dict(zip(sorted(family["measures"]["mean"]), COLOURS, strict=True))


def draw_band(axes: Axes, x: Sequence[float], curve: np.ndarray, name: str, colour: str) -> None:
    """A line with its interval, and zero."""
    value, low, high = curve
    axes.plot(x, value, color=colour, label=name)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")


def finish(figure: Figure, labelled: Axes, path: Path) -> None:
    """Adds the legend of one panel, which is that of all, and writes the picture."""
    figure.legend(*labelled.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Collects, or prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=DOCS / "findings.json", metavar="FILE")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("collect", help="sweeps into the file").add_argument("folders", nargs="+", type=Path)
    verbs.add_parser("draw", help="tables and pictures from the file")
    arguments = parser.parse_args()
    if arguments.verb == "collect":
        found = []
        for folder in arguments.folders:
            runs, left_out = read_runs([folder])
            found.append(collect(Comparison(group_runs(runs), UNIFORM)))
            print(f"{folder}: {len(runs)} runs, {len(left_out)} left out. {found[-1]['answer']}", flush=True)
        arguments.json.write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n")
        return
    families = json.loads(arguments.json.read_text())
    for family in families:
        print("\n".join(["", f"{family['task']}, {family['seeds']} seeds. {family['answer']}", "", *table(family)]))
        draw_axes(family, DOCS / f"findings_{family['task']}.png")
    draw_changes(families, DOCS / "findings.png")
    for measure in ("mean", "cvar_10"):
        draw_curves(families, measure, DOCS / f"findings_{measure}.png")


if __name__ == "__main__":
    main()
