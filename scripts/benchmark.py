"""Speed of everything, as one table: `python scripts/benchmark.py`, or some parts: `... loop grids`.

Parts with one process run pinned to one core, and their seconds are CPU-seconds; loops that are compared run in turn,
block by block. What to compare between versions are the ratios to a plain loop, as machines are noisy: it is what a
careful user would write, one jitted gradient step, and sampling, task data and the queue in NumPy on the host.

`--whole` adds what takes minutes: whole commands, the time to the first meta-step with nothing cached, whole sweeps.
The table is written as JSON too, and compared with the one that was kept (`--keep`).
"""

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import benchmark_commands as commands
import jax
import jax.numpy as jnp
import numpy as np
from benchmark_loops import (
    STEPS_A_SECOND,
    CompiledLoop,
    Row,
    TaskByTask,
    clock,
    compose,
    in_turn,
    own_process,
    plain_loop,
    spread,
    steps_in,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from twmaml.configuration.config_files import configuration_folder
from twmaml.errors import ConfigurationError
from twmaml.figures.pool import count_cores
from twmaml.training.devices import QUICKLY, compile_program, over_runs, shard_runs

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "benchmark.json"

SIZES = {
    "hidden 64-64": ["model.widths=[64,64]"],
    "hidden 128-128-128": ["model.widths=[128,128,128]"],
    "hidden 256-256": ["model.widths=[256,256]"],
    "five inner steps": ["adaptation.steps=5"],
    "sin3d": ["task=sin3d"],
}
GRIDS = {"10^3": (40, 25), "10^4": (100, 100), "10^5": (400, 250), "10^6": (1000, 1000), "10^7": (4000, 2500)}
"""Cells of amplitude and phase."""


def of_loop() -> list[Row]:
    """The main job beside the plain loop."""
    plain, ours, ratio = beside_plain_loop([], blocks=15, steps=500)
    return [
        Row("the plain loop", plain, STEPS_A_SECOND),
        Row("the loop", ours, STEPS_A_SECOND),
        Row("the loop, to the plain one", ratio, "x"),
    ]


def of_sizes() -> list[Row]:
    """The same at other sizes."""
    rows = []
    for name, overrides in SIZES.items():
        _, ours, ratio = beside_plain_loop(overrides, blocks=7, steps=250)
        rows += [Row(f"the loop, {name}", ours, STEPS_A_SECOND), Row(f"the loop, {name}, to the plain one", ratio, "x")]
    return rows


def beside_plain_loop(overrides: Sequence[str], blocks: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates of the plain loop and of twmaml's, and their ratio."""
    parts = compose([*commands.MAIN_JOB, *overrides])
    loops = {"plain": (plain_loop(parts.learner), steps), "twmaml": (CompiledLoop(parts), steps)}
    plain, ours = in_turn(loops, blocks).values()
    return plain, ours, ours / plain


def of_evaluation() -> list[Row]:
    """One evaluation, after compilation."""
    parts = compose(commands.MAIN_JOB)
    evaluation = parts.evaluations["eval"]
    arguments = jax.vmap(parts.learner.init)(jnp.zeros(1, jnp.uint32)).meta_params, evaluation.tasks()
    program = compile_program(over_runs(evaluation.results, shard_runs(1)).lower(*arguments), QUICKLY)
    times = []
    for _ in range(16):
        began = clock()
        jax.block_until_ready(program(*arguments))
        times.append(1000 * (clock() - began))
    name = f"evaluation, {evaluation.grid.size} tasks x {evaluation.steps} steps"
    return [Row(name, times[1:], "ms")]


def of_grids() -> list[Row]:
    """The cost of a queue of so many cells: a meta-step of a proportional sampler less one of the uniform sampler."""
    small = CompiledLoop(compose(["task=sin2d", "sampler=uniform"]))
    rows = []
    for name, (amplitudes, phases) in GRIDS.items():
        cells = [f"task.amplitude.cells={amplitudes}", f"task.phase.cells={phases}"]
        large = CompiledLoop(compose(["task=sin2d", "sampler=weighted", *cells]))
        without, rates = in_turn({"uniform": (small, 1000), name: (large, 1000)}, blocks=9).values()
        rows.append(Row(f"queue of {name} cells", 1e6 / rates - 1e6 / without, "µs"))
    return rows


def of_samplers() -> list[Row]:
    """The time of a meta-step with each sampler, to that with `weighted`."""
    names = [path.stem for path in sorted((Path(configuration_folder()) / "sampler").glob("*.yaml"))]
    kinds = {name: [f"sampler={name}"] for name in names} | {
        "tail_risk, density": ["sampler=tail_risk", "sampler.quantile=density"],
        "tail_risk, queue": ["sampler=tail_risk", "sampler.quantile=queue"],
        "risk_prediction, diverse": ["sampler=risk_prediction", "sampler.selection=diverse", "sampler.candidates=32"],
    }
    loops = {name: (CompiledLoop(compose(["task=sin2d", *kind])), 300) for name, kind in kinds.items()}
    rates = in_turn(loops, blocks=7)
    return [Row(f"{name}, to weighted", rates["weighted"] / each, "x time") for name, each in rates.items()]


def of_norms() -> list[Row]:
    """The time of a meta-step that tells the gradients of the tasks apart, to that of one that does not."""
    parts = compose(["task=sin2d", "sampler=weighted"])
    apart = replace(parts, learner=TaskByTask(**vars(parts.learner)))
    loops = {name: (CompiledLoop(each), 300) for name, each in (("all at once", parts), ("task by task", apart))}
    at_once, by_task = in_turn(loops, blocks=9).values()
    return [Row("the norm of every task's gradient", at_once / by_task, "x time")]


def of_adaptations() -> list[Row]:
    """The time of a meta-step of one inner step with each adaptation, to that with `maml`."""
    names = [path.stem for path in sorted((Path(configuration_folder()) / "adaptation").glob("*.yaml"))]
    kinds = {name: ["task=sin2d", f"adaptation={name}", "adaptation.steps=1"] for name in names}
    rates = in_turn({name: (CompiledLoop(compose(kind)), 300) for name, kind in kinds.items()}, blocks=9)
    return [Row(f"{name}, to maml", rates["maml"] / each, "x time") for name, each in rates.items()]


def of_images() -> list[Row]:
    """Few-shot classification, by filters."""
    job = ["task=glyphs", "sampler=weighted", "meta_batch=8"]
    return rates_of({f"glyphs, {n} filters": [*job, f"model.filters={n}"] for n in (16, 32, 64)})


def of_control() -> list[Row]:
    """Meta-reinforcement learning, by environment."""
    return rates_of({name: [f"task={name}", "sampler=weighted"] for name in ("navigation", "cartpole", "pendulum")})


def rates_of(jobs: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rates of some jobs in turn, but for those whose packages are not there."""
    loops = {}
    for name, overrides in jobs.items():
        try:
            loop = CompiledLoop(compose(overrides))
        except ConfigurationError as error:
            Console(stderr=True).print(f"left out: {error}", markup=False)
            continue
        loops[name] = loop, steps_in(loop, seconds=1)
    return [Row(name, values, STEPS_A_SECOND) for name, values in in_turn(loops, blocks=5).items()]


def pinned(measure: Callable[[], Any]) -> Callable[[], Any]:
    """The same in a process of its own, on one core."""

    def in_own_process() -> Any:
        with own_process(1) as process:
            return process.submit(measure).result()

    return in_own_process


Measure = Callable[[], list[Row]]
PARTS: dict[str, Measure] = {
    "loop": pinned(of_loop),
    "sizes": pinned(of_sizes),
    "evaluation": pinned(of_evaluation),
    "grids": pinned(of_grids),
    "samplers": pinned(of_samplers),
    "norms": pinned(of_norms),
    "adaptations": pinned(of_adaptations),
    "sweep": commands.of_sweep,
    "images": pinned(of_images),
    "control": pinned(of_control),
    "checkpoint": pinned(commands.of_checkpoints),
}
WHOLE: dict[str, Sequence[Measure]] = {
    "loop": [commands.of_long_runs, commands.of_host],
    "sweep": [commands.of_start, commands.of_whole_sweeps],
    "checkpoint": [commands.of_commands],
}
"""The long measures of a part."""


def measure(names: Sequence[str], whole: bool) -> list[Row]:
    """All rows of some parts."""
    measures = [(name, one) for name in names for one in (PARTS[name], *(WHOLE.get(name, ()) if whole else ()))]
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    rows = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(measures))
        for name, one in measures:
            progress.update(task, description=name)
            rows += one()
            progress.advance(task)
    return rows


def device_kind() -> str:
    """The kind of device, on a CPU with the processor's name where the system tells it."""
    kind, listed = jax.devices()[0].device_kind, Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", listed.read_text()) if kind == "cpu" and listed.exists() else None
    return f"{kind} ({found.group(1)})" if found else kind


def circumstances() -> dict[str, Any]:
    """Everything besides the program that a measure depends on, and which program it is."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "jax": version("jax"),
        "device": pinned(device_kind)(),
        "cores": count_cores(),
        "commit": commit.stdout.strip(),
    }


def summary(row: Row) -> dict[str, Any]:
    """A row as it is written."""
    what, values, unit = row
    return {"what": what, "unit": unit, "median": np.median(values), "min": min(values), "max": max(values)}


def compare(new: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """The ratio of two rows, and whether their ranges say that it is no chance; nothing for differences around 0."""
    if min(new["min"], kept["min"]) <= 0:
        return ""
    ratio = f"{new['median'] / kept['median']:.2f}"
    once, overlapping = new["min"] == new["max"], new["min"] <= kept["max"] and kept["min"] <= new["max"]
    if once or overlapping:
        return ratio
    more_is_faster = new["unit"] == "x" or new["unit"].endswith("/s")
    return f"{ratio} {'faster' if (new['median'] > kept['median']) == more_is_faster else 'slower'}"


def table(record: Mapping[str, Any], kept: Mapping[str, Any] | None) -> str:
    """The rows in columns, in Markdown; with a column for the comparison if there is one."""
    earlier = {row["what"]: row for row in kept["rows"]} if kept else {}
    lines = [["what", "median [min, max]", "unit", *(["new/kept"] if kept else [])]]
    for row in record["rows"]:
        figures = spread([row["min"], row["median"], row["max"]])
        ratio = [compare(row, earlier[row["what"]]) if row["what"] in earlier else ""] if kept else []
        lines.append([row["what"], figures, row["unit"], *ratio])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def show(record: Mapping[str, Any], kept: Mapping[str, Any] | None) -> None:
    """Prints the table, and what it is compared with."""
    print("jax {jax} on {device}, {cores} cores, commit {commit}".format_map(record))
    if kept and kept["device"] != record["device"]:
        print("Not compared with {date}, commit {commit}, as that was measured on {device}.".format_map(kept))
        kept = None
    elif kept:
        print("Compared with {date}, commit {commit}, jax {jax}.".format_map(kept))
    print(f"\n{table(record, kept)}")


def main() -> None:
    """Prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--whole", action="store_true", help="whole runs and sweeps besides, which take minutes")
    parser.add_argument("--json", type=Path, default=ROOT / "outputs" / "benchmark.json", metavar="FILE")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="an earlier one to compare with; by default the kept one"
    )
    parser.add_argument("--keep", action="store_true", help="make this the one that later ones are compared with")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}. Parts are {', '.join(PARTS)}")
    if arguments.keep and arguments.parts:
        parser.error("only a table of all parts is kept")
    against = arguments.against or (KEPT if KEPT.exists() else None)
    kept = json.loads(against.read_text()) if against else None
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    record = circumstances()
    record["rows"] = [summary(row) for row in measure(arguments.parts or list(PARTS), arguments.whole)]
    show(record, kept)
    for path in [arguments.json, *([KEPT] if arguments.keep else [])]:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
