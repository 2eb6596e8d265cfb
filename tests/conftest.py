import importlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings
from omegaconf import OmegaConf

from twmaml.adaptation.maml import MAML
from twmaml.meta_learning.learner import MetaLearner
from twmaml.models.mlp import MLP
from twmaml.samplers.bandit import Bandit
from twmaml.samplers.cross_entropy import CrossEntropy
from twmaml.samplers.epsilon_greedy import EpsilonGreedy
from twmaml.samplers.group_robust import GroupRobust
from twmaml.samplers.hard_tasks import HardTasks
from twmaml.samplers.learnability import Learnability
from twmaml.samplers.learning_progress import LearningProgress
from twmaml.samplers.level_replay import LevelReplay
from twmaml.samplers.proportional import Proportional
from twmaml.samplers.risk_prediction import RiskPrediction
from twmaml.samplers.tail_risk import TailRisk
from twmaml.samplers.task_robust import TaskRobust
from twmaml.samplers.uniform import Uniform
from twmaml.samplers.uniform_difficulty import UniformDifficulty
from twmaml.space.axis import Interval
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import summarize
from twmaml.storage import evaluation_file, pictures_file, summary
from twmaml.storage.evaluation_file import EvaluationRecord
from twmaml.storage.metrics_file import TASKS_ADAPTED, TASKS_TRAINED, MetricsFile
from twmaml.storage.summary import Summary
from twmaml.tasks.sinusoid import Sinusoid
from twmaml.types import Metric

jax.config.update("jax_num_cpu_devices", 2)  # so that tests of several runs are also tests of several devices
# Programs that run for milliseconds need not be fast. (Those of the command line are compiled as users have them.)
jax.config.update("jax_disable_most_optimizations", True)

settings.register_profile("twmaml", deadline=None, max_examples=25)  # a first example compiles
settings.load_profile("twmaml")

SAMPLERS = {
    "uniform": Uniform(),
    "epsilon_greedy": EpsilonGreedy(0.3),
    "weighted": Proportional("losses", False),
    "importance": Proportional("losses", True),
    "delta": Proportional("deltas", False),
    "importance_delta": Proportional("deltas", True),
    "interpolated": Proportional("losses", False, interpolate=True),
    "interpolated_importance": Proportional("losses", True, interpolate=True),
}


FIELD = {
    "tail_risk": TailRisk(0.7, "batch", Uniform()),
    "tail_risk_density": TailRisk(0.7, "density", Uniform()),
    "tail_risk_queue": TailRisk(0.7, "queue", Proportional("losses", True)),
    "task_robust": TaskRobust(1e-3, Uniform()),
    "group_robust": GroupRobust(0.01, Uniform()),
    "uniform_difficulty": UniformDifficulty(0.9, Uniform()),
    "level_replay": LevelReplay("losses", 0.8, 0.3, 0.3, robust=True, spread=0.2),
    "learnability": Learnability("rank", 0.5, 0.1),
    "hard_tasks": HardTasks(0.5, 10, 3),
    "bandit": Bandit(0.001, 0.05),
    "learning_progress": LearningProgress(0.5, 0.1),
    "cross_entropy": CrossEntropy(0.05, 0.2, 20, 0.5),
    "risk_prediction": RiskPrediction(2, "top"),
    "risk_prediction_diverse": RiskPrediction(4, "diverse"),
}
"""Samplers and weightings of the field."""


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """A cache, in which tests find what others of this process have compiled."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session", autouse=True)
def children_can_be_interrupted():
    """Where the tests run in the background, SIGINT is ignored, and so it would be by every process they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=list(SAMPLERS))
def sampler(request):
    return SAMPLERS[request.param]


@pytest.fixture
def grid():
    return ParameterGrid({"a": Interval(0.5, 4.5, 4), "b": Interval(0.0, 180.0, 5, "deg")})


def make_learner_of(sampler=None, **changes):
    parts = {
        "family": Sinusoid(Interval(0.5, 4.5, 4), Interval(0.0, 180.0, 5, "deg"), 1.0, -5.0, 5.0),
        "sampler": sampler or Uniform(),
        "model": MLP([8, 8], "tanh", jax.nn.initializers.lecun_normal()),
        "adaptation": MAML(0.01, 1),
        "optimizer": optax.adam(1e-3),
        "meta_batch": 6,
        "shots": 3,
        "queries": 4,
    }
    return MetaLearner(**{**parts, **changes})


@pytest.fixture
def make_learner():
    return make_learner_of


def assert_trees_equal(first, second):
    first, second = (jax.tree.map(_raw, tree) for tree in (first, second))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def _raw(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


SMALL = [
    "steps=60",
    "log_every=20",
    "evaluation.every=40",
    "evaluation.cells=[4,3]",
    "evaluation.steps=5",
    "model.widths=[8]",
    "task.amplitude.cells=5",
    "task.phase.cells=4",
    "meta_batch=4",
]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_", "JAX_"))}
    home = tmp_path_factory.mktemp("home")  # no login, no cache of another run
    base = tmp_path_factory.getbasetemp()  # under xdist a folder of this worker, beside those of the others
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(cache), "NETRC": str(home / "netrc")}


@pytest.fixture
def train(tmp_path, environment):
    def run(*overrides, wandb="disabled", small=True, prefix=(), timeout=240, variables=(), **arguments):
        flags = [item for item in overrides if item.startswith("-")]  # which come first
        command = [
            *prefix,
            sys.executable,
            "-m",
            "twmaml.train",
            *flags,
            *(SMALL if small else []),
            f"wandb.mode={wandb}",
        ]
        command += [item for item in overrides if item not in flags]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment | dict(variables),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **arguments,
        )

    return run


@pytest.fixture
def start(tmp_path, environment):
    """Starts the command of a run, which ends with the test, so that it does not train on beside all others."""
    started = []

    def popen(*overrides, variables=(), **arguments):
        flags = [item for item in overrides if item.startswith("-")]
        others = [item for item in overrides if item not in flags]
        command = [sys.executable, "-m", "twmaml.train", *flags, *SMALL, "wandb.mode=disabled", *others]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        variables = environment | dict(variables)
        started.append(subprocess.Popen(command, cwd=tmp_path, env=variables, **pipes, **arguments))
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        with process:  # closes its pipes
            pass


def wait_for_rows(process, folder, rows=4):
    """Until metrics.csv has so many lines."""
    deadline = time.monotonic() + 240
    metrics = folder / "metrics.csv"
    while not metrics.exists() or metrics.read_text().count("\n") < rows:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def contents(folder):
    """Every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def succeed(process):
    assert process.returncode == 0, process.stderr
    return process


def read_wandb(folder):
    """Identity, configuration, rows and exit code of a run that W&B kept offline, from its log."""
    protocol: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    identity, config, history, exit_code = None, {}, [], None
    for data in _leveldb_records(path.read_bytes()):
        record = protocol.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            identity = record.run.run_id
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = record.history.item
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif kind == "exit":
            exit_code = record.exit.exit_code
    return identity, config, history, exit_code


def _leveldb_records(content):
    """The records of W&B's file: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    position, parts = 7, []
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or last
            yield b"".join(parts)
            parts = []


SCORE = Metric("loss", "mean squared error")
ACCURACY = Metric("accuracy", "accuracy", "%", higher_is_better=True, logarithmic=False)
GRID = ParameterGrid({"amplitude": Interval(0.0, 4.0, 4), "phase": Interval(0.0, 180.0, 3, "deg")})


def write_run(
    folder,
    losses=None,
    *,
    seed=0,
    sampler="uniform",
    task="sin2d",
    job=None,
    sampler_config=None,
    task_config=None,
    grid=GRID,
    further=(),
    pictures=None,
    trained=None,
    counted=True,
    choices=None,
    **changes,
):
    """The files of a finished run, without training.

    Args:
        folder: of the run.
        losses: [evaluations, tasks, inner steps + 1], of 12 cells.
        seed: of the run.
        sampler: choice of the group.
        task: choice of the group.
        job: folder of the job, if that is another one.
        sampler_config: configuration of the sampler.
        task_config: configuration of the task.
        grid: of the evaluation.
        further: metrics besides the score, each with its values in the form of the losses.
        pictures: of three tasks.
        trained: tasks of a meta-step whose weight is not 0, if not all.
        counted: whether metrics.csv has how many tasks were paid for.
        choices: of further groups.
        changes: to other keys of the configuration.
    """
    losses = np.full((3, grid.size, 6), 1.0 + seed) if losses is None else losses
    evaluations, tasks, _ = losses.shape
    draws = tasks // grid.size
    config = {
        "seed": seed,
        "meta_batch": 25,
        "shots": 10,
        "sampling": {"uniform_fraction": 0.1},
        "evaluation": {"seed": 0, "draws": draws, "queries": 100},
        "adaptation": {"steps": 1},
        "sampler": sampler_config or {"signal": "losses"},
        "task": task_config or {},
    }
    config |= changes
    hydra = (job or folder) / ".hydra"
    hydra.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    OmegaConf.save(config, hydra / "config.yaml")
    chosen = {"sampler": sampler, "task": task, **(choices or {})}
    OmegaConf.save({"hydra": {"runtime": {"choices": chosen}}}, hydra / "hydra.yaml")
    metrics = [SCORE, *(metric for metric, _ in further)]
    scales = np.array([axis.scale for axis in grid.axes.values()])
    steps = [10 * i for i in range(evaluations)]
    rows = []
    for i, step in enumerate(steps):
        values = {"loss": losses[i], **{metric.key: of_metric[i] for metric, of_metric in further}}
        record = EvaluationRecord(
            grid=grid,
            metrics=metrics,
            values=values,
            tasks=np.repeat(np.asarray(grid.centres()) / scales, draws, axis=0),
            queue_losses=losses[i, :, 1],
            visits=np.arange(tasks) + 1,
        )
        path = evaluation_file.path_of(folder, step)
        path.parent.mkdir(exist_ok=True)
        evaluation_file.write(path, record)
        health = ("queue/entropy", "weights/effective_sample_size", "weights/max", "queue/coverage")
        batch = config["meta_batch"]
        spent = {TASKS_ADAPTED: batch * step, TASKS_TRAINED: (trained or batch) * step} if counted else {}
        rows.append(spent | dict.fromkeys(health, 1.5) | summarize(values, metrics, draws))
    file = MetricsFile(folder / "metrics.csv", rows[0])
    for step, row in zip(steps, rows, strict=True):
        file.write(step, row)
    file.close()
    if pictures is not None:
        pictures_file.write(folder, pictures)
    ended = Summary("finished", seed, steps[-1], 1.0, 1, 100.0, rows[-1], "cpu", {})
    summary.write(folder, ended)
