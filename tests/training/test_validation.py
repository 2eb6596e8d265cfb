"""The split `validation`: it chooses the best checkpoint and ends runs early, and never the split `eval`."""

import json
import math
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ACCURACY, SCORE, SMALL, contents, succeed
from tests.jobs.test_resume import assert_equal_runs, go_back
from twmaml.analysis.finished_runs import read_runs
from twmaml.api import load
from twmaml.storage.checkpoint import CheckpointError, steps_in
from twmaml.storage.metrics_file import read_metrics
from twmaml.storage.validation import Validation

OFTEN = ["+evaluation.splits.validation={}", "evaluation.every=10", "log_every=10", "checkpoint.every=20"]

# Descends at first, and climbs then.
RATE = "{_target_: optax.linear_schedule, init_value: 0.02, end_value: -0.1, transition_steps: 100}"
OVER_THE_BEST = [
    *OFTEN,
    "checkpoint.keep=2",
    "steps=100",
    "~optimizer.learning_rate",
    f"+optimizer.learning_rate={RATE}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, environment):
    """Of a run whose best is far from its end."""
    parent = tmp_path_factory.mktemp("best")
    command = [sys.executable, "-m", "twmaml.train", *SMALL, "wandb.mode=disabled", *OVER_THE_BEST]
    subprocess.run([*command, "hydra.run.dir=run"], cwd=parent, env=environment, check=True, capture_output=True)
    return parent / "run"


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_best_checkpoint_is_kept_and_can_be_loaded(folder):
    metrics = read_metrics(folder / "metrics.csv")
    best = int(metrics["step"][np.nanargmin(metrics["validation/loss"])])
    assert 0 < best < 80
    assert summary_of(folder)["best_step"] == best
    assert steps_in(folder) == [100, 80, best]
    last, found = load(folder), load(folder, best=True)
    assert (last.step, found.step) == (100, best)
    assert not np.array_equal(found.predict(jnp.ones((3, 1))), last.predict(jnp.ones((3, 1))))
    assert not np.array_equal(metrics["validation/loss_step_0"], metrics["eval/loss_step_0"])  # which has other data


@pytest.mark.parametrize("step", [20, 100])
def test_a_killed_run_comes_to_the_same_best(step, folder, train, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    shutil.copytree(folder / "checkpoints/20", tmp_path / "run/checkpoints/10")  # whose removal was to come
    go_back(tmp_path / "run", step)
    assert load(tmp_path / "run", best=True).step == min(step, summary_of(folder)["best_step"])
    succeed(train("resume=run", small=False))
    assert_equal_runs(folder, tmp_path / "run")
    assert steps_in(tmp_path / "run") == steps_in(folder)
    assert summary_of(tmp_path / "run")["best_step"] == summary_of(folder)["best_step"]


def test_a_best_checkpoint_that_is_gone_is_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints" / str(summary_of(folder)["best_step"]))
    with pytest.raises(CheckpointError, match=r"checkpoints/\d+, the checkpoint that is best on validation, is gone$"):
        load(tmp_path / "run", best=True)
    shutil.rmtree(tmp_path / "run/evaluation/validation")
    with pytest.raises(CheckpointError, match=r"it is not judged on evaluation\.splits\.validation$"):
        load(tmp_path / "run", best=True)


def last_step(folder, patience):
    """Where a run of 60 meta-steps is to end, by its column."""
    metrics = read_metrics(folder / "metrics.csv")
    costs = metrics["validation/loss"]
    ends = [i for i in range(len(costs)) if i - np.nanargmin(costs[: i + 1]) >= patience]
    return int(metrics["step"][ends[0]]) if ends else 60


def test_a_run_ends_when_its_patience_does_and_the_others_go_on(train, tmp_path):
    folders = [tmp_path / f"run/seed_{seed}" for seed in (0, 2)]
    own = [*OFTEN, "optimizer.learning_rate=0.02", "evaluation.patience=1", "seed=[0,2]"]
    output = succeed(train(*own, "hydra.run.dir=run")).stdout
    summaries = [summary_of(folder) for folder in folders]
    assert f"after {' of 20, '.join(str(each['best_step']) for each in summaries)} of 60 meta-steps" in output
    assert [each["step"] for each in summaries] == [last_step(folder, 1) for folder in folders] == [20, 60]
    assert [each["stopped_early"] for each in summaries] == [1, None]
    assert all(each["status"] == "finished" for each in summaries)
    assert [steps_in(folder)[0] for folder in folders] == [20, 60]
    assert all((folder / "figures").glob("*.png") for folder in folders)
    assert [len(found) for found in read_runs([tmp_path])] == [2, 0]
    before = contents(tmp_path)
    assert succeed(train("resume=run", small=False)).stdout == "twmaml: run is finished: 60 meta-steps\n"
    assert contents(tmp_path) == before


def test_it_goes_on_with_more_patience_and_ends_at_once_where_it_is_over(train, tmp_path):
    own = [*OFTEN, "optimizer.learning_rate=0.02"]
    succeed(train(*own, "evaluation.patience=1", "hydra.run.dir=run"))
    rows = (tmp_path / "run/metrics.csv").read_bytes()
    assert "run is finished: 20 meta-steps" in succeed(train("resume=run", "steps=80", small=False)).stdout
    go_back(tmp_path / "run", 20)  # killed before it could tell that it had ended
    succeed(train("resume=run", small=False))
    assert (tmp_path / "run/metrics.csv").read_bytes() == rows
    assert summary_of(tmp_path / "run")["stopped_early"] == 1
    succeed(train("resume=run", "evaluation.patience=100", small=False))
    succeed(train(*own, "hydra.run.dir=whole"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")
    assert summary_of(tmp_path / "run")["stopped_early"] is None


def test_patience_needs_a_split_to_judge_by(train, tmp_path):
    process = train("evaluation.patience=3", "hydra.run.dir=run")
    assert process.returncode == 1
    assert process.stderr.startswith(
        "twmaml: evaluation.patience=3: needs a split to judge by, +evaluation.splits.vali"
    )
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "run/metrics.csv").exists()


def judged(metrics, *means):
    found = Validation(metrics)
    column = "validation/accuracy" if ACCURACY in metrics else "validation/loss"
    for number, mean in enumerate(means):
        row = {"validation/loss": -1.0 - number, "eval/accuracy": number, column: mean, "validation/diverged": 0.0}
        found = found.after({"step": 10.0 * number, **row}).after({"step": 10.0 * number + 5})  # a row of training only
    return found


@pytest.mark.parametrize(
    ("metrics", "means", "best", "since_best"),
    [
        ([SCORE], [3, 1, 2], 10, 1),
        ([SCORE, ACCURACY], [0.5, 0.2, 0.8, 0.8, math.nan], 20, 2),
        ([SCORE], [math.nan, 2, math.nan], 10, 1),
        ([SCORE], [math.nan, math.nan], None, 1),
        ([SCORE], [], None, 0),
    ],
)
def test_the_best_is_by_the_leading_metric_and_the_first_of_equals_and_no_nan(metrics, means, best, since_best):
    found = judged(metrics, *means)
    assert (found.best(), found.since_best) == (best, since_best)


def test_the_best_up_to_a_step_does_not_know_later_ones():
    found = judged([SCORE], 3, 2, 4, 1)
    assert [found.best(step) for step in (-1, 0, 9, 10, 25, 30)] == [None, 0, 0, 10, 10, 30]
