"""Memory of a run as the grid, the network and the group grow: what the compiler predicts, and what a command takes.

`python scripts/memory.py` takes some minutes. Every row is the command, in a process of its own, for a few meta-steps,
with a checkpoint and its figures. Measured is the most that the process holds at once, less that of the main job of
one meta-step and the smallest grid, which is Python, JAX and Matplotlib. Predicted is the larger of the programs'
arguments, results and temporary arrays, by which a group is split when it does not fit.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmark_loops import compose, own_process

from twmaml.training.devices import shard_runs
from twmaml.training.members import Group
from twmaml.training.programs import Tracing, bytes_taken

CHEAP = ["steps=200", "log_every=100", "evaluation.cells=[5,5]", "evaluation.every=100", "wandb.mode=disabled"]


class Case(NamedTuple):
    """A row: its overrides, and its number of runs."""

    what: str
    overrides: Sequence[str]
    runs: int = 1


def cells(amplitudes: int, phases: int) -> list[str]:
    """A grid of so many cells."""
    return [f"task.amplitude.cells={amplitudes}", f"task.phase.cells={phases}"]


CASES = [
    *[
        Case(f"{a * b:,} cells, {sampler}", [f"sampler={sampler}", *cells(a, b)])
        for a, b in ((40, 25), (400, 250), (1000, 1000), (4000, 2500))
        for sampler in ("uniform", "importance_delta")
    ],
    *[Case(f"hidden {n}-{n}", [f"model.widths=[{n},{n}]"]) for n in (40, 256, 1024)],
    *[Case(f"{runs} runs", [], runs) for runs in (8, 64)],
    Case("8 runs of 1,000,000 cells", ["sampler=importance_delta", *cells(1000, 1000)], 8),
]


def predicted(case: Case) -> float:
    """Bytes of the programs of a group, as the compiler counts them."""
    parts = compose(["task=sin2d", *CHEAP, *case.overrides])
    with ThreadPoolExecutor() as background:
        group = Group([parts] * case.runs, range(case.runs), [{}] * case.runs)
        programs = Tracing(group, background).compiled(np.inf)
    sharding = shard_runs(case.runs)
    return max(bytes_taken(each, sharding) for each in (programs._train, *programs._evaluate.values()))


def measured(case: Case) -> float:
    """The most bytes that the command holds at once."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = f"seed=[{','.join(map(str, range(case.runs)))}]" if case.runs > 1 else "seed=0"
        command = [sys.executable, "-m", "twmaml.train", "task=sin2d", *CHEAP, *case.overrides, seeds]
        errors = Path(folder) / "errors"
        with errors.open("wb") as file:
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        if status:
            raise RuntimeError(errors.read_text())
        return usage.ru_maxrss * 1024


def main() -> None:
    """Prints the table."""
    least = measured(Case("", ["steps=1", *cells(2, 2), "evaluation.cells=[2,2]"]))
    print(f"{least / 2**20:,.0f} MiB are taken by any command; besides, in MiB:\n")
    print("| | predicted | measured |\n|---|---|---|")
    for case in CASES:
        with own_process(2) as process:
            needed = process.submit(predicted, case).result()
        print(f"| {case.what} | {needed / 2**20:,.1f} | {(measured(case) - least) / 2**20:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
