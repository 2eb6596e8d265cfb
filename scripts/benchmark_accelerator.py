"""Speed on an accelerator: many runs at once, one long run, samplers that share a program, images, control.

`python scripts/benchmark_accelerator.py` prints a table of seed-steps a second (meta-steps, summed over the runs of a
program); `... runs images` prints parts of it. Programs are those that a sweep would be trained with. All of a part are
compiled first, side by side; then their blocks run in turn, in seconds of the clock.
"""

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import jax
from benchmark_loops import compose, in_turn, spread, steps_in

from twmaml.configuration.config_files import configuration_folder
from twmaml.training.members import Group
from twmaml.training.programs import Tracing

SINE = ["task=sin2d", "sampler=importance_delta"]
IMAGES = ["task=glyphs", "sampler=weighted", "model.filters=64"]
OWN_SIX = ("delta", "epsilon_greedy", "importance", "importance_delta", "uniform", "weighted")

Job = tuple[Sequence[Sequence[str]], int]
"""What the runs of a program are composed of, and seeds of each."""


def of_runs() -> Mapping[str, Job]:
    """The main job, by runs."""
    return {f"sin2d, runs {runs}": ([SINE], runs) for runs in (1, 8, 64, 256, 1024, 4096)}


def of_sizes() -> Mapping[str, Job]:
    """One run, and 64, by the width of the network, by inner steps and by cells."""
    kinds = {
        "hidden 256-256": ["model.widths=[256,256]"],
        "hidden 1024-1024": ["model.widths=[1024,1024]"],
        "five inner steps": ["adaptation.steps=5"],
        "10^6 cells": ["task.amplitude.cells=1000", "task.phase.cells=1000"],
    }
    return {f"{name}, runs {runs}": ([[*SINE, *kind]], runs) for name, kind in kinds.items() for runs in (1, 64)}


def of_samplers() -> Mapping[str, Job]:
    """Samplers that share a program, beside each in one of its own."""
    every = sorted(path.stem for path in (Path(configuration_folder()) / "sampler").glob("*.yaml"))
    alone = {f"{name}, runs 64": ([["task=sin2d", f"sampler={name}"]], 64) for name in every}
    shared = {"the own six": OWN_SIX, f"all {len(every)}": every}
    return {
        f"{name}, 8 runs each": ([["task=sin2d", f"sampler={s}"] for s in of], 8) for name, of in shared.items()
    } | alone


def of_images() -> Mapping[str, Job]:
    """Conv4 with 64 filters, by precision, tasks and runs."""
    forms = {"float32": [], "bfloat16": ["model.precision=bfloat16"]}
    sizes = {"4 tasks, runs 1": (4, 1), "32 tasks, runs 1": (32, 1), "4 tasks, runs 8": (4, 8)}
    return {
        f"glyphs, 64 filters, {form}, {size}": ([[*IMAGES, *overrides, f"meta_batch={tasks}"]], runs)
        for size, (tasks, runs) in sizes.items()
        for form, overrides in forms.items()
    }


def of_control() -> Mapping[str, Job]:
    """Meta-reinforcement learning, by environment and runs."""
    return {
        f"{name}, runs {runs}": ([[f"task={name}", "sampler=weighted"]], runs)
        for name in ("navigation", "cartpole")
        for runs in (1, 16, 64)
    }


PARTS = {"runs": of_runs, "sizes": of_sizes, "samplers": of_samplers, "images": of_images, "control": of_control}


def trace(job: Job, background: Executor) -> tuple[Tracing, int]:
    """The program of a job, which is being compiled, and its runs."""
    kinds, seeds = job
    parts = [each for each in map(compose, kinds) for _ in range(seeds)]
    group = Group(parts, [*range(seeds)] * len(kinds), [{}] * len(parts))
    return Tracing(group, background), len(parts)


class Loop:
    """Chunks of meta-steps of several runs, as a sweep trains them."""

    def __init__(self, tracing: Tracing) -> None:
        self._programs = tracing.compiled(float("inf"))
        self._states = self._programs.begin()
        self._used = None

    def __call__(self, steps: int) -> None:
        """So many meta-steps of every run."""
        states, _ = self._programs.advance(self._states, steps, self._used)
        self._states, self._used = states, self._states


def main() -> None:
    """Prints a line for each program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of each program")
    parser.add_argument("--seconds", type=float, default=0.7, help="of a block")
    parser.add_argument("--precision", help="of products, jax_default_matmul_precision: highest, say")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}. Parts are {', '.join(PARTS)}")
    jax.config.update("jax_default_matmul_precision", arguments.precision)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; seed-steps/s, median [min, max]", flush=True)
    for part in arguments.parts or PARTS:
        with ThreadPoolExecutor(8) as background:
            traced = {name: trace(job, background) for name, job in PARTS[part]().items()}
            loops = {name: (Loop(tracing), runs) for name, (tracing, runs) in traced.items()}
        timed = {name: (loop, steps_in(loop, arguments.seconds)) for name, (loop, _) in loops.items()}
        for name, rates in in_turn(timed, arguments.blocks).items():
            print(f"{name:<48} {spread(rates * loops[name][1])}", flush=True)


if __name__ == "__main__":
    main()
