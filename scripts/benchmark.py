"""Speed: of the main job (`python scripts/benchmark.py`), of sweeps (`... sweep`), of checkpoints (`... checkpoint`).

The main job runs pinned to one core, in turn with a plain loop in the same process. The medians and the ratio of each
pair of blocks are printed: the ratio is what to compare between versions, as machines are noisy. The plain loop is
what a careful user would write: one jitted gradient step, and sampling, task data and the queue in NumPy on the host.

Of a sweep: the steady rate of eight seeds on all cores beside that of one seed on one core, the time from the command
to the first meta-step with nothing cached, what one more seed adds to it, and with `--whole` the time of 6 samplers x
8 seeds x 5,000 steps beside the same jobs one by one.

Of checkpoints: the CPU time of one beside that of the meta-steps between two, which is the share that they cost if
nothing is left over for the thread that writes them; and with `--whole` the CPU time of the main job with and without.
"""

import argparse
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import numpy as np
import optax
from omegaconf import DictConfig

from twmaml.configuration.build import Parts, build_parts
from twmaml.configuration.config_files import configuration_folder
from twmaml.configuration.settings import read_settings
from twmaml.figures.pool import count_cores
from twmaml.meta_learning.chunk import train_chunk
from twmaml.storage.checkpoint import Checkpoint, Notes, pack, write
from twmaml.storage.metrics_file import Mark
from twmaml.training.devices import TRAINING, compile_program, over_runs, shard_runs

Block = Callable[[int], None]
"""Runs so many meta-steps and returns when they are done."""


def plain_loop(parts: Parts) -> Block:
    """One jitted step in a Python loop; the same network, optimiser, tasks (of sin2d) and rule (importance_delta)."""
    learner, generator = parts.learner, np.random.default_rng(0)
    grid = learner.family.grid
    low, high = (np.array([getattr(a, end) * a.scale for a in grid.axes.values()]) for end in ("low", "high"))
    tasks, shots, queries = learner.meta_batch, learner.shots, learner.queries
    inner_rate = parts.learner.adaptation.learning_rate  # type: ignore[attr-defined]

    def task_loss(params: Any, x: Any, y: Any) -> Any:
        def loss(params: Any, part: slice) -> Any:
            return jnp.mean((learner.model.apply(params, x[part]) - y[part]) ** 2)

        gradient = jax.grad(loss)(params, slice(None, shots))
        adapted = jax.tree.map(lambda p, g: p - inner_rate * g, params, gradient)
        return loss(adapted, slice(shots, None))

    @jax.jit
    def step(params: Any, opt_state: Any, x: Any, y: Any, weights: Any) -> Any:
        def meta_loss(params: Any) -> Any:
            losses = jax.vmap(partial(task_loss, params))(x, y)
            return jnp.mean(weights * losses), losses

        gradient, losses = jax.grad(meta_loss, has_aux=True)(params)
        updates, opt_state = learner.optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses

    state = learner.init(0)
    carried = {"params": state.meta_params, "opt_state": state.opt_state}
    losses = np.full(grid.size, np.nan, np.float32)
    deltas = np.full(grid.size, np.nan, np.float32)
    visits, last_visit = np.zeros(grid.size, int), np.full(grid.size, -1)
    done = 0

    def block(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            known = ~np.isnan(deltas)
            priority = np.where(known, deltas, deltas[known].mean() if known.any() else 1.0)
            p = 0.9 * priority / priority.sum() + 0.1 / grid.size
            cumulative = np.cumsum(p)
            cells = np.searchsorted(cumulative, generator.random(tasks) * cumulative[-1], side="right")
            weights = (1 / (grid.size * p[cells])).astype(np.float32)
            index = np.stack(np.unravel_index(cells, grid.shape), axis=1)
            drawn = low + (index + generator.random((tasks, len(grid.shape)))) / grid.shape * (high - low)
            x = generator.uniform(-5, 5, (tasks, shots + queries, 1)).astype(np.float32)
            y = (drawn[:, :1, None] * np.sin(x + drawn[:, 1:2, None])).astype(np.float32)
            carried["params"], carried["opt_state"], scores = step(
                carried["params"], carried["opt_state"], x, y, weights
            )
            scores = np.asarray(scores)
            drawn_cells, inverse, counts = np.unique(cells, return_inverse=True, return_counts=True)
            means = np.bincount(inverse, scores) / counts
            deltas[drawn_cells] = np.abs(means - losses[drawn_cells])
            losses[drawn_cells] = means
            visits[drawn_cells] += counts
            last_visit[drawn_cells] = done
            done += 1
        jax.block_until_ready(carried)

    return block


def compiled_loop(parts: Parts) -> Block:
    """twmaml's own: chunks of meta-steps as one program."""
    carried = jax.device_put(jax.vmap(parts.learner.init)(jnp.zeros(1, jnp.uint32)), shard_runs(1))
    train = over_runs(partial(train_chunk, parts.learner), shard_runs(1))
    train = compile_program(train.lower(carried, jnp.int32(0)), TRAINING)

    def block(steps: int) -> None:
        nonlocal carried
        carried, chunk = train(carried, jnp.int32(steps))
        jax.device_get(chunk)

    return block


def compare(parts: Parts, blocks: int, steps: int) -> None:
    """Both loops in turn, in meta-steps a CPU-second."""
    loops = {"plain loop": plain_loop(parts), "twmaml": compiled_loop(parts)}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop(10)
    for _ in range(blocks):
        for name, loop in loops.items():
            began = time.process_time()
            loop(steps)
            rates[name].append(steps / (time.process_time() - began))
    for name, values in rates.items():
        print(f"{name:<28} {np.median(values):8,.0f} [{min(values):,.0f}, {max(values):,.0f}] meta-steps/CPU-s")
    ratios = np.array(rates["twmaml"]) / np.array(rates["plain loop"])
    print(f"{'ratio':<28} {np.median(ratios):8.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


def time_evaluation(parts: Parts, repeats: int) -> None:
    """Milliseconds of one evaluation, after compilation."""
    evaluate = over_runs(parts.evaluation.results, shard_runs(1))
    meta_params = jax.vmap(parts.learner.init)(jnp.zeros(1, jnp.uint32)).meta_params
    fixed = parts.evaluation.tasks()
    jax.block_until_ready(evaluate(meta_params, fixed))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(evaluate(meta_params, fixed))
        times.append(1000 * (time.perf_counter() - began))
    label = f"evaluation, {fixed.tasks.shape[0]} tasks x {parts.evaluation.steps} steps"
    print(f"{label:<28} {np.median(times):8.1f} [{min(times):.1f}, {max(times):.1f}] ms")


def compose(overrides: Sequence[str]) -> Parts:
    """The job that the command line would build."""
    with hydra.initialize_config_dir(configuration_folder(), version_base="1.3"):
        cfg: DictConfig = hydra.compose("train", ["task=sin2d", "sampler=importance_delta", *overrides])
    return build_parts(cfg, read_settings(cfg))


def time_checkpoints(parts: Parts, blocks: int, steps: int, every: int) -> None:
    """CPU-seconds of a checkpoint, and of the meta-steps between two."""
    state = parts.learner.init(0)
    arrays = {name: np.asarray(leaf) for name, leaf in pack(state).items()}
    arrays["losses"] = np.zeros((parts.evaluation.grid.size, parts.evaluation.steps + 1))
    loop, seconds = compiled_loop(parts), np.zeros((blocks, 2))
    began = time.process_time()
    importlib.import_module("orbax.checkpoint")
    print(f"{'import of Orbax, once':<28} {time.process_time() - began:8.3f} CPU-s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checkpoints").mkdir()
        for block in range(-1, blocks):  # the first block compiles and imports
            began = time.process_time()
            loop(steps)
            between = time.process_time()
            write(folder, Checkpoint(Notes(block + 1, 0, {}, {}, 0.0, Mark(0, ""), None), arrays), keep=3)
            if block >= 0:
                seconds[block] = (between - began) / steps * every, time.process_time() - between
    share = seconds[:, 1] / seconds[:, 0]
    print(f"{'one checkpoint':<28} {np.median(seconds[:, 1]):8.3f} CPU-s")
    print(f"{f'{every:,} meta-steps':<28} {np.median(seconds[:, 0]):8.3f} CPU-s")
    print(f"{'share':<28} {np.median(share):8.2%} [{min(share):.2%}, {max(share):.2%}]")


def time_run_with_checkpoints(repeats: int, overrides: Sequence[str]) -> None:
    """CPU-seconds of the main job, from the command to its end: with all checkpoints, or just the last."""
    kinds = {"with checkpoints": [], "with the last one only": ["checkpoint.every=2000000000"]}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, own in kinds.items():
            with tempfile.TemporaryDirectory() as name:
                process = command(Path(name), "sampler=importance_delta", "wandb.mode=disabled", *own, *overrides)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = status  # so that it is not waited for again
                if status != 0:
                    raise RuntimeError("the run failed")
                seconds[kind].append(usage.ru_utime + usage.ru_stime)
    for kind, values in seconds.items():
        print(f"{kind:<28} {np.median(values):8.1f} [{min(values):.1f}, {max(values):.1f}] CPU-s")
    every, last = seconds.values()
    ratios = np.array(every) / np.array(last)
    print(f"{'ratio':<28} {np.median(ratios):8.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")


def pin(cores: int) -> None:
    """Keeps this process to so many cores; has to come before jax starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    jax.config.update("jax_num_cpu_devices", cores)


def time_blocks(pipe: Connection, cores: int, runs: int, overrides: Sequence[str]) -> None:
    """In a process of its own: trains so many runs on so many cores, each time that a number of steps comes in."""
    pin(cores)
    learner, sharding = compose(overrides).learner, shard_runs(runs)
    train = over_runs(partial(train_chunk, learner), sharding)
    states = jax.device_put(jax.vmap(learner.init)(jnp.arange(runs, dtype=jnp.uint32)), sharding)
    while (steps := pipe.recv()) is not None:
        began = time.perf_counter()
        states, chunk = train(states, jnp.int32(steps))
        jax.device_get(chunk)
        pipe.send(runs * steps / (time.perf_counter() - began))


def compare_runs(blocks: int, steps: int, overrides: Sequence[str]) -> None:
    """Seed-steps a second of one seed on one core and of eight on all, in turn."""
    context = multiprocessing.get_context("spawn")
    cores = count_cores()
    kinds = {"one seed on one core": (1, 1), f"eight seeds on {cores} cores": (cores, 8)}
    pipes = {}
    for name, (used, runs) in kinds.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=time_blocks, args=(theirs, used, runs, overrides), daemon=True).start()
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for block in range(-1, blocks):  # the first block compiles
        for name, pipe in pipes.items():
            pipe.send(10 if block < 0 else steps)
            rate = pipe.recv()
            if block >= 0:
                rates[name].append(rate)
    for pipe in pipes.values():
        pipe.send(None)
    for name, values in rates.items():
        print(f"{name:<28} {np.median(values):8,.0f} [{min(values):,.0f}, {max(values):,.0f}] seed-steps/s")
    one, many = rates.values()
    ratios = np.array(many) / np.array(one)
    print(f"{'ratio':<28} {np.median(ratios):8.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


def command(folder: Path, *overrides: str, stderr: Any = None) -> subprocess.Popen[bytes]:
    """Starts the command line in an empty folder, with nothing cached."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "WANDB_MODE": "offline"}
    arguments = [sys.executable, "-m", "twmaml.train", "--multirun", "hydra.sweep.dir=sweep", *overrides]
    return subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)


def seconds_to_first_step(samplers: str, seeds: int, overrides: Sequence[str]) -> float:
    """From the command to the row of the first meta-step."""
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        seed = ",".join(map(str, range(seeds)))
        errors = folder / "errors"  # the processes that it leaves behind when it is killed complain
        with errors.open("wb") as file:
            process = command(folder, samplers, f"seed={seed}", "log_every=1", *overrides, stderr=file)
        rows = folder / "sweep" / "0" / "metrics.csv"
        while not rows.exists() or rows.read_text().count("\n") < 3:
            if process.poll() is not None:
                raise RuntimeError(f"the sweep ended before its first meta-step: {errors.read_text()}")
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        process.kill()
        process.wait()
        return seconds


def time_start(repeats: int, overrides: Sequence[str]) -> None:
    """Start-up of a sweep of 48 jobs, and of one group of one and of nine seeds."""
    whole = [seconds_to_first_step("sampler=glob(*)", 8, overrides) for _ in range(repeats)]
    print(f"{'first step, 6 x 8 jobs':<28} {np.median(whole):8.1f} [{min(whole):.1f}, {max(whole):.1f}] s")
    pairs = np.array([[seconds_to_first_step("sampler=uniform", n, overrides) for n in (1, 9)] for _ in range(repeats)])
    first, nine = pairs.T
    print(f"{'first step, one seed':<28} {np.median(first):8.1f} [{min(first):.1f}, {max(first):.1f}] s")
    more = (nine - first) / 8 / first
    print(f"{'one more seed':<28} {np.median(more):8.1%} [{min(more):.1%}, {max(more):.1%}] of that")


def time_whole(overrides: Sequence[str]) -> None:
    """The same 48 jobs as one sweep of groups and one by one."""
    seconds = {}
    for launcher in ("vectorised", "basic"):
        with tempfile.TemporaryDirectory() as name:
            began = time.perf_counter()
            jobs = ["sampler=glob(*)", "seed=0,1,2,3,4,5,6,7", "steps=5000", f"hydra/launcher={launcher}"]
            if command(Path(name), *jobs, *overrides).wait() != 0:
                raise RuntimeError("the sweep failed")
            seconds[launcher] = time.perf_counter() - began
        print(f"48 jobs, hydra/launcher={launcher:<10} {seconds[launcher]:6.0f} s", flush=True)
    print(f"{'ratio':<28} {seconds['basic'] / seconds['vectorised']:8.2f}")


def main() -> None:
    """Prints what there is to compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="?", default="loop", choices=["loop", "sweep", "checkpoint"])
    parser.add_argument("--blocks", type=int, default=15, help="timed blocks of each loop")
    parser.add_argument("--steps", type=int, default=500, help="meta-steps a block")
    parser.add_argument("--whole", action="store_true", help="whole runs besides, which take minutes")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="configuration, as for twmaml.train")
    arguments = parser.parse_args()
    if arguments.what == "loop":
        pin(1)
        parts = compose(arguments.set)
        print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, 1 core; median [min, max]")
        compare(parts, arguments.blocks, arguments.steps)
        time_evaluation(parts, arguments.blocks)
    elif arguments.what == "checkpoint":
        if arguments.whole:
            time_run_with_checkpoints(5, arguments.set)
        pin(1)
        print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, 1 core; median [min, max]")
        time_checkpoints(compose(arguments.set), arguments.blocks, arguments.steps, every=10_000)
    else:
        print(f"jax {jax.__version__}, {count_cores()} cores; median [min, max]")
        compare_runs(arguments.blocks, arguments.steps, arguments.set)
        time_start(3, arguments.set)
        if arguments.whole:
            time_whole(arguments.set)


if __name__ == "__main__":
    main()
