"""The devices: whether there are enough, and the program of one run for many runs spread over them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxlib import xla_client

from twmaml.errors import ConfigurationError
from twmaml.figures.pool import count_cores
from twmaml.training.memory import check_memory
from twmaml.training.parts import Parts

# Levels of optimisation below the default 3: the programs are as fast, and compiled in three quarters of the time.
# That was measured on CPUs; other platforms keep their default.
TRAINING, QUICKLY = 2, 1

_NICE = 10
"""A tenth of a core, then, where two threads share one."""


def check_machine(parts: Parts) -> None:
    """Refuses parts for which this machine has not enough devices or memory."""
    asked, present = parts.learner.task_devices, jax.device_count()
    if asked > present:
        raise ConfigurationError(f"devices.tasks={asked}: there {'is' if present == 1 else 'are'} {present} here")
    check_memory(parts.needs)


def compile_program(program: Any, level: int) -> Any:
    """Compiles a lowered program.

    Args:
        program: what `lower` returns.
        level: of optimisation, on a CPU.
    """
    options = {
        "xla_backend_optimization_level": level,
        # XLA for CPUs drops optimisation barriers before it fuses, unless the first of these passes is left out. The
        # other makes functions of small loops (one in a user's sampler, say), where the barriers of random numbers
        # end the process.
        "xla_disable_hlo_passes": "cse_barrier_expander,small-while-loop-hoisting",
        # Without it the queue is copied whole at each write.
        "xla_cpu_copy_insertion_use_region_analysis": True,
    }
    return program.compile(options if jax.default_backend() == "cpu" else None)


def over_runs(program: Callable[[Any, Any], Any], sharding: NamedSharding, reuse: bool = False) -> Any:
    """The program of one run, for many: the first argument and the result gain a leading axis of runs.

    The runs, whose number must be a multiple of the devices', are spread over the devices; on each, one run after
    the other on a CPU, where vmap over runs costs 14-17 %, and all at once on an accelerator.

    Args:
        program: of a run's part, and of what all runs share.
        sharding: of the runs (`shard_runs`).
        reuse: takes a third argument, arrays like the results (or some of them), whose memory the results take.
    """

    def on_one_device(parts: Any, shared: Any) -> Any:
        one = lambda part: program(part, shared)  # noqa: E731
        return jax.lax.map(one, parts) if jax.default_backend() == "cpu" else jax.vmap(one)(parts)

    many = jax.shard_map(
        on_one_device,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, PartitionSpec()),
        out_specs=sharding.spec,
        check_vma=False,
    )
    shardings = (sharding, everywhere(sharding))
    if not reuse:
        return jax.jit(many, in_shardings=shardings, out_shardings=sharding)
    return jax.jit(
        lambda part, shared, _: many(part, shared),
        in_shardings=(*shardings, sharding),
        out_shardings=sharding,
        donate_argnums=2,
        keep_unused=True,
    )


def shard_runs(runs: int, task_devices: int = 1) -> NamedSharding:
    """Spreads the axis of runs over the devices, `task_devices` of them for a run, over no more than there are runs."""
    devices = jax.devices()
    at_once = max(1, min(runs, len(devices) // task_devices))
    mesh = np.array(devices[: at_once * task_devices]).reshape(at_once, task_devices)
    return NamedSharding(jax.sharding.Mesh(mesh, ("runs", "tasks")), PartitionSpec("runs"))


def everywhere(sharding: NamedSharding) -> NamedSharding:
    """All of an array on each of the devices of a sharding."""
    return NamedSharding(sharding.mesh, PartitionSpec())


def beside(sharding: NamedSharding) -> NamedSharding:
    """Devices for programs that run beside those on others: where a CPU has cores left, as many more, else the same.

    They have a client of their own, because the devices of one share its threads: a second device would make the
    programs of the first 15 % slower even while it has nothing to do. Its threads give way to those of the others.
    """
    devices = sharding.mesh.size
    if jax.default_backend() != "cpu" or count_cores() <= devices:
        return sharding
    mesh = np.array(_more_devices(devices)).reshape(sharding.mesh.axis_sizes)
    return NamedSharding(jax.sharding.Mesh(mesh, sharding.mesh.axis_names), sharding.spec)


@cache
def _more_devices(number: int) -> list[Any]:
    with threads_for(number, _NICE):
        return xla_client.make_cpu_client(num_devices=number).devices()


@contextmanager
def threads_for(cores: int, nice: int = 0) -> Iterator[None]:
    """Has XLA, when it is started meanwhile, take threads for so many cores: it goes by those that it may use.

    Args:
        cores: so many.
        nice: by how much less urgent than others the threads are.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    all_cores, others = os.sched_getaffinity(0), {*os.listdir("/proc/self/task")}
    try:
        os.sched_setaffinity(0, sorted(all_cores)[:cores])
        yield
    finally:
        os.sched_setaffinity(0, all_cores)
        for thread in {*os.listdir("/proc/self/task")} - others:
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread), all_cores)
                os.setpriority(os.PRIO_PROCESS, int(thread), os.getpriority(os.PRIO_PROCESS, int(thread)) + nice)
