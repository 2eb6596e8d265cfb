"""Speed and memory of few-shot classification, by how its convolutions are computed.

`python scripts/benchmark_images.py` prints meta-steps a second of the compiled loop on one core (5 ways, 1 shot, second
order), blocks of all forms in turn, and the memory that the compiler plans for intermediate results.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import numpy as np

from twmaml.configuration.build import build_parts
from twmaml.configuration.config_files import configuration_folder
from twmaml.configuration.settings import read_settings
from twmaml.meta_learning.chunk import train_chunk

FORMS = {
    "im2col": [],
    "im2col, 1 task at once": ["devices.tasks_at_once=1"],
    "im2col, bfloat16": ["model.precision=bfloat16"],
    "library": ["model.convolution=xla"],
}


def compiled_loop(overrides: Sequence[str]) -> tuple[Callable[[int], float], float]:
    """A function of a number of meta-steps that trains them and returns the seconds; and MiB of its program."""
    with hydra.initialize_config_dir(configuration_folder(), version_base="1.3"):
        cfg = hydra.compose("train", ["task=glyphs", "sampler=weighted", *overrides])
    parts = build_parts(cfg, read_settings(cfg))
    data = jax.tree.map(jnp.asarray, parts.data["train"])
    state = parts.learner.init(0)
    program = jax.jit(partial(train_chunk, parts.learner)).lower(state, jnp.int32(0), data).compile()
    carried = [state]

    def train(steps: int) -> float:
        began = time.perf_counter()
        carried[0], chunk = program(carried[0], jnp.int32(steps), data)
        jax.block_until_ready(chunk)
        return time.perf_counter() - began

    memory: Any = program.memory_analysis()
    return train, memory.temp_size_in_bytes / 2**20


def main() -> None:
    """Prints a line for each number of filters and form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--filters", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="FORM")
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of each form")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a block")
    parser.add_argument("--set", nargs="+", default=["meta_batch=8"], metavar="KEY=VALUE", help="configuration")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before jax starts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; median [min, max]; {' '.join(arguments.set)}")
    for filters in arguments.filters:
        loops = {
            name: compiled_loop([*arguments.set, f"model.filters={filters}", *FORMS[name]]) for name in arguments.forms
        }
        steps = {name: max(1, round(arguments.seconds / (train(2) / 2))) for name, (train, _) in loops.items()}
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(arguments.blocks):
            for name, (train, _) in loops.items():
                rates[name].append(steps[name] / train(steps[name]))
        for name, (_, mebibytes) in loops.items():
            own = np.array(rates[name])
            ratios = own / np.array(rates[arguments.forms[-1]])
            print(
                f"{filters:>3} filters, {name:<24} {np.median(own):7.2f} [{own.min():.2f}, {own.max():.2f}] "
                f"meta-steps/s, {np.median(ratios):6.2f} [{ratios.min():.2f}, {ratios.max():.2f}] x the last, "
                f"{mebibytes:7.1f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
