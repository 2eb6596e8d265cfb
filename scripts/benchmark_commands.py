"""Speed of sweeps, of checkpoints and of whole commands, for `scripts/benchmark.py`."""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_loops import CompiledLoop, Row, clock, compose, own_process

from twmaml.figures.pool import count_cores
from twmaml.storage.checkpoint import Checkpoint, Notes, pack, write
from twmaml.storage.metrics_file import Mark

MAIN_JOB = ("task=sin2d", "sampler=importance_delta")
"""The job that everything else is measured against."""

SIX = "sampler=delta,epsilon_greedy,importance,importance_delta,uniform,weighted"


def of_sweep() -> list[Row]:
    """Seed-steps a second of one seed on one core and of eight on all, in turn."""
    cores = count_cores()
    kinds = {"one seed on one core": (1, 1), f"eight seeds on {cores} cores": (cores, 8)}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    processes = {name: own_process(used) for name, (used, _) in kinds.items()}
    for steps in [10, *[1000] * 9]:
        for name, (_, seeds) in kinds.items():
            rates[name].append(processes[name].submit(seed_steps_a_second, seeds, steps).result())
    for process in processes.values():
        process.shutdown()
    one, many = (np.array(values[1:]) for values in rates.values())  # the first block compiles
    rows = [Row(f"sweep, {name}", values, "seed-steps/s") for name, values in zip(kinds, (one, many), strict=True)]
    return [*rows, Row(f"sweep, eight on {cores} cores to one on one", many / one, "x")]


def seed_steps_a_second(seeds: int, steps: int) -> float:
    """The rate of one block."""
    loop, began = _loop_of(seeds), time.perf_counter()
    loop(steps)
    return seeds * steps / (time.perf_counter() - began)


@cache
def _loop_of(seeds: int) -> CompiledLoop:
    return CompiledLoop(compose(MAIN_JOB), seeds)


def of_checkpoints() -> list[Row]:
    """CPU-seconds of a checkpoint, and their share if nothing is left over for the thread that writes them."""
    parts = compose(MAIN_JOB)
    began = clock()
    importlib.import_module("orbax.checkpoint")
    importing, seconds = clock() - began, _seconds_of_checkpoints(parts, blocks=15, steps=500)
    share = 100 * seconds[:, 1] / (seconds[:, 0] * 20_000)
    return [
        Row("import of Orbax, once", [importing], "s"),
        Row("one checkpoint", 1000 * seconds[:, 1], "ms"),
        Row("its share, one every 20,000 meta-steps", share, "%"),
    ]


def _seconds_of_checkpoints(parts: Any, blocks: int, steps: int) -> np.ndarray:
    """CPU-seconds of a meta-step and of a checkpoint, by block."""
    evaluation = parts.evaluations["eval"]
    arrays = {name: np.asarray(leaf) for name, leaf in pack(parts.learner.init(0)).items()}
    arrays["losses"] = np.zeros((evaluation.grid.size, evaluation.steps + 1))
    loop, seconds = CompiledLoop(parts), []
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "checkpoints").mkdir()
        for block in range(blocks + 1):
            began = clock()
            loop(steps)
            between = clock()
            write(Path(name), Checkpoint(Notes(block, 0, {}, {}, 0.0, Mark(0, ""), None), arrays), keep=3)
            seconds.append([(between - began) / steps, clock() - between])
    return np.array(seconds[1:])  # the first block imports


def of_commands() -> list[Row]:
    """CPU-seconds of the main job, from the command to its end: with all checkpoints, or just the last."""
    kinds = {"all checkpoints": [], "only the last": ["checkpoint.every=2000000000"]}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(5):
        for kind, own in kinds.items():
            with _started("wandb.mode=disabled", *MAIN_JOB, *own) as (folder, process):
                seconds[kind].append(_cpu_seconds(folder, process))
    every, last = (np.array(values) for values in seconds.values())
    rows = [Row(f"the whole main job, {kind}", values, "s") for kind, values in seconds.items()]
    return [*rows, Row("the whole main job, ratio of these", every / last, "x")]


def of_start() -> list[Row]:
    """From the command to the first meta-step: of a sweep of 48 jobs, of one seed, and what one more seed adds."""
    kinds = [(SIX, 8), ("sampler=uniform", 1), ("sampler=uniform", 9)]
    whole, one, nine = np.array([[_seconds_to_first_step(*kind) for kind in kinds] for _ in range(3)]).T
    return [
        Row("first meta-step, sweep of 6 x 8 jobs", whole, "s"),
        Row("first meta-step, one seed", one, "s"),
        Row("first meta-step, one more seed adds", 100 * (nine - one) / 8 / one, "%"),
    ]


def of_whole_sweeps() -> list[Row]:
    """The same 48 jobs of 5,000 meta-steps as one sweep of groups and one by one."""
    seconds = {}
    for launcher in ("vectorised", "basic"):
        jobs = [SIX, "seed=0,1,2,3,4,5,6,7", "steps=5000", f"hydra/launcher={launcher}"]
        began = time.perf_counter()
        with _started(*jobs) as (folder, process):
            _check(folder, process.wait())
        seconds[launcher] = time.perf_counter() - began
    rows = [Row(f"48 jobs, hydra/launcher={launcher}", [value], "s") for launcher, value in seconds.items()]
    return [*rows, Row("48 jobs, ratio", [seconds["basic"] / seconds["vectorised"]], "x")]


def of_long_runs() -> list[Row]:
    """Meta-steps a second of the main job as a command on one core, with all that goes on beside them."""
    with own_process(1) as process:
        rates = [[process.submit(_rate_of_run, steps).result() for _ in range(3)] for steps in (20_000, 100_000)]
    return [
        Row("the command, 20,000 meta-steps", rates[0], "meta-steps/s"),
        Row("the command, 100,000 meta-steps", rates[1], "meta-steps/s"),
    ]


def _rate_of_run(steps: int) -> float:
    with _started(*MAIN_JOB, f"steps={steps}") as (folder, process):
        _check(folder, process.wait())
        return json.loads((folder / "sweep" / "0" / "summary.json").read_text())["meta_steps_per_second"]


def of_host() -> list[Row]:
    """What the host takes of the time of a run on its own, by `timed_run.py`: evaluations, rows, checkpoints."""
    script, steps = Path(__file__).with_name("timed_run.py"), 100_000
    with tempfile.TemporaryDirectory() as name:
        run = [sys.executable, script, *MAIN_JOB, f"steps={steps}", "wandb.mode=offline"]
        told = [subprocess.run(run, cwd=name, capture_output=True, text=True, check=True).stdout for _ in range(7)]
    shares = [float(share) for each in told for share in re.findall(r"^(\S+) % of", each, re.MULTILINE)]
    return [Row(f"between chunks, {steps:,} meta-steps on {count_cores()} cores", shares, "%")]


@contextmanager
def _started(*overrides: str) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A command in an empty folder, with nothing cached; what is left of it in the end is killed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{name}/cache", "WANDB_MODE": "offline"}
        arguments = [sys.executable, "-m", "twmaml.train", "--multirun", "hydra.sweep.dir=sweep", *overrides]
        with (Path(name) / "errors").open("wb") as errors:
            process = subprocess.Popen(arguments, cwd=name, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            yield Path(name), process
        finally:
            process.kill()
            process.wait()


def _cpu_seconds(folder: Path, process: subprocess.Popen[bytes]) -> float:
    """Of a command until its end."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status  # so that it is not waited for again
    _check(folder, status)
    return usage.ru_utime + usage.ru_stime


def _check(folder: Path, status: int | None) -> None:
    if status:
        raise RuntimeError(f"the command failed: {(folder / 'errors').read_text()}")


def _seconds_to_first_step(samplers: str, seeds: int) -> float:
    """From the command to the row of the first meta-step."""
    began = time.perf_counter()
    with _started(samplers, f"seed={','.join(map(str, range(seeds)))}", "log_every=1") as (folder, process):
        rows = folder / "sweep" / "0" / "metrics.csv"
        while not rows.exists() or rows.read_text().count("\n") < 3:
            _check(folder, process.poll())
            time.sleep(0.02)
        return time.perf_counter() - began
