"""Compares runs: tables in the terminal, and a folder with figures, a page and a file of statistics."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twmaml.storage.files import shorten

if TYPE_CHECKING:
    from twmaml.analysis.alignment import Alignment
    from twmaml.analysis.comparison import Comparison, DrawPicture
    from twmaml.analysis.finished_runs import Arm, FinishedRun, LeftOut


def compare(
    folders: Sequence[Path],
    baseline: str,
    split: str,
    budget: str,
    output: Path,
    full: bool,
    draw_picture_of: "Callable[[Mapping[str, Any]], DrawPicture | None]",
) -> "Comparison":
    """Reads the runs, prints the tables, and writes a page, figures and two CSV files to a folder.

    Args:
        folders: searched for runs.
        baseline: the name of the arm that the others are compared with.
        split: the tasks on which the runs are compared.
        budget: the key of what each run has spent as much of where they are compared.
        output: the folder.
        full: prints every table, not only the answer with its own.
        draw_picture_of: draws the pictures of the family in a configuration, if that may be built.

    Raises:
        ValueError: if there is nothing to compare; the message is one line.
    """
    from rich.console import Console  # noqa: PLC0415

    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if narrow else 200)
    with console.status("reading") as status:
        from twmaml.analysis.comparison import Comparison  # noqa: PLC0415
        from twmaml.analysis.figures import draw_comparison  # noqa: PLC0415
        from twmaml.analysis.page import write_page  # noqa: PLC0415
        from twmaml.analysis.page_data import page_data  # noqa: PLC0415
        from twmaml.analysis.tables import print_tables, write_cells, write_statistics  # noqa: PLC0415

        arms, left_out = _read_arms(folders, baseline, split)
        example = next((run for arm in arms for run in arm.runs if run.pictures), None)
        comparison = Comparison(
            arms,
            baseline if baseline in [arm.name for arm in arms] else None,
            None if example is None else draw_picture_of(example.composed),
            _aligned_by(budget, arms),
        )
        (output / "figures").mkdir(parents=True, exist_ok=True)
        status.update("resampling")
        notes = describe_limits(comparison, left_out)
        print_tables(console, comparison, notes, full)
        write_statistics(comparison, output / "statistics.csv")
        write_cells(comparison, output / "cells.csv")
        status.update("writing the page")
        write_page(page_data(comparison, notes, output), output / "index.html")
        draw_comparison(comparison, output / "figures", lambda name: status.update(f"drawing {name}"))
    files = {"page": "index.html", "figures": "figures/", "statistics": "statistics.csv", "cells": "cells.csv"}
    for name, path in files.items():
        console.print(f"  {name:<10} {shorten(output)}/{path}", soft_wrap=True)
    return comparison


def _read_arms(folders: Sequence[Path], baseline: str, split: str) -> "tuple[list[Arm], list[LeftOut]]":
    from twmaml.analysis.finished_runs import group_runs, read_runs  # noqa: PLC0415
    from twmaml.storage.evaluation_file import splits_of  # noqa: PLC0415

    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder")
    runs, left_out = read_runs(folders, split)
    known = {each: None for folder, _ in left_out for each in splits_of(folder)}
    if not runs and known and split not in known:
        raise ValueError(f"--split {split}: must be one of {', '.join(known)}")
    if not runs:
        reasons = "; ".join(f"{shorten(folder)}: {reason}" for folder, reason in left_out[:3])
        raise ValueError(f"{', '.join(map(str, folders))}: no finished run in there. {reasons}".rstrip(" ."))
    arms = group_runs(runs)
    names = [arm.name for arm in arms]
    if baseline not in names and len(arms) > 1 and baseline != "uniform":
        raise ValueError(f"--baseline {baseline}: must be one of {', '.join(names)}")
    return arms, left_out


def _aligned_by(key: str, arms: "Sequence[Arm]") -> "Callable[[Sequence[FinishedRun]], Alignment]":
    from twmaml.analysis.alignment import BUDGETS, by_budget  # noqa: PLC0415

    if key not in BUDGETS:
        raise ValueError(f"--budget {key}: must be one of {', '.join(BUDGETS)}")
    budget = BUDGETS[key]
    if lacking := [run for arm in arms for run in arm.runs if budget.column not in run.metrics]:
        raise ValueError(f"--budget {key}: {shorten(lacking[0].folder)} is of before {budget.unit} were counted")
    return partial(by_budget, budget=budget)


def describe_limits(comparison: "Comparison", left_out: "Sequence[LeftOut]") -> list[str]:
    """Sentences that a reader has to know before believing the figures."""
    return [
        *_limits_of_seeds(comparison),
        *_limits_of_tasks(comparison),
        *_limits_of_runs(comparison),
        *(f"Left out: {shorten(folder)} ({reason})." for folder, reason in left_out),
    ]


def _limits_of_seeds(comparison: "Comparison") -> Iterator[str]:
    """Intervals and tests that few seeds cannot give."""
    from twmaml.analysis.answer import FEW_SEEDS  # noqa: PLC0415
    from twmaml.statistics import counted  # noqa: PLC0415

    seeds, others = [len(arm.runs) for arm in comparison.arms], len(comparison.arms) - 1
    if min(seeds) == 1:
        yield "With one seed little can be concluded: no interval can be given."
    elif min(seeds) < FEW_SEEDS:
        yield f"With {min(seeds)} seeds little can be concluded: the intervals are too narrow, read them as ranges."
    pairs = [each.pairs for each in comparison.differences.values()]
    if pairs and 2 ** (1 - min(pairs)) * others > 0.05:
        smallest = 2.0 ** (1 - min(pairs))
        yield (
            f"With {counted(min(pairs), 'pair')} of seeds the sign-flip test cannot give a p below {smallest:.2g} "
            f"({min(1.0, smallest * others):.2g} after Holm's correction for {counted(others, 'comparison')}), "
            "however large a difference is: run more seeds."
        )
    if comparison.baseline is None and others:
        present = [arm.name for arm in comparison.arms if arm.name.split()[0] == "uniform"]
        found = f"There are several uniform ones, {', '.join(present)}" if present else "No uniform sampler is there"
        yield f"{found}: choose a --baseline to see differences."
    for arm in comparison.arms:
        if comparison.baseline not in (None, arm.name) and not comparison.pairs(arm):
            yield f"{arm.name} and {comparison.baseline} have no seed in common, so there is no difference."


def _limits_of_tasks(comparison: "Comparison") -> Iterator[str]:
    """The tasks that have diverged."""
    from twmaml.statistics import counted  # noqa: PLC0415

    k = comparison.inner_steps[-1]
    for arm in comparison.arms:
        shares = comparison.values(arm, "diverged")[:, -1, k]
        if (most := shares.max()) > 0:
            yield (
                f"{arm.name}: after {counted(k, 'inner step')} up to {most:.3g} % of a run's tasks have diverged; "
                "they are left out of its figures, and of both runs in a difference."
            )
        if none := [str(seed) for seed, share in zip(arm.seeds, shares, strict=True) if share == 100]:
            yield (
                f"{arm.name}: every task of seed {', '.join(none)} has diverged, so there is no mean over seeds; "
                "for the median and the interquartile mean it is the worst."
            )


def _limits_of_runs(comparison: "Comparison") -> Iterator[str]:
    """Differences between the runs besides their samplers."""
    from twmaml.analysis.alignment import META_STEPS  # noqa: PLC0415
    from twmaml.analysis.budgets import units_of  # noqa: PLC0415
    from twmaml.analysis.finished_runs import NAMED_PARTS, differing_keys  # noqa: PLC0415

    arms = comparison.arms
    own = ("sampler.", "evaluation.", "steps")
    firsts = [arm.runs[0] for arm in arms]
    chosen = [part for part in NAMED_PARTS if len({run.choices.get(part) for run in firsts}) > 1]
    others = [key for key in differing_keys(firsts) if not key.startswith((*own, *(f"{part}." for part in chosen)))]
    if chosen or others:
        yield f"Not only the samplers differ, but also {', '.join([*chosen, *others])}."
    if "seconds" not in units_of(comparison):
        yield "Seconds are no budget here: not all speeds were measured with as many runs at once."
    if len({len(arm.runs) for arm in arms}) > 1:
        yield f"The numbers of seeds differ: {', '.join(f'{arm.name} {len(arm.runs)}' for arm in arms)}."
    if comparison.alignment.key != META_STEPS.key:
        yield from _limits_of_budgets(comparison)
    elif any(list(run.evaluations.steps) != list(comparison.points) for run in comparison.runs):
        yield f"Compared at the evaluations that all runs have, up to meta-step {comparison.points[-1]:,}."


def _limits_of_budgets(comparison: "Comparison") -> Iterator[str]:
    """How far the runs are from having spent exactly as much."""
    unit, found = comparison.alignment.unit, []
    for arm in comparison.arms:
        below = 100 * max(comparison.alignment.below(run) for run in arm.runs)
        steps = sorted({int(run.evaluations.steps[comparison.places(run)[-1]]) for run in arm.runs})
        reached = " to ".join(f"{step:,}" for step in [steps[0], *steps[1:][-1:]])
        found.append(f"{arm.name} at meta-step {reached}" + (f", up to {below:.2g} % below" if below else ""))
    yield (
        f"Compared when each run has spent as many {unit}, by its last evaluation that has spent no more: "
        f"{'; '.join(found)}."
    )
