"""The command line of comparisons: `python -m twmaml.compare outputs/multirun/...`."""

import argparse
import atexit
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twmaml.analysis.exits import in_one_line
from twmaml.analysis.report import compare

if TYPE_CHECKING:
    from twmaml.analysis.comparison import DrawPicture


def main() -> None:
    """Compares the runs in the given folders. A mistake ends in one line and exit code 1."""
    gc.set_threshold(100_000)  # to look through all that is imported for garbage takes a fifth of a small comparison
    atexit.register(gc.freeze)
    parser = argparse.ArgumentParser(
        prog="python -m twmaml.compare",
        description="Did the sampler help, where, and how sure are we? Reads finished runs; prints a table, and "
        "writes figures and a web page that needs no network.",
        epilog="example: python -m twmaml.compare outputs/multirun/2026-11-24_00-10-00 --baseline uniform",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="sweeps, jobs or runs, in any number")
    parser.add_argument("--baseline", default="uniform", help="what the others are compared with (default: uniform)")
    parser.add_argument("--split", default="eval", help="one of evaluation.splits, whose tasks count (default: eval)")
    parser.add_argument(
        "--budget",
        default="meta_steps",
        help="what each run has spent as much of where they are compared: meta_steps (default), tasks_adapted, "
        "tasks_trained",
    )
    parser.add_argument(
        "--output", type=Path, help="where to write (default: comparison[_SPLIT][_BUDGET]/ in the first folder)"
    )
    parser.add_argument("--full", action="store_true", help="print every table, not only the answer with its own")
    arguments = parser.parse_args()
    split, budget = arguments.split, arguments.budget
    own = [*([] if split == "eval" else [split]), *([] if budget == "meta_steps" else [budget])]
    output = arguments.output or arguments.folders[0] / "_".join(["comparison", *own])
    with in_one_line():
        compare(arguments.folders, arguments.baseline, split, budget, output, arguments.full, draw_picture_of)


def draw_picture_of(config: Mapping[str, Any]) -> "DrawPicture | None":
    """Draws the pictures of the family in a configuration; None if its code is not to be run."""
    from twmaml.configuration.instantiation import trusted_family  # noqa: PLC0415  a second that only pictures take

    family = trusted_family(config)
    return None if family is None else family.draw_picture


if __name__ == "__main__":
    main()
