"""Control by the command line: what it trains, leaves and refuses, and how a policy is used."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import contents, succeed
from twmaml.api import load, save_animation
from twmaml.storage import evaluation_file
from twmaml.storage.metrics_file import read_metrics
from twmaml.storage.pictures_file import read as read_pictures
from twmaml.tasks.control.navigation import Navigation
from twmaml.tasks.control.rollouts import roll_out

NAVIGATION = [
    "task=navigation",
    "sampler=importance",  # one sampler, so that the tests share what is compiled
    "task.environment.horizon=8",
    "task.environment.goal_x.cells=3",
    "task.environment.goal_y.cells=2",
    "model.widths=[8]",
    "steps=30",
    "log_every=10",
    "meta_batch=3",
    "shots=4",
    "queries=3",
    "evaluation.every=10",
    "evaluation.queries=4",
]
RUN = "hydra.run.dir=run"

DOCS = (Path(__file__).parent.parent.parent / "docs/control.md").read_text()


@pytest.fixture
def navigate(train):
    def run(*overrides, **arguments):
        return train(*NAVIGATION, *overrides, small=False, **arguments)

    return run


def test_a_run_leaves_returns_after_every_inner_step_pictures_and_a_queue_of_scores(navigate, tmp_path):
    succeed(navigate(RUN))
    folder = tmp_path / "run"
    metrics = read_metrics(folder / "metrics.csv")
    for k in range(4):
        values = metrics[f"eval/return_step_{k}"]
        assert np.isfinite(values[[0, -1]]).all()
        assert (metrics[f"eval/return_cvar_10_step_{k}"][[0, -1]] <= values[[0, -1]]).all()
    assert {"train/return", "train/success", "eval/success", "eval/return_worst"} <= set(metrics)
    record = evaluation_file.read(evaluation_file.path_of(folder, 30))
    low, high = Navigation(*record.grid.axes.values(), 8).return_range  # type: ignore[arg-type]
    np.testing.assert_allclose(record.values["loss"], (high - record.values["return"]) / (high - low), rtol=1e-5)
    assert record.queue_losses is not None
    assert (record.queue_losses >= 0).all()
    pictures = read_pictures(folder)
    assert pictures is not None
    assert pictures.arrays["observations"].shape == (3, 4, 3, 8, 2)
    assert (folder / "figures" / "pictures.png").exists()


def test_a_sweep_equals_single_runs_and_is_compared_by_the_return(navigate, tmp_path, environment):
    succeed(navigate("--multirun", "sampler=importance,uniform", "seed=3,4", "hydra.sweep.dir=sweep"))
    succeed(navigate("seed=4", "hydra.run.dir=one"))
    together, one = (read_metrics(tmp_path / folder / "metrics.csv") for folder in ("sweep/1", "one"))
    np.testing.assert_allclose(together["eval/return"], one["eval/return"], rtol=1e-3)
    command = [sys.executable, "-m", "twmaml.compare", "sweep"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "return" in succeed(done).stdout
    assert (tmp_path / "sweep/comparison/index.html").exists()


def test_a_resumed_run_equals_one_that_nobody_interrupted(navigate, tmp_path):
    succeed(navigate("seed=4", "hydra.run.dir=one"))
    succeed(navigate("seed=4", "hydra.run.dir=longer", "steps=20", "checkpoint.every=10"))
    succeed(navigate("seed=4", "hydra.run.dir=longer", "steps=30", "checkpoint.every=10"))
    files = [contents(tmp_path / folder / "evaluation") for folder in ("one", "longer")]
    assert files[0] == files[1]
    assert (tmp_path / "one/metrics.csv").read_bytes() == (tmp_path / "longer/metrics.csv").read_bytes()


def test_a_trained_policy_adapts_to_an_environment_and_can_be_watched(navigate, tmp_path):
    succeed(navigate(RUN))
    trained = load(tmp_path / "run")
    environment, task = trained.family.environment, {"goal_x": 0.4, "goal_y": -0.3}  # type: ignore[attr-defined]
    observations = np.zeros((2, 2), np.float32)
    policies = [trained.adapt_in(environment, task, steps=k) for k in (0, 1, 1)]
    means = [np.asarray(policy(observations).mode) for policy in policies]
    np.testing.assert_array_equal(means[0], trained.predict(observations).mode)
    np.testing.assert_array_equal(means[1], means[2])
    assert not np.allclose(means[0], means[1])
    other = trained.adapt_in(environment, task, 1, trajectories=2, key=jax.random.key(7))
    assert not np.allclose(means[1], other(observations).mode)
    own = Navigation(0.4, environment.goal_y, horizon=5)
    rollouts = roll_out(own, own.parameters_of({"goal_y": 0.1}), policies[1], jax.random.key(0), 2)
    save_animation(tmp_path / "way.gif", own, {"goal_y": 0.1}, rollouts)
    with Image.open(tmp_path / "way.gif") as image:
        assert image.n_frames == 5  # type: ignore[attr-defined]
    assert trained.adapt_in(own, {"goal_y": 0.1}, 1)(observations).mode.shape == (2, 2)
    with pytest.raises(ValueError, match="a task needs goal_y"):
        trained.adapt_in(own, task, 1)
    with pytest.raises(NotImplementedError, match="adapt_in"):
        trained.adapt([[0.0]], [[0.0]], 1)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model=mlp"], "an action of Navigation is 2 real numbers, as model=gaussian_policy gives. Got "),
        (["model=categorical_policy"], "an action of Navigation is 2 real numbers"),
        (["model.outputs=3"], "model.outputs=3: must be 2"),
        (["task.environment.horizon=0"], "task.environment.horizon"),
        (["task.estimator=reinforce"], "task.estimator"),
        (["task.discount=1.5"], "task.discount"),
        (["adaptation.decay=0"], "adaptation.decay"),
        (["task.environment.goal_x=0.1", "task.environment.goal_y=0.1"], "at least one task parameter must be an axis"),
    ],
)
def test_a_mistake_is_one_line(navigate, overrides, line):
    done = navigate(RUN, *overrides)
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_policy_is_no_network_of_a_regression(train):
    done = train("task=sin2d", "model=gaussian_policy", small=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "do not fit together" in done.stderr


def test_cart_pole_is_trained(train, tmp_path):
    small = [override for override in NAVIGATION if "environment" not in override and "task=" not in override]
    own = ["task.environment.horizon=8", "task.environment.pole_length.evaluation_cells=2"]
    succeed(train("task=cartpole", RUN, *small, *own, small=False))
    values = read_metrics(tmp_path / "run" / "metrics.csv")["eval/return_step_3"]
    assert 0 < values[-1] <= 8
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def run_python(folder, environment, *arguments):
    command = [sys.executable, *arguments]
    return succeed(subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False))


def test_the_policy_of_the_docs_is_used_as_they_say(navigate, tmp_path, environment):
    succeed(navigate(RUN))
    (code,) = re.findall(r"```python\n(import sys\n.*?)```", DOCS, re.DOTALL)
    output = run_python(tmp_path, environment, "-c", code, "run").stdout
    assert re.fullmatch(r"mean return after 2 steps: -\d+\.\d+\n", output)
    with Image.open(tmp_path / "episode.gif") as image:
        assert image.n_frames == 8  # type: ignore[attr-defined]


def test_the_environment_of_the_docs_is_trained_in(tmp_path, environment):
    files = re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", DOCS, re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    for name, content in files:
        assert len(content.splitlines()) <= 40
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (command,) = re.findall(r"^python -m (twmaml\.train --config-dir .*)$", DOCS, re.MULTILINE)
    small = [each for each in NAVIGATION if not each.startswith(("task", "sampler"))]
    run_python(tmp_path, environment, "-m", *command.split(), *small, "wandb.mode=disabled", RUN)
    assert np.isfinite(read_metrics(tmp_path / "run" / "metrics.csv")["eval/return_step_3"][-1])
    assert (tmp_path / "run/figures/pictures.png").exists()
