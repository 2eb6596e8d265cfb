"""Speed of the main job, side by side with a plain loop: `python scripts/benchmark.py`.

Pins itself to one core, runs both in turn in one process and prints the medians and the ratio of each pair of
blocks: this is what to compare between versions, as machines are noisy. The plain loop is what a careful user would
write: one jitted gradient step, and sampling, task data and the queue in NumPy on the host.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before jax starts its threads

import hydra
import jax
import jax.numpy as jnp
import numpy as np
import optax
from omegaconf import DictConfig

from twmaml.configuration import Job, build_job, configuration_folder
from twmaml.runner import over_runs, shard_runs

Block = Callable[[int], None]
"""Runs so many meta-steps and returns when they are done."""


def plain_loop(job: Job) -> Block:
    """One jitted step in a Python loop; the same network, optimiser, tasks (of sin2d) and rule (importance_delta)."""
    learner, generator = job.learner, np.random.default_rng(0)
    grid = learner.family.grid
    low, high = (np.array([getattr(a, end) * a.scale for a in grid.axes.values()]) for end in ("low", "high"))
    tasks, shots, queries = learner.meta_batch, learner.shots, learner.queries
    inner_rate = job.learner.adaptation.learning_rate  # type: ignore[attr-defined]

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


def compiled_loop(job: Job) -> Block:
    """twmaml's own: chunks of meta-steps as one program."""
    train = over_runs(job.learner.train_chunk, shard_runs(1))
    carried = jax.device_put(
        jax.vmap(job.learner.init)(jnp.zeros(1, jnp.uint32)), shard_runs(1)
    )  # as it comes back, or it compiles twice

    def block(steps: int) -> None:
        nonlocal carried
        carried, chunk = train(carried, jnp.int32(steps))
        jax.device_get(chunk)

    return block


def compare(job: Job, blocks: int, steps: int) -> None:
    """Both loops in turn, in meta-steps a CPU-second."""
    loops = {"plain loop": plain_loop(job), "twmaml": compiled_loop(job)}
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


def time_evaluation(job: Job, repeats: int) -> None:
    """Milliseconds of one evaluation, after compilation."""
    evaluate = over_runs(job.evaluation.losses, shard_runs(1))
    meta_params = jax.vmap(job.learner.init)(jnp.zeros(1, jnp.uint32)).meta_params
    fixed = job.evaluation.tasks()
    jax.block_until_ready(evaluate(meta_params, fixed))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(evaluate(meta_params, fixed))
        times.append(1000 * (time.perf_counter() - began))
    label = f"evaluation, {fixed.tasks.shape[0]} tasks x {job.evaluation.steps} steps"
    print(f"{label:<28} {np.median(times):8.1f} [{min(times):.1f}, {max(times):.1f}] ms")


def main() -> None:
    """Prints what there is to compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=15, help="timed blocks of each loop")
    parser.add_argument("--steps", type=int, default=500, help="meta-steps a block")
    parser.add_argument("overrides", nargs="*", help="configuration, as for twmaml.train")
    arguments = parser.parse_args()
    with hydra.initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = ["task=sin2d", "sampler=importance_delta", *arguments.overrides]
        cfg: DictConfig = hydra.compose("train", overrides)
    job = build_job(cfg)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {cores} core; median [min, max]")
    compare(job, arguments.blocks, arguments.steps)
    time_evaluation(job, arguments.blocks)


if __name__ == "__main__":
    main()
