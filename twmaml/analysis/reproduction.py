"""A preset of published figures, trained and compared."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twmaml.analysis.published import Compose, Reproduced, arms_of, changes_here, compare_runs, compare_with, split_of
from twmaml.analysis.published_runs import lead_to, train
from twmaml.analysis.published_table import print_table


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
        failed = train(name, preset, seeds or preset["seeds"], [*lead_to(data, name, preset), *overrides], folder)
    elif seeds is not None or overrides:
        raise ValueError(f"--runs {runs}: are there already; --seeds and overrides are of runs that are to be trained")
    elif not runs.is_dir():
        raise ValueError(f"--runs {runs}: there is no such folder")
    from twmaml.analysis.finished_runs import read_runs  # noqa: PLC0415  half a second that training need not wait for

    found: list[Reproduced] = []
    protocols: dict[str, None] = {}
    finished, left_out = read_runs([folder])
    for split in dict.fromkeys(split_of(figure) for figure in preset["figures"]):
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
    print_table(preset, found, notes)
    report = {"preset": name, "source": preset["source"], "notes": notes, "figures": [asdict(each) for each in found]}
    (folder / "reproduction.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"  saved      {folder}/reproduction.json\n  compare    python -m twmaml.compare {folder}")
    if failed:
        sys.exit(1)
    return found


def _settings_of(preset: Mapping[str, Any]) -> Iterator[str]:
    """A sentence on each arm that is not called as its sampler."""
    for arm, overrides in preset["arms"].items():
        if overrides != [f"sampler={arm}"]:
            yield f"{arm} is {' '.join(overrides)}"
