"""The page of a comparison: `page.html` with the data in it, one file that needs nothing else and no network.

The data that `write_page` expects (any number may be None or not finite: unknown):

```
title, made, command   texts: the heading, when the page was made, with what command
baseline               the sampler that differences are to, or None
protocols              sentences shown below the title: what a figure must agree in to be compared with these
notes                  sentences shown on top
samplers               [{name, colour: "#rrggbb", seeds: [...], folders: [{seed, href}]}]; href relative to the page
inner_steps            [0, 1, 5, 10]
unit                   of the points: "meta-steps" (if missing), "tasks trained", ...
points                 [0, 2500, ...]: how far the runs have come wherever they are compared
across                 [{unit, places: {sampler: [a place a point]}}]: what learning curves can be drawn over, first the
                       points themselves
metrics                [{key, label, group?, unit?, tails?: [50, 30, 10, 5], higher_is_better?, linear?}]; the table
                       shows one group and what is in none; lower is better if nothing else is said; linear: no
                       logarithmic axis. The values of a metric with tails are under "<key>_<tail>" below: "cvar_10"
curves                 {metric: {inner step: {sampler: {estimate, low, high: [a value a point],
                                                        runs: [[a value a point] a seed]}}}}
health                 {metrics: [{key, label}], points: [...], curves: {key: {sampler: {estimate, low, high}}}}
differences            {metric: {inner step: {sampler: {estimate, low, high, p}}}}: sampler - baseline, at the last
                       point, p after Holm; without the baseline itself
improvement            {metric: {inner step: {samplers, matrix, low, high}}}: probability that the row is better than
                       the column, at the last point
heatmaps               {label?, higher_is_better?, linear?: of what the maps show,
                        views: [{x: axis, y: axis or None}],
                        values: [{inner step: {point: {sampler: [...]}}} a view],
                        differences: likewise, sampler - baseline, without the baseline itself}
                       with an axis {name, unit, edges, ticks?: [[place, label]], cells?: [a name or range each]} and
                       the mean over seeds of cell (ix, iy) at ix * ny + iy
configuration          [{key, values: {sampler: text}}]: the keys that differ
```

Health, differences, improvement, heatmaps and configuration may be missing or empty; their sections are left out then.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twmaml.storage.files import whole_file

_TEMPLATE = Path(__file__).with_name("page.html")
_PLACE = "{{data}}"


def write_page(data: Mapping[str, Any], path: Path) -> None:
    """Writes the page whole or not at all. Numbers are written as given: round what need not be exact."""
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))  # ASCII: any name, in any encoding
    text = text.replace("<", "\\u003c")  # else a name could end the script element: "</script>", "<!--"
    page = _TEMPLATE.read_text(encoding="utf-8").replace(_PLACE, text, 1)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        # Nearly all there is are numbers that may stay: a call for each would take most of the time.
        return [item if type(item) is float and math.isfinite(item) else _plain(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy or JAX
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
