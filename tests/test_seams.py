"""The docs' examples in the whole program: what is one file and one YAML goes through all of it."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import FIELD, SAMPLERS, SMALL, succeed
from tests.examples import example, write_examples
from twmaml.api import load
from twmaml.meta_learning.chunk import train_chunk
from twmaml.storage import evaluation_file
from twmaml.storage.metrics_file import read_metrics
from twmaml.training.one_of import OneOf

ROOT = Path(__file__).parent.parent
FAST = ["optimizer.learning_rate=0.02", "adaptation.learning_rate=0.2", "model.widths=[16]"]
BLOBS = [item for item in SMALL if not item.startswith(("task.", "evaluation.cells"))]


@pytest.fixture
def examples(tmp_path, environment, monkeypatch):
    write_examples(tmp_path)
    monkeypatch.setitem(environment, "PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(*command, folder, environment):
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_sampler_with_state_shares_a_program_with_all_others(make_learner):
    smoothed = example("smoothed", "Smoothed")(decay=0.7, uniform_fraction=0.1)
    others = [SAMPLERS[name] for name in ("uniform", "epsilon_greedy", "importance_delta")]
    of_the_field = ("tail_risk_queue", "task_robust", "level_replay", "bandit", "cross_entropy", "risk_prediction")
    rules = [*others, smoothed, *(FIELD[name] for name in of_the_field)]

    def train(index):
        learner = make_learner(OneOf(rules, index))
        return train_chunk(learner, learner.init(3), jnp.int32(60))

    states, chunk = jax.jit(lambda: jax.lax.map(train, jnp.arange(len(rules))))()
    for i, rule in enumerate(rules):
        learner = make_learner(rule)
        alone, alone_chunk = jax.jit(lambda learner=learner: train_chunk(learner, learner.init(3), jnp.int32(60)))()
        np.testing.assert_array_equal(states.queue.visits[i], alone.queue.visits)
        together = states._replace(sampler=states.sampler[i])
        for one, other in zip(jax.tree.leaves(alone.meta_params), jax.tree.leaves(together.meta_params), strict=True):
            np.testing.assert_allclose(one, other[i], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(alone.queue.losses, states.queue.losses[i], rtol=1e-5, atol=1e-5)
        for one, other in zip(jax.tree.leaves(alone.sampler), jax.tree.leaves(together.sampler), strict=True):
            np.testing.assert_allclose(one, other[i], rtol=1e-5, atol=1e-5)
        for name, value in alone_chunk.metrics.items():
            np.testing.assert_allclose(chunk.metrics[name][i], value, rtol=1e-4, err_msg=name)
    beginning = smoothed.init(make_learner(smoothed).family.grid)
    untouched = [states.sampler[3][i] for i in range(len(rules)) if i != 3]  # of those that did not draw by it
    assert all((np.asarray(each) == beginning).all() for each in untouched)


def test_the_state_of_a_sampler_does_not_depend_on_the_order_of_a_batch(make_learner):
    learner = make_learner(example("smoothed", "Smoothed")(decay=0.5, uniform_fraction=0.1), meta_batch=12)
    state, _ = jax.jit(partial(train_chunk, learner))(learner.init(0), jnp.int32(30))
    visited = np.asarray(state.queue.visits) > 0
    assert (np.asarray(state.sampler)[visited] != 1).all()
    assert (np.asarray(state.sampler)[~visited] == 1).all()


def test_a_sampler_with_state_is_the_same_run_to_the_bit_after_kills(examples, environment):
    own = ["sampler=smoothed", f"hydra.searchpath=[file://{examples}/my_conf]"]
    command = [ROOT / "scripts/torture.py", "--kills", "2", "--terms", "0", "--steps", "3000", "--set", *own]
    output = run(*command, folder=examples, environment=environment)
    assert output.returncode == 0, output.stdout + output.stderr


def test_a_sampler_with_state_is_swept_saved_alone_and_compared(examples, train, environment):
    sweep = ["--config-dir=my_conf", "--multirun", "sampler=uniform,smoothed", "seed=0,1", "hydra.sweep.dir=sweep"]
    succeed(train(*sweep))
    arrays = [_checkpoint_arrays(examples / "sweep" / number) for number in "02"]
    assert "sampler" not in arrays[0]
    assert arrays[1]["sampler"].shape == (20,)  # its own entry, without those of the others
    assert "sampler/largest_average" in read_metrics(examples / "sweep/2/metrics.csv")
    assert "sampler/largest_average" not in read_metrics(examples / "sweep/0/metrics.csv")
    output = succeed(run("-m", "twmaml.compare", "sweep", "--full", folder=examples, environment=environment)).stdout
    assert re.search(r"│ smoothed +│", output)
    assert '"smoothed"' in (examples / "sweep/comparison/index.html").read_text()


def _checkpoint_arrays(folder):
    from twmaml.storage.checkpoint import newest

    (checkpoint,) = newest([folder])
    assert checkpoint is not None
    return checkpoint.arrays


def test_a_family_with_classes_goes_through_everything(examples, train, environment):
    noisy = "+evaluation.splits.noisy.task.noise.high=1.0"
    sweep = ["--config-dir=my_conf", "--multirun", "task=blobs", "sampler=uniform,weighted", "seed=0,1", noisy]
    output = succeed(
        train(*sweep, *BLOBS, "steps=400", "meta_batch=10", *FAST, "hydra.sweep.dir=sweep", small=False)
    ).stdout
    folder = examples / "sweep" / "0"
    ends = [read_metrics(examples / "sweep" / job / "metrics.csv")["eval/accuracy"][-1] for job in "01"]
    assert f"sampler=uniform seed=0,1: eval/accuracy {np.mean(ends):.4f} (sd" in output
    metrics = read_metrics(folder / "metrics.csv")
    assert metrics["eval/accuracy"][-1] > metrics["eval/accuracy_step_0"][0] + 0.1
    assert metrics["eval/accuracy"][-1] > metrics["noisy/accuracy"][-1]
    record = evaluation_file.read(evaluation_file.path_of(folder, 400))
    assert (record.metrics[1].key, record.metrics[1].higher_is_better) == ("accuracy", True)
    np.testing.assert_allclose(record.values["accuracy"][:, -1].mean(), metrics["eval/accuracy"][-1], rtol=1e-6)
    worst = metrics["eval/accuracy_worst"][-1]
    np.testing.assert_allclose(worst, record.values["accuracy"][:, -1].min(), rtol=1e-6)
    assert worst <= metrics["eval/accuracy_cvar_10"][-1] <= metrics["eval/accuracy"][-1]
    other = evaluation_file.read(evaluation_file.path_of(folder, 400, "noisy"))
    assert record.queue_losses is not None
    assert other.queue_losses is None  # the queue has no cells for them
    assert {path.stem for path in (folder / "figures").iterdir()} >= {"queue", "evaluation", "adaptation"}

    trained = load(folder, trust=["blobs"])
    centres = np.array([[1.0, 0.0], [-0.5, 0.86], [-0.5, -0.86]])
    predict = trained.adapt(centres.repeat(20, axis=0), np.arange(3).repeat(20), steps=10)
    assert (np.argmax(predict(jnp.asarray(centres, jnp.float32)), axis=1) == np.arange(3)).all()

    succeed(train("resume=sweep", "steps=500", small=False))
    assert read_metrics(folder / "metrics.csv")["step"][-1] == 500
    output = succeed(run("-m", "twmaml.compare", "sweep", "--full", folder=examples, environment=environment)).stdout
    assert output.index("accuracy after") < output.index("cross-entropy")
    page = (examples / "sweep/comparison/index.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    leading = json.loads(data)["metrics"][0]
    assert (leading["key"], leading["higher_is_better"]) == ("accuracy_mean", True)
