"""summary.json: how a run ended, its last metrics, and what it ran on."""

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from twmaml.storage.files import damaged, write_json

FILE = "summary.json"

FINISHED = "finished"
"""The status of a run that has come to its end, be it early (`stopped_early`)."""

_PACKAGES = ("twmaml", "jax", "jaxlib", "optax", "numpy", "hydra-core", "wandb")


class Summary(NamedTuple):
    """The end of a run."""

    status: str
    """`finished`, `interrupted`, or `failed: ` and the one line that says why."""
    seed: int
    step: int
    """Meta-steps that it was trained for."""
    wall_seconds: float
    runs_at_once: int | None
    meta_steps_per_second: float | None
    """Since it last went on; None if it has not trained."""
    metrics: Mapping[str, float]
    """The latest, by name."""
    device: str | None
    protocols: Mapping[str, str]
    """By split: what a figure of the run must agree in with another that it is compared with."""
    best_step: int | None = None
    """The meta-step of the best checkpoint; None without a split `validation`."""
    stopped_early: int | None = None
    """The evaluations without a new best that ended it before its last meta-step; None if they did not."""


def write(folder: Path, summary: Summary) -> None:
    """Writes the summary of the run in a folder, and the versions of the packages, at once or not at all."""
    fields = {
        name: value for name, value in summary._asdict().items() if name not in ("metrics", "device", "protocols")
    }
    versions = {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
    write_json(
        folder / FILE,
        {**fields, **summary.metrics, **versions, "device": summary.device, "protocols": dict(summary.protocols)},
    )


def read(folder: Path) -> Summary:
    """Reads the summary of the run in a folder.

    Raises:
        FileNotFoundError: if the run has not ended.
        DamagedFileError: if it is no summary.
    """
    text = (folder / FILE).read_text()
    try:
        found = json.loads(text)
        return Summary(
            status=str(found["status"]),
            seed=int(found["seed"]),
            step=int(found["step"]),
            wall_seconds=float(found.get("wall_seconds", math.nan)),
            runs_at_once=found.get("runs_at_once"),
            meta_steps_per_second=found.get("meta_steps_per_second"),
            metrics={k: math.nan if v is None else float(v) for k, v in found.items() if "/" in k},
            device=found.get("device"),
            protocols=dict(found.get("protocols", {})),
            best_step=found.get("best_step"),
            stopped_early=found.get("stopped_early"),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(folder / FILE, error) from error
