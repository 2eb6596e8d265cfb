"""The memory that a program takes at least, told before it is compiled, and the memory that is free."""

import math
import resource
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import psutil
from jax.extend.core import ClosedJaxpr

from twmaml.errors import ConfigurationError

_SHARE = 0.8
"""The part of the free memory that a program may take."""


class Need(NamedTuple):
    """The memory that a part of a run takes."""

    what: str
    least_bytes: float
    keys: str
    """Keys that it depends on, with their values."""


def check_memory(needs: Iterable[Need]) -> None:
    """Refuses a run that cannot fit into the memory that is free."""
    free = free_memory()
    for need in needs:
        if need.least_bytes > free:
            asked, left = (f"{size / 2**30:.3g} GiB" for size in (need.least_bytes, free))
            raise ConfigurationError(
                f"{need.keys}: {need.what} takes at least {asked} of memory, of which {left} are free"
            )


def least_bytes(traced: ClosedJaxpr) -> float:
    """Bytes that a traced program cannot do without: its arguments, its results, and the largest results in between."""
    ends = sum(_bytes(aval) for aval in (*traced.in_avals, *traced.out_avals))
    return ends + max(_results_in(traced), default=0)


def _results_in(program: Any) -> Iterator[float]:
    """Bytes of all results of each operation of a traced program, inside of loops and branches too."""
    for operation in getattr(program, "jaxpr", program).eqns:
        yield sum(_bytes(variable.aval) for variable in operation.outvars)
        for part in jax.tree.leaves([*operation.params.values()], is_leaf=_is_program):
            if _is_program(part):
                yield from _results_in(part)


def _is_program(part: Any) -> bool:
    return hasattr(part, "eqns")


def _bytes(aval: Any) -> float:
    return math.prod(aval.shape) * aval.dtype.itemsize


def allowed_memory(gib: float | None) -> float:
    """Bytes that a program may take: so many GiB, or the greater part of what is free if None."""
    return _SHARE * free_memory() if gib is None else gib * 2**30


def free_memory() -> float:
    """Bytes that are free for programs: of the host, or of an accelerator."""
    if jax.default_backend() == "cpu":
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)  # `ulimit -v`, as clusters set it
        left = math.inf if limit == resource.RLIM_INFINITY else limit - psutil.Process().memory_info().vms
        return min(psutil.virtual_memory().available, left)
    statistics = jax.devices()[0].memory_stats()
    return statistics["bytes_limit"] - statistics["bytes_in_use"] if statistics else math.inf
