import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import pytest

from twmaml.figures.pool import FigureProcesses, count_cores
from twmaml.training.process import stop_on_interrupt


def test_figures_are_drawn_here_when_a_process_that_draws_was_killed():
    with FigureProcesses(1, mp_context=get_context("spawn")) as processes:
        worker = processes.submit(os.getpid).result()
        assert worker != os.getpid()
        waiting = processes.submit(time.sleep, 60)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            waiting.result()
        assert processes.submit(os.getpid).result() == os.getpid()


def test_no_more_figures_are_drawn_once_that_is_interrupted():
    drawing = []

    def draw_until_interrupted():
        with FigureProcesses(1, mp_context=get_context("spawn")) as processes:
            drawing.extend(processes.submit(time.sleep, 0.2) for _ in range(20))
            drawing[0].result()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_until_interrupted()
    assert all(each.done() for each in drawing)
    assert sum(each.cancelled() for each in drawing) > 10


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_collected_and_a_ctrl_c_after_it_ends_at_once(first):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_interrupt() as stop:
        assert not stop.asked
        signal.raise_signal(first)
        assert stop.signal == first
        signal.raise_signal(signal.SIGTERM)  # clusters repeat themselves
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only where a process can be kept to some cores")
def test_only_cores_that_may_be_used_are_counted():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert count_cores() == len(allowed)


_CORES_OF_THREADS = """
import os, sys, threading, jax
from twmaml.errors import ConfigurationError
from twmaml.training.process import prepare_jax

def cores_of_threads():
    return {int(thread): os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")}

def stay_on_one_core():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    started.set()
    over.wait()

counted = []
devices, jax.devices = jax.devices, lambda: counted.append(len(os.sched_getaffinity(0))) or devices()
started, over, all_cores = threading.Event(), threading.Event(), os.sched_getaffinity(0)
pinned = threading.Thread(target=stay_on_one_core)
pinned.start()
started.wait()
failed = False
try:
    prepare_jax(1, 1)
except ConfigurationError as error:
    failed = str(error).startswith("JAX_PLATFORMS=nonsense: ") and "\\n" not in str(error)
cores = cores_of_threads()
over.set()
assert len(cores.pop(pinned.native_id)) == 1
assert all(each == all_cores for each in cores.values()), cores
assert counted == [1]
assert failed == (sys.argv[1] == "fails")
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only where a process can be kept to some cores")
@pytest.mark.parametrize("end", ["starts", "fails"])
def test_while_jax_starts_there_is_one_core_and_then_every_thread_has_its_own_again(end, environment):
    # -1, which is JAX's way to say that nothing is set, must not make it no core.
    platform = {"JAX_PLATFORMS": "nonsense", "JAX_NUM_CPU_DEVICES": "-1"} if end == "fails" else {}
    subprocess.run([sys.executable, "-c", _CORES_OF_THREADS, end], env={**environment, **platform}, check=True)


def test_a_compiled_program_that_was_cut_off_in_the_cache_is_written_anew_without_noise(environment, tmp_path):
    code = "import warnings, jax; from twmaml.training.process import prepare_jax; prepare_jax(None, None);"
    code += "print(jax.jit(lambda x: x + 1)(1)); warnings.warn('another')"
    cache = tmp_path / "twmaml/jax"

    def start():
        command, own = [sys.executable, "-c", code], {**environment, "XDG_CACHE_HOME": str(tmp_path)}
        process = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
        assert process.stdout == "2\n"
        assert process.stderr.splitlines() == ["<string>:1: UserWarning: another"]
        return {path: path.read_bytes() for path in cache.glob("*/*-cache")}

    kept = start()
    for path, content in kept.items():
        path.write_bytes(content[:-9])
    assert kept
    assert start().keys() == kept.keys()
    before = {path: path.stat().st_mtime_ns for path in kept}
    start()
    assert before == {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux tells which cores a process may use")
def test_jax_takes_as_many_threads_as_it_is_given_and_every_core_is_free_again(environment):
    code = """
import os, jax
from twmaml.training.process import prepare_jax

def may_use(thread):
    try:
        return os.sched_getaffinity(thread)
    except ProcessLookupError:  # it has ended meanwhile
        return allowed

def threads():
    return [int(thread) for thread in os.listdir("/proc/self/task")]

allowed, before = os.sched_getaffinity(0), len(threads())
prepare_jax({}, {})
same = all(may_use(thread) == allowed for thread in threads())
print(jax.device_count(), len(threads()) - before, same)
"""

    def start(runs, threads, **own):
        command = [sys.executable, "-c", code.format(runs, threads)]
        process = subprocess.run(command, env={**environment, **own}, capture_output=True, text=True, check=True)
        devices, started, same = process.stdout.split()
        assert same == "True"
        return int(devices), int(started)

    cores = count_cores()
    one, every = start(1, 1), start(None, None)
    assert (one[0], every[0]) == (1, cores)
    told = start(None, 1, JAX_NUM_CPU_DEVICES="1")
    assert told[0] == 1
    # Others may just start or end, so that on one core nothing is said about them.
    assert cores == 1 or max(one[1], told[1]) < every[1]
