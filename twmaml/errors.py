"""Expected errors and their one line."""

import re
import traceback
from collections.abc import Callable
from pathlib import Path

import jax


class ExpectedError(Exception):
    """Something that can go wrong without a fault in the program; its message tells all that there is to tell."""


class ConfigurationError(ExpectedError):
    """A mistake of the user's; the message is one line that names the key, the value and what is allowed."""


class TrainingFailedError(ExpectedError):
    """A loss stopped being finite, or a run cannot go on; the message is one line that says where and why."""


class SweepFailedError(ExpectedError):
    """Some jobs of a sweep have failed; the message lists each with its reason."""


_LONGEST = 1000
"""Characters of a line; in the middle of a longer one something is left out."""


def explain(error: BaseException) -> str | None:
    """The one line that tells the user what is wrong; None for an error that is not the user's."""
    if isinstance(error, SweepFailedError):  # one line a job
        return str(error)
    line = _explain(error)
    return None if line is None else clear(line)


def clear(line: str) -> str:
    """A line that any terminal shows as it is: of reasonable length, what cannot be printed escaped."""
    # Cut first, as what comes from the user may have any length.
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _explain(error: BaseException) -> str | None:
    if isinstance(error, ExpectedError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot write to {error.filename}: {error.strerror}"
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and re.search(
        "RESOURCE_EXHAUSTED|Out of memory", str(error)
    )
    if exhausted or isinstance(error, MemoryError):
        return f"not enough memory: {one_line(error)[:200]}"
    return None


def innermost(error: BaseException, accepts: Callable[[str], bool]) -> tuple[str, str] | None:
    """The last place that an error came through in packages that are accepted: the package, and the line in it."""
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if accepts(package):
            return package, f"{Path(frame.f_code.co_filename).name}:{line}, in {frame.f_code.co_name}"
    return None


def one_line(error: BaseException) -> str:
    """The message without line breaks; the name of the error if it has none."""
    lines = [line.strip() for line in str(error).splitlines()]
    noise = ("HYDRA_FULL_ERROR", "full_key: ", "object_type=")
    kept = [line for line in lines if line and not any(each in line for each in noise)]
    return "; ".join(kept) or type(error).__name__
