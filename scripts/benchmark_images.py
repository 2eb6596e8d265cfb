"""Speed and memory of few-shot classification, by precision and tasks at once.

`python scripts/benchmark_images.py` prints meta-steps a second of the compiled loop on one core (5 ways, 1 shot, second
order), blocks of all forms in turn, and the memory that the compiler plans for intermediate results.
"""

import argparse

import jax
from benchmark_loops import STEPS_A_SECOND, CompiledLoop, compose, in_turn, pin, spread, steps_in

FORMS = {
    "all tasks at once": [],
    "1 task at once": ["devices.tasks_at_once=1"],
    "bfloat16": ["model.precision=bfloat16"],
}


def main() -> None:
    """Prints a line for each number of filters and form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--filters", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="FORM")
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of each form")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a block")
    parser.add_argument("--set", nargs="+", default=["meta_batch=8"], metavar="KEY=VALUE", help="configuration")
    arguments = parser.parse_args()
    pin(1)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; median [min, max]; {' '.join(arguments.set)}")
    job = ["task=glyphs", "sampler=weighted", *arguments.set]
    for filters in arguments.filters:
        of_filters = [*job, f"model.filters={filters}"]
        loops = {name: CompiledLoop(compose([*of_filters, *FORMS[name]])) for name in arguments.forms}
        timed = {name: (loop, steps_in(loop, arguments.seconds)) for name, loop in loops.items()}
        rates = in_turn(timed, arguments.blocks)
        for name, own in rates.items():
            mebibytes = loops[name].program.memory_analysis().temp_size_in_bytes / 2**20
            print(
                f"{filters:>3} filters, {name:<24} {spread(own)} {STEPS_A_SECOND}, "
                f"{spread(own / rates[arguments.forms[-1]])} x the last, {mebibytes:.1f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
