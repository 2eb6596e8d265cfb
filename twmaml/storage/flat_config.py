"""Configurations by the keys that a user types."""

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested configuration, their keys joined by dots."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


ADDED = {"evaluation.inside_cells": False, "task.noise": 0.0, "model.bias": "zero"}
"""Keys that runs of earlier versions lack, each with the value that says what they did."""


def flatten_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a run, whatever version it is of: the keys that were added since have the value that it ran with."""
    found = dict(flatten(config))
    added = {k: v for k, v in ADDED.items() if not any(key == k or key.startswith(f"{k}.") for key in found)}
    return found | added
