"""Prints reproductions as Markdown, for docs/reproductions.md.

`python scripts/reproductions.py outputs/reproduce/maml_sine/<date>_<time> ...`: a section for each folder that
`python -m twmaml.reproduce` has left.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from twmaml.storage import summary

COLUMNS = ("figure", "arm", "inner steps", "published", "re-run", "ours [95 %]", "range over seeds", "verdict")


def section(folder: Path) -> str:
    """Title, command, machine and table of a reproduction."""
    report = json.loads((folder / "reproduction.json").read_text())
    runs = [summary.read(path.parent) for path in folder.rglob("summary.json")]
    seconds = statistics.median(run.wall_seconds for run in runs)
    facts = f"{len(runs)} runs on {runs[0].device}, {seconds:.0f} s each in groups; {folder.name.split('_')[0]}"
    lines = [f"## `{report['preset']}`", "", f"{report['source']}.", ""]
    lines += [f"`python -m twmaml.reproduce {report['preset']}`: {facts}.", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row(figure))} |" for figure in report["figures"]]
    lines += ["", *(f"- {note}" for note in report["notes"]), ""]
    return "\n".join(lines)


def row(figure: dict[str, Any]) -> list[str]:
    """The cells of a figure."""
    best = ", best checkpoint" if figure["at"] == "best" else ""
    best += f", split {figure['split']}" if figure.get("split", "eval") != "eval" else ""
    of_seeds = figure["of_seeds"]
    return [
        figure["metric"] + best,
        figure["arm"],
        str(figure["inner_steps"]),
        number(figure["published"], figure["published_sd"] or figure["published_plus_minus"] or figure["read_to"]),
        number(figure["rerun"], figure["rerun_plus_minus"]),
        f"{figure['ours']:.3g} [{figure['low']:.3g}, {figure['high']:.3g}]",
        f"{of_seeds[0]:.3g} to {of_seeds[-1]:.3g}",
        figure["verdict"],
    ]


def number(value: float | None, plus_minus: float | None) -> str:
    """A published number with what it is exact to."""
    return "" if value is None else f"{value:.3g}" + (f" ± {plus_minus:.2g}" if plus_minus else "")


def main() -> None:
    """Prints a section for each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", type=Path)
    print("\n".join(map(section, parser.parse_args().folders)))


if __name__ == "__main__":
    main()
