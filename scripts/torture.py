"""Kills a run again and again, and lets it go on: in the end it must be the run that nobody has disturbed, to the bit.

`python scripts/torture.py` kills it 30 times (`kill -9`) and asks it 10 times to end (SIGTERM), at random moments of
the training and, now and then, of the start. After each, every file must be readable. `--task glyphs` does so with
images, `--sweep` with two seeds of every sampler as one program.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twmaml.storage.checkpoint import Checkpoint, newest, steps_in
from twmaml.storage.metrics_file import read_metrics

SMALL = [
    "log_every=100",
    "evaluation.every=1000",
    "meta_batch=4",
    "checkpoint.every=500",
    "wandb.mode=disabled",
]
"""A run that is over soon, with all of a run's files."""

ONE, SWEEP = ["sampler=importance_delta"], ["--multirun", "sampler=glob(*)", "seed=0,1"]

OF_TASK = {
    "sin2d": ["evaluation.cells=[4,3]", "model.widths=[8]"],
    "glyphs": [
        *("model.filters=4", "task.ways=3", "evaluation.splits.eval.draws=1", "evaluation.splits.seen.draws=1"),
        *("task.noise.evaluation_cells=1", "evaluation.steps=1"),
    ],
}
"""The keys that make each task small."""

AT_START = 0.15
"""The share of signals that come while the program starts."""


def start(folder: Path, overrides: Sequence[str]) -> subprocess.Popen[bytes]:
    """The command of a run, to begin it and to go on with it."""
    where = "sweep" if "--multirun" in overrides else "run"
    command = [sys.executable, "-m", "twmaml.train", *SMALL, *overrides, f"hydra.{where}.dir={folder.name}"]
    return subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.DEVNULL)


def runs_in(folder: Path) -> list[Path]:
    """The folders of the runs that have begun."""
    return sorted(path.parent for path in (folder, *folder.glob("*/")) for path in path.glob("metrics.csv"))


def last_step(folder: Path) -> int:
    """The step of the last row of metrics.csv, -1 if there is none; all rows must be whole."""
    steps = []
    for run in runs_in(folder):
        try:
            metrics = read_metrics(run / "metrics.csv")
        except FileNotFoundError:  # a run that begins anew removes it
            metrics = {}
        steps.append(int(metrics["step"][-1]) if metrics else -1)
    return min(steps, default=-1)


def checkpoint_of(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, which must be whole."""
    steps = steps_in(folder)
    (checkpoint,) = newest([folder])
    assert checkpoint is None or checkpoint.notes.step == steps[0], f"the checkpoint {steps[0]} is damaged"
    return checkpoint


def check_files(folder: Path) -> int:
    """Reads every file that a killed run has left; the step of its newest checkpoint."""
    assert (folder / "metrics.csv").read_bytes().endswith(b"\n")
    for path in (folder / "evaluation").rglob("*.npz"):
        with np.load(path) as saved:
            assert saved["losses"].size > 0
    checkpoint = checkpoint_of(folder)
    return 0 if checkpoint is None else checkpoint.notes.step


def disturb(folder: Path, overrides: Sequence[str], number: signal.Signals, at: int | None, chance: float) -> str:
    """Starts the run, and sends it a signal.

    Args:
        folder: of the run.
        overrides: of its configuration.
        number: the signal.
        at: the meta-step from which on it comes; None: while the program starts.
        chance: from 0 to 1, how much later.

    Returns:
        A line on what was lost.
    """
    process = start(folder, overrides)
    if at is None:
        time.sleep(5 * chance)
    else:
        while last_step(folder) < at and process.poll() is None:
            time.sleep(0.005)
        time.sleep(0.2 * chance)
    process.send_signal(number)
    process.wait()
    where, kept = last_step(folder), min(map(check_files, runs_in(folder)), default=0)
    moment = "while it started" if at is None else f"at meta-step {where:,}"
    return f"{number.name} {moment}: goes on from {kept:,}, {max(0, where - kept):,} meta-steps lost"


def differences(first: Path, second: Path) -> list[str]:
    """Everything that is not the same in two runs."""
    if len(runs := runs_in(first)) > 1:
        of_runs = {run.name: differences(run, second / run.name) for run in runs}
        lost = [] if [run.name for run in runs_in(second)] == [*of_runs] else ["the jobs"]
        return lost + [f"{each} of job {name}" for name, found in of_runs.items() for each in found]
    differing = []
    names = [path.relative_to(first) for path in (first / "evaluation").rglob("*.*")]
    if set(names) != {path.relative_to(second) for path in (second / "evaluation").rglob("*.*")}:
        differing.append("the names in evaluation/")
    for name in [Path("metrics.csv"), *names]:
        if (first / name).read_bytes() != (second / name).read_bytes():
            differing.append(str(name))
    one, other = checkpoint_of(first), checkpoint_of(second)
    assert one is not None
    assert other is not None
    if one.notes != other.notes:
        differing.append("the notes of the last checkpoint")
    for name in sorted({*one.arrays, *other.arrays}):
        arrays = [checkpoint.arrays.get(name) for checkpoint in (one, other)]
        if any(array is None for array in arrays) or arrays[0].tobytes() != arrays[1].tobytes():  # type: ignore[union-attr]
            differing.append(f"{name} in the last checkpoint")
    return differing


def main() -> None:
    """Prints every signal with what it cost, and the verdict, which is the exit code too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=30, help="kill -9")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERM")
    parser.add_argument("--steps", type=int, default=100_000, help="length of the run in meta-steps")
    parser.add_argument("--task", default="sin2d", choices=list(OF_TASK), help="what is trained")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; by default other ones each time")
    parser.add_argument("--sweep", action="store_true", help="two seeds of every sampler instead of one run")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="configuration, as for twmaml.train")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    signals = [signal.SIGKILL] * arguments.kills + [signal.SIGTERM] * arguments.terms
    generator.shuffle(signals)
    moments = sorted(generator.randrange(int(0.95 * arguments.steps)) for _ in signals)
    overrides = [
        *(SWEEP if arguments.sweep else ONE),
        f"task={arguments.task}",
        *OF_TASK[arguments.task],
        f"steps={arguments.steps}",
        *arguments.set,
    ]
    with tempfile.TemporaryDirectory() as name:
        disturbed, alone = Path(name) / "disturbed", Path(name) / "alone"
        for count, (number, moment) in enumerate(zip(signals, moments, strict=True), 1):
            at = None if generator.random() < AT_START else moment
            print(f"{count:>3}  {disturb(disturbed, overrides, number, at, generator.random())}", flush=True)
        for folder in (disturbed, alone):
            if start(folder, overrides).wait() != 0:
                raise RuntimeError(f"the run {folder.name} failed")
        differing = differences(disturbed, alone)
    print(f"{arguments.kills} x SIGKILL, {arguments.terms} x SIGTERM, {arguments.steps:,} meta-steps:", end=" ")
    print(f"not the same: {', '.join(differing)}" if differing else "the same as undisturbed, to the bit")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
