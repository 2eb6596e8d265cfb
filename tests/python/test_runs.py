"""Runs that are trained in memory: as the command line trains them, in pieces, interrupted, failing."""

import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SMALL, assert_trees_equal, succeed
from twmaml.api import ConfigurationError, TrainingFailedError, compose, load
from twmaml.storage import evaluation_file
from twmaml.storage.metrics_file import format_number, read_metrics
from twmaml.training import process

SEEDS = [3, 1]


@pytest.fixture(autouse=True)
def jax_as_it_is(monkeypatch):
    monkeypatch.setattr(process, "_started", True)


@pytest.fixture(scope="module")
def composed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_started", True)
        return compose(*SMALL, "sampler=bandit", seed=SEEDS)


_IN_PYTHON = """
import pickle, sys
import jax.numpy as jnp
from twmaml.api import ConfigurationError, compose

try:
    compose(sys.argv[1:])
except ConfigurationError as error:  # as it was called before
    assert "one by one" in str(error)
else:
    raise AssertionError
runs = compose(*sys.argv[1:]).begin()
runs.train()
for run in runs:
    predicted = run.trained.predict(jnp.array([[0.5], [2.0]]))
    arrays = [run.queue["losses"].ravel(), run.queue["last_visit"].ravel(), predicted]
    kept = run.history, run.evaluations["eval"]._asdict(), run.evaluations["wide"].values, arrays
    with open(f"{run.seed}.pickle", "wb") as file:
        pickle.dump(kept, file)
"""


def test_numbers_are_those_of_the_command_line(train, tmp_path, environment):
    overrides = ["sampler=bandit", "seed=[3,1]", "evaluation.every=20", "log_every=25"]
    overrides += ["+evaluation.splits.wide.task.phase.high=270.0", "+evaluation.splits.wide.task.noise=0.1"]
    succeed(train(*overrides, "hydra.run.dir=run"))
    given = [*SMALL, *overrides, "wandb.mode=disabled"]
    command = [sys.executable, "-c", _IN_PYTHON, *given]
    # As many devices as the command line has for two runs.
    env = {**environment, "JAX_NUM_CPU_DEVICES": str(min(2, len(os.sched_getaffinity(0))))}
    succeed(subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False))
    for seed in SEEDS:
        folder = tmp_path / "run" / f"seed_{seed}"
        history, judged, wide, (losses, last_visit, predictions) = np.load(
            tmp_path / f"{seed}.pickle", allow_pickle=True
        )
        there = read_metrics(folder / "metrics.csv")
        assert [*there] == [*history]
        rows = [[format_number(value) for value in column] for column in there.values()]
        assert rows == [[format_number(value) for value in column] for column in history.values()]
        record = evaluation_file.read(evaluation_file.path_of(folder, 60))
        for name in ("values", "tasks", "queue_losses", "visits"):
            jax.tree.map(np.testing.assert_array_equal, getattr(record, name), judged[name])
        split = evaluation_file.read(evaluation_file.path_of(folder, 60, "wide"))
        np.testing.assert_array_equal(split.values["loss"], wide["loss"])
        assert losses.shape == last_visit.shape == (20,)
        trained = load(folder)
        np.testing.assert_array_equal(trained.predict(jnp.array([[0.5], [2.0]])), predictions)


def test_in_pieces_it_comes_to_the_same(composed):
    whole, pieces = composed.begin(), composed.begin()
    whole.train()
    assert whole.step == 60
    assert composed.config["steps"] == 60
    for steps in (7, 0, 33, 20):
        pieces.train(steps)
    for run, other in zip(whole, pieces, strict=True):
        assert_trees_equal((run.trained.meta_params, run.queue), (other.trained.meta_params, other.queue))
        assert run.evaluations["eval"].values["loss"].shape == (12, 6)
        np.testing.assert_array_equal(run.evaluations["eval"].values["loss"], other.evaluations["eval"].values["loss"])
        assert {*other.history["step"]} == {*run.history["step"], 7.0}
        assert run.queue["visits"].sum() == 60 * 4
        assert run.queue["visits"].shape == run.probabilities.shape == run.grid.shape
        assert run.probabilities.sum() == pytest.approx(1)
    with pytest.raises(ConfigurationError, match="must be one of queue, evaluation"):
        whole[0].figure("queu")
    with pytest.raises(ConfigurationError, match="nothing to show"):
        whole[0].figure("learned")
    assert len(whole[1].figure("queue").axes) >= 4


def test_what_was_read_stays_while_training_goes_on(composed):
    runs = composed.begin()
    runs.train(20)
    run = runs[0]
    queue, trained, before = run.queue, run.trained, jax.tree.map(np.array, run.trained.meta_params)
    copied = {name: values.copy() for name, values in queue.items()}
    runs.train(60)
    jax.tree.map(np.testing.assert_array_equal, queue, copied)
    assert_trees_equal(trained.meta_params, before)
    assert run.step == 80
    assert (run.queue["visits"] >= queue["visits"]).all()


def test_after_ctrl_c_the_runs_are_whole_and_go_on(composed):
    runs = composed.begin()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        runs.train(10**8)
    stopped = runs.step
    assert 0 < stopped < 10**8
    for run in runs:
        assert run.history["step"][-1] == stopped
        assert np.isfinite(run.history["eval/loss"][-1])
    runs.train(20)
    assert runs.step == stopped + 20


def test_runs_that_fail_stand_where_it_shows_and_say_why():
    runs = compose(*SMALL, "optimizer._target_=optax.sgd", optimizer={"learning_rate": 1e12}).begin()
    with pytest.raises(TrainingFailedError, match="the loss of seed 0 is not finite at meta-step") as failed:
        runs.train()
    step, (run,) = runs.step, runs
    assert f"at meta-step {step}:" in str(failed.value)
    assert step < 60
    assert run.history["step"][-1] == step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.trained.meta_params))
    with pytest.raises(TrainingFailedError, match=f"at meta-step {step}:"):
        runs.train()


def test_a_sweep_is_no_experiment():
    with pytest.raises(ConfigurationError, match="experiment=compare_samplers: is a sweep"):
        compose("experiment=compare_samplers")
