"""The same meta-training side by side: twmaml, a plain JAX loop, and PyTorch.

`python scripts/peers.py`, by hand. It needs PyTorch besides (`pip install torch`; a build for CPUs is enough), and a
C++ compiler for `torch.compile`: where that fails, PyTorch's gradient runs eagerly, and a line says so.

Uniformly drawn tasks of sin2d, 25 a meta-step with 10 + 10 points, a perceptron 1-40-40-1 with ReLU, one inner step,
second order, Adam. Each runs in a process of its own on the same core, blocks in turn. Before that the meta-gradients
of all must be equal on the same weights and data.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_loops import (
    STEPS_A_SECOND,
    Block,
    CompiledLoop,
    PlainStep,
    clock,
    compose,
    draw_sinusoids,
    ends_of,
    own_process,
    plain_gradient,
    spread,
)

from twmaml.configuration.build import Parts
from twmaml.meta_learning.learner import MetaLearner
from twmaml.models.base import Batch

JOB = ("task=sin2d", "sampler=uniform")
Weights = list[np.ndarray]
"""Matrix and bias of each layer in turn; a matrix has a row an input."""


class Peer(NamedTuple):
    """A way to train."""

    gradient: Callable[[Weights, np.ndarray, np.ndarray], Weights]
    """The meta-gradient by the weights, on inputs and targets of a meta-batch."""
    block: Block
    note: str = ""


def twmaml(parts: Parts) -> Peer:
    """The loop, as it is compiled for a run."""
    learner = parts.learner

    def alike(losses: jax.Array) -> tuple[jax.Array, None]:
        return jnp.full(losses.shape, 1 / losses.size), None

    @jax.jit
    def gradient_of(params: Any, x: jax.Array, y: jax.Array) -> Any:
        support, query = (Batch(x[:, part], y[:, part]) for part in halves(learner))
        found = learner.adaptation.meta_gradient(learner.model, params, support, query, alike)
        assert found is not None
        return found[0]

    def gradient(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
        return as_weights(gradient_of(as_params(learner, weights), x, y))

    return Peer(gradient, CompiledLoop(parts))


def plain(parts: Parts) -> Peer:
    """One jitted step in a Python loop."""
    learner, step = parts.learner, PlainStep(parts.learner)
    gradient_of, draw = jax.jit(plain_gradient(learner)), drawing(learner)
    alike = np.ones(learner.meta_batch, np.float32)

    def gradient(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
        return as_weights(gradient_of(as_params(learner, weights), x, y, alike)[0])

    def block(steps: int) -> None:
        for _ in range(steps):
            step(*draw(), alike)

    return Peer(gradient, block)


def pytorch(parts: Parts) -> Peer:
    """Functional MAML: one gradient of the mean of vmapped losses, compiled if that works, and the fused Adam."""
    torch: Any = import_module("torch")
    torch.set_num_threads(1)
    learner, draw, rate = parts.learner, drawing(parts.learner), parts.learner.adaptation.learning_rate  # type: ignore[attr-defined]
    weights = [torch.tensor(each, requires_grad=True) for each in as_weights(learner.init(0).meta_params)]
    optimizer = torch.optim.Adam(weights, lr=1e-3, fused=True)
    meta_loss = torch_meta_loss(torch, halves(learner), rate)
    eager = torch.func.grad(meta_loss)
    compute, note = eager, ""
    try:
        compute = torch.compile(eager, fullgraph=True)
        compute([each.detach() for each in weights], *map(torch.from_numpy, draw()))
    except Exception as error:  # whatever the compiler lacks
        compute, note = eager, f"torch.compile failed, so the gradient is eager: {str(error).splitlines()[0]}"

    def gradient(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
        found = compute([torch.from_numpy(each) for each in weights], torch.from_numpy(x), torch.from_numpy(y))
        return [each.numpy() for each in found]

    def block(steps: int) -> None:
        for _ in range(steps):
            found = compute([each.detach() for each in weights], *map(torch.from_numpy, draw()))
            for each, own in zip(weights, found, strict=True):
                each.grad = own
            optimizer.step()

    return Peer(gradient, block, note)


def torch_meta_loss(torch: Any, parts: tuple[slice, slice], rate: float) -> Callable[..., Any]:
    """The mean loss on query points after one step, a function of weights, inputs and targets."""
    support, query = parts

    def loss(weights: Any, x: Any, y: Any) -> Any:
        for layer in range(0, len(weights), 2):
            x = x @ weights[layer] + weights[layer + 1]
            x = torch.relu(x) if layer + 2 < len(weights) else x
        return ((x - y) ** 2).mean()

    def of_task(weights: Any, x: Any, y: Any) -> Any:
        found = torch.func.grad(loss)(weights, x[support], y[support])
        adapted = [each - rate * own for each, own in zip(weights, found, strict=True)]
        return loss(adapted, x[query], y[query])

    return lambda weights, x, y: torch.func.vmap(of_task, (None, 0, 0))(weights, x, y).mean()


def halves(learner: MetaLearner) -> tuple[slice, slice]:
    """Support and query among the examples of a task."""
    return slice(None, learner.shots), slice(learner.shots, None)


def drawing(learner: MetaLearner) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """A function that draws inputs and targets of a meta-batch of tasks, with NumPy."""
    generator, (low, high) = np.random.default_rng(0), ends_of(learner)
    examples = learner.shots + learner.queries
    return lambda: draw_sinusoids(generator, generator.uniform(low, high, (learner.meta_batch, len(low))), examples)


def as_params(learner: MetaLearner, weights: Weights) -> Any:
    """Weights as the network has them."""
    structure = jax.tree.structure(jax.eval_shape(learner.init, jnp.uint32(0)).meta_params)
    return jax.tree.unflatten(structure, [jnp.asarray(each) for each in weights])


def as_weights(params: Any) -> Weights:
    """Weights as all have them."""
    return [np.array(leaf) for leaf in jax.tree.leaves(params)]


PEERS = {"twmaml": twmaml, "plain JAX loop": plain, "PyTorch": pytorch}


@cache
def peer(name: str) -> Peer:
    """One of them, in the process that it lives in."""
    return PEERS[name](compose(JOB))


def gradient_at(name: str, weights: Weights, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Its meta-gradient as one vector."""
    return np.concatenate([each.ravel() for each in peer(name).gradient(weights, x, y)])


def rate(name: str, steps: int) -> float:
    """Meta-steps a CPU-second of one block."""
    block, began = peer(name).block, clock()
    block(steps)
    return steps / (clock() - began)


def note(name: str) -> str:
    """Anything to know about it."""
    return peer(name).note


def check_gradients(processes: dict[str, ProcessPoolExecutor]) -> None:
    """Ends the program unless all have the same meta-gradient."""
    learner = compose(JOB).learner
    weights, data = as_weights(learner.init(1).meta_params), drawing(learner)()
    found = {name: process.submit(gradient_at, name, weights, *data).result() for name, process in processes.items()}
    ours = found["twmaml"]
    for name, own in found.items():
        difference = np.linalg.norm(own - ours) / np.linalg.norm(ours)
        print(f"{name:<16} meta-gradient differs by {difference:.1e}")
        if not difference < 1e-5:
            raise SystemExit(f"{name} computes something else")


def rates(processes: dict[str, ProcessPoolExecutor], blocks: int, steps: int) -> dict[str, Sequence[float]]:
    """Rates of all, block by block in turn."""
    found: dict[str, list[float]] = {name: [] for name in processes}
    for block in range(blocks + 1):
        for name, process in processes.items():
            found[name].append(process.submit(rate, name, steps if block else 10).result())
    return {name: values[1:] for name, values in found.items()}  # the first block compiles


def main() -> None:
    """Prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=15, help="timed blocks of each")
    parser.add_argument("--steps", type=int, default=500, help="meta-steps a block")
    arguments = parser.parse_args()
    processes = {name: own_process(1) for name in PEERS}
    check_gradients(processes)
    for name, process in processes.items():
        if said := process.submit(note, name).result():
            print(f"{name:<16} {said}")
    found = rates(processes, arguments.blocks, arguments.steps)
    for name, own in found.items():
        ratio = np.array(found["twmaml"]) / np.array(own)
        print(f"{name:<16} {spread(own)} {STEPS_A_SECOND}; twmaml is {spread(ratio)} times as fast")
    for process in processes.values():
        process.shutdown()


if __name__ == "__main__":
    main()
