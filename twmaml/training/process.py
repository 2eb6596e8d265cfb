"""The process that runs are trained in: JAX's settings, Ctrl-C, open files."""

import glob
import hashlib
import logging
import os
import platform
import re
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from twmaml.errors import ConfigurationError, one_line
from twmaml.figures.pool import count_cores
from twmaml.training.devices import threads_for
from twmaml.training.plan import Stop

log = logging.getLogger(__name__)

_FILES, _FILES_OF_A_RUN, _FILES_OF_WANDB = 150, 2, 1
"""Files that a process, each run (its lock, its metrics.csv) and each run's W&B keep open."""


@contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """Listens to Ctrl-C and SIGTERM: the first lets the chunk end and everything be written.

    A Ctrl-C after that ends at once.
    """
    stop = Stop()

    def note(number: int, _: Any) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt(number)
        stop.signal = number if stop.signal is None else stop.signal
        log.warning("Interrupted: ends after this chunk; Ctrl-C (again) to end at once")

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever started this thread handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def allow_open_files(runs: int, wandb: bool) -> None:
    """Raises the limit of open files to the number that so many runs need at once, or refuses them."""
    needed = _FILES + runs * (_FILES_OF_A_RUN + wandb * _FILES_OF_WANDB)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigurationError(
            f"{runs} runs at once need {needed} open files, and the system allows {hard} (ulimit -Hn): raise that, or "
            "train fewer at once (hydra.launcher.group_size, seed)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


_started = False


def prepare_jax(runs: int | None, threads: int | None) -> None:
    """Starts JAX, once, with settings that have to come before, in whichever process Hydra runs a job.

    Args:
        runs: that this process will train, times the devices of each; None if that is not known yet.
        threads: that share the products of a run on a CPU; None for one a core.
    """
    global _started  # noqa: PLW0603  JAX, too, is started once a process
    if not _started:
        _started = True
        _keep_compiled_programs()
        _remove_damaged_programs()
        cores = count_cores()
        # One device a core, so that several runs share a machine without an accelerator.
        devices = int(os.environ.get("JAX_NUM_CPU_DEVICES", cores if runs is None else min(cores, runs)))
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # whoever has started JAX, in a cell before say, goes on with its devices
            return
        try:
            # The products of a small network take a fifth longer when two threads share them, and no option of XLA
            # keeps all of its libraries from that.
            with threads_for(cores if threads is None else max(1, min(cores, devices * threads))):
                jax.devices()
        except RuntimeError as error:
            platforms = jax.config.values["jax_platforms"]
            if not platforms:
                raise
            raise ConfigurationError(f"JAX_PLATFORMS={platforms}: {one_line(error)}") from error


def _keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, which halves the start-up of the next run.

    A folder for each kind of processor, because a home folder is often shared by machines of several kinds and
    compiled programs are not. JAX_COMPILATION_CACHE_DIR, where it is set, decides instead (empty: no cache).
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cpuinfo = Path("/proc/cpuinfo")
        flags = re.search(r"^(flags|Features)\s*:.*$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
        processor = hashlib.sha256((flags.group() if flags else platform.processor()).encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(home / "twmaml" / "jax" / processor))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the small ones add up


def _remove_damaged_programs() -> None:
    """Removes damaged programs from JAX's cache, so that they are written anew, instead of a warning at each start.

    A process that is killed, or a full disk, leaves a file cut off there. The warning, which names the program and
    not the file, is not shown; all that is kept of programs of that name goes.
    """
    show_others = warnings.showwarning

    def show(message: Warning | str, *arguments: Any, **keywords: Any) -> None:
        unreadable = re.match("Error reading persistent compilation cache entry for '(.+?)'", str(message))
        if unreadable is None:
            show_others(message, *arguments, **keywords)
            return
        log.info("%s; compiles it again", str(message).replace("\n", " "))
        for path in Path(jax.config.values["jax_compilation_cache_dir"]).glob(f"{glob.escape(unreadable.group(1))}-*"):
            path.unlink(missing_ok=True)

    warnings.showwarning = show
