"""What the page of a comparison shows, as plain data; twmaml/page.py says what each part means."""

import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twmaml.analysis.comparison import HEALTH, METRICS, TAILS, Comparison
from twmaml.analysis.finished_runs import differing_keys
from twmaml.analysis.resampling import Estimate
from twmaml.analysis.sheet import colours_of
from twmaml.figures.panels import UNITS, marginalise, views_of


def page_data(comparison: Comparison, notes: Sequence[str], output: Path) -> dict[str, Any]:
    """What the page shows; twmaml/page.py says what each part means."""
    arms, inner = comparison.arms, comparison.inner_steps
    names = [arm.name for arm in arms]
    colours = colours_of(names)

    def numbers(values: Any) -> list[Any]:
        """Four digits are more than an interval deserves, and keep the page small."""
        return [numbers(v) if np.ndim(v) else (float(f"{v:.4g}") if math.isfinite(v) else None) for v in values]

    def as_json(found: Estimate) -> dict[str, Any]:
        return {"estimate": numbers(found.value), "low": numbers(found.low), "high": numbers(found.high)}

    def at(found: Estimate, k: int) -> dict[str, Any]:
        return as_json(type(found)(*(part[..., k] for part in found)))

    curves = {
        key: {
            str(k): {
                arm.name: at(comparison.estimates[key, arm.name], k)
                | {"runs": numbers(comparison.values(arm, key)[:, :, k])}
                for arm in arms
            }
            for k in inner
        }
        for key in METRICS
    }
    differences: dict[str, Any] = {key: {str(k): {} for k in inner} for key in METRICS}
    for (key, name), found in comparison.differences.items():
        for k in inner:
            value, low, high, p = numbers([*(part[k] for part in found.estimate), found.p[k]])
            differences[key][str(k)][name] = {"estimate": value, "low": low, "high": high, "p": p}
    improvement: dict[str, Any] = {}
    for key in METRICS:
        found = comparison.improvement(key)
        improvement[key] = {
            str(k): {
                "samplers": names,
                **{
                    field: [
                        numbers([getattr(found[a, b], part)[k] if a != b else math.nan for b in names]) for a in names
                    ]
                    for field, part in (("matrix", "value"), ("low", "low"), ("high", "high"))
                },
            }
            for k in inner
        }
    grid = arms[0].runs[0].evaluations.grid
    maps = {arm.name: [comparison.loss_maps(arm, i) for i in range(len(comparison.steps))] for arm in arms}

    def axis(name: str) -> dict[str, Any]:
        unit = grid.axes[name].unit
        return {"name": name, "unit": UNITS.get(unit, unit), "edges": numbers(grid.axes[name].edges())}

    views = views_of(grid)
    heatmaps = [
        {
            str(k): {
                str(step): {name: numbers(marginalise(grid, maps[name][i][:, k], view).ravel()) for name in names}
                for i, step in enumerate(comparison.steps)
            }
            for k in inner
        }
        for view in views
    ]
    firsts = [arm.runs[0] for arm in arms]
    tailed = {"key": "cvar", "label": "CVaR", "tails": list(TAILS)}
    plain = [{"key": key, "label": metric.label} for key, metric in METRICS.items() if not key.startswith("cvar_")]
    counts = sorted({len(arm.runs) for arm in arms})
    return {
        "title": f"{len(arms)} samplers on {firsts[0].choices['task']}, {' to '.join(map(str, counts))} seeds each",
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["python", "-m", "twmaml.compare", *sys.argv[1:]]),
        "baseline": comparison.baseline,
        "notes": list(notes),
        "samplers": [
            {
                "name": arm.name,
                "colour": colours[arm.name],
                "seeds": arm.seeds,
                "folders": [
                    {"seed": run.seed, "href": Path(os.path.relpath(run.folder, output.resolve())).as_posix()}
                    for run in arm.runs
                ],
            }
            for arm in arms
        ],
        "inner_steps": inner,
        "meta_steps": [int(step) for step in comparison.steps],
        "metrics": [*plain[:-1], tailed, plain[-1]],
        "curves": curves,
        "health": {
            "metrics": [{"key": key, "label": label} for key, label in HEALTH.items()],
            "meta_steps": [int(step) for step in comparison.steps],
            "curves": {key: {name: as_json(comparison.health[key, name]) for name in names} for key in HEALTH},
        },
        "differences": differences,
        "improvement": improvement,
        "heatmaps": {
            "views": [{"x": axis(view[0]), "y": axis(view[1]) if len(view) > 1 else None} for view in views],
            "values": heatmaps,
        },
        "configuration": [
            {
                "key": key,
                "values": {arm.name: str(run.config.get(key, "")) for arm, run in zip(arms, firsts, strict=True)},
            }
            for key in differing_keys(firsts)
        ],
    }
