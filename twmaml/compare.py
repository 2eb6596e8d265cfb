"""The command line of comparisons: `python -m twmaml.compare outputs/multirun/...`."""

import argparse
import atexit
import gc
import sys
from pathlib import Path

from twmaml.analysis.tables import compare


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
    parser.add_argument("--output", type=Path, help="where to write (default: comparison/ in the first folder)")
    arguments = parser.parse_args()
    try:
        compare(arguments.folders, arguments.baseline, arguments.output or arguments.folders[0] / "comparison")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"twmaml: cannot read or write {error.filename}: {error.strerror}")
    except ValueError as error:
        sys.exit(f"twmaml: {error}")


if __name__ == "__main__":
    main()
