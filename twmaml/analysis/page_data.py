"""The data of the page of a comparison; `twmaml.analysis.page` says what each part means."""

import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twmaml.analysis.alignment import Budget, budgets_of, spent_by
from twmaml.analysis.answer import answer
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import Arm, differing_keys
from twmaml.analysis.health import HEALTH
from twmaml.analysis.measures import Measure
from twmaml.analysis.resampling import Estimate
from twmaml.analysis.sheet import colours_of
from twmaml.figures.panels import UNITS, cell_labels, marginalise, views_of
from twmaml.statistics import counted, label_of
from twmaml.types import Metric


def page_data(comparison: Comparison, notes: Sequence[str], output: Path) -> dict[str, Any]:
    """The data of the page in a folder."""
    arms = comparison.arms
    return {
        "title": f"{counted(len(arms), 'sampler')} on {comparison.task}, {comparison.seeds} each",
        "protocols": comparison.protocols,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["python", "-m", "twmaml.compare", *sys.argv[1:]]),
        "baseline": comparison.baseline,
        "answer": answer(comparison),
        "notes": list(notes),
        "samplers": _samplers(arms, output),
        "inner_steps": comparison.inner_steps,
        "unit": comparison.alignment.unit,
        "points": comparison.points.tolist(),
        "across": _across(comparison),
        "metrics": _metrics(comparison.measures),
        "curves": _curves(comparison),
        "health": _health(comparison),
        "differences": _differences(comparison),
        "improvement": _improvement(comparison),
        "heatmaps": _heatmaps(comparison),
        "configuration": _configuration(arms),
    }


def _numbers(values: Any) -> list[Any]:
    """Four digits are more than an interval deserves, and keep the page small."""
    return [_numbers(v) if np.ndim(v) else (float(f"{v:.4g}") if math.isfinite(v) else None) for v in values]


def _interval(found: Estimate) -> dict[str, Any]:
    return {"estimate": _numbers(found.value), "low": _numbers(found.low), "high": _numbers(found.high)}


def _samplers(arms: Sequence[Arm], output: Path) -> list[dict[str, Any]]:
    colours = colours_of([arm.name for arm in arms])

    def href(folder: Path) -> str:
        return Path(os.path.relpath(folder, output.resolve())).as_posix()

    return [
        {
            "name": arm.name,
            "colour": colours[arm.name],
            "seeds": arm.seeds,
            "folders": [{"seed": run.seed, "href": href(run.folder)} for run in arm.runs],
        }
        for arm in arms
    ]


def _direction(metric: Metric | Measure, logarithmic: bool) -> dict[str, Any]:
    """The keys of a metric that is not as most are."""
    higher = {"higher_is_better": True} if metric.higher_is_better else {}
    return higher if logarithmic else {**higher, "linear": True}


def _metrics(measures: Mapping[str, Measure]) -> list[dict[str, Any]]:
    """The measures that can be chosen; those that differ only in their tail are one."""
    found: dict[str, dict[str, Any]] = {}
    for key, measure in measures.items():
        name = key if measure.tail is None else key.removesuffix(f"_{measure.tail}")
        label = measure.label if measure.tail is None else measure.label.removesuffix(f", worst {measure.tail} %")
        direction = _direction(measure, measure.metric.logarithmic)
        group = {"group": measure.group} if measure.group else {}
        entry = found.setdefault(name, {"key": name, "label": label, **group, **direction})
        if measure.tail is not None:
            entry.setdefault("tails", []).append(measure.tail)
    return list(found.values())


def _curves(comparison: Comparison) -> dict[str, Any]:
    def curve(key: str, arm: Arm, k: int) -> dict[str, Any]:
        found = Estimate(*(part[..., k] for part in comparison.estimates[key, arm.name]))
        return {**_interval(found), "runs": _numbers(comparison.values(arm, key)[:, :, k])}

    return {
        key: {str(k): {arm.name: curve(key, arm, k) for arm in comparison.arms} for k in comparison.inner_steps}
        for key in comparison.measures
    }


def _across(comparison: Comparison) -> list[dict[str, Any]]:
    """What curves can be drawn over, first that by which evaluations belong together: of that all have as much."""
    own = comparison.alignment.key

    def places(arm: Arm, budget: Budget) -> list[float]:
        if budget.key == own:
            return comparison.points.tolist()
        return np.mean([spent_by(run, budget)[comparison.places(run)] for run in arm.runs], axis=0).round().tolist()

    return [
        {"unit": budget.unit, "places": {arm.name: places(arm, budget) for arm in comparison.arms}}
        for budget in sorted(budgets_of(comparison.runs), key=lambda budget: budget.key != own)
    ]


def _health(comparison: Comparison) -> dict[str, Any]:
    names = [arm.name for arm in comparison.arms]
    return {
        "metrics": [{"key": key, "label": label} for key, label in HEALTH.items()],
        "points": comparison.points.tolist(),
        "curves": {key: {name: _interval(comparison.health[key, name]) for name in names} for key in HEALTH},
    }


def _differences(comparison: Comparison) -> dict[str, Any]:
    found: dict[str, Any] = {key: {str(k): {} for k in comparison.inner_steps} for key in comparison.measures}
    for (key, name), each in comparison.differences.items():
        for k in comparison.inner_steps:
            value, low, high, p = _numbers([*(part[k] for part in each.estimate), each.p[k]])
            found[key][str(k)][name] = {"estimate": value, "low": low, "high": high, "p": p}
    return found


def _improvement(comparison: Comparison) -> dict[str, Any]:
    names = [arm.name for arm in comparison.arms]

    def matrices(found: Mapping[tuple[str, str], Estimate], k: int) -> dict[str, Any]:
        def matrix(part: str) -> list[Any]:
            return [_numbers([getattr(found[a, b], part)[k] if a != b else math.nan for b in names]) for a in names]

        return {"samplers": names, "matrix": matrix("value"), "low": matrix("low"), "high": matrix("high")}

    by_key = {key: comparison.improvement(key) for key in comparison.measures}
    return {key: {str(k): matrices(each, k) for k in comparison.inner_steps} for key, each in by_key.items()}


def _heatmaps(comparison: Comparison) -> dict[str, Any]:
    grid, lead, points = comparison.grid, comparison.lead, comparison.points.tolist()
    views, every = views_of(grid), range(len(points))
    maps = {arm.name: [comparison.maps(arm, i) for i in every] for arm in comparison.arms}
    paired = {arm.name: [comparison.difference_maps(arm, i) for i in every] for arm in comparison.arms}

    def over(view: tuple[str, ...], maps: Mapping[str, Sequence[np.ndarray | None]]) -> dict[str, Any]:
        def at(i: int, k: int) -> dict[str, Any]:
            known = {name: found for name, of_arm in maps.items() if (found := of_arm[i]) is not None}
            return {name: _numbers(marginalise(grid, each[:, k], view).ravel()) for name, each in known.items()}

        return {str(k): {str(point): at(i, k) for i, point in enumerate(points)} for k in comparison.inner_steps}

    def axis(name: str) -> dict[str, Any]:
        unit, ticks = grid.axes[name].unit, grid.axes[name].ticks()
        pairs = [] if ticks is None else list(map(list, zip(*ticks, strict=True)))
        labels = {"ticks": pairs, "cells": cell_labels(grid.axes[name])} if pairs else {}
        return {"name": name, "unit": UNITS.get(unit, unit), "edges": _numbers(grid.axes[name].edges()), **labels}

    return {
        "label": label_of(lead),
        **_direction(lead, lead.logarithmic),
        "views": [{"x": axis(view[0]), "y": axis(view[1]) if len(view) > 1 else None} for view in views],
        "values": [over(view, maps) for view in views],
        "differences": [over(view, paired) for view in views],
    }


def _configuration(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The keys in which the arms differ."""
    firsts = {arm.name: arm.runs[0] for arm in arms}
    return [
        {"key": key, "values": {name: str(run.config.get(key, "")) for name, run in firsts.items()}}
        for key in differing_keys(list(firsts.values()))
    ]
