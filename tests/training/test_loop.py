"""The loop: what is written does not depend on how long an evaluation takes beside the training."""

import subprocess
import sys

import pytest

from tests.conftest import SMALL
from tests.jobs.test_resume import assert_equal_runs
from twmaml.storage.metrics_file import read_metrics
from twmaml.training.plan import Plan

SLOW_EVALUATIONS = """
from twmaml.training.loop import _Left
_Left.ready = property(lambda left: left.judged is None)
from twmaml.train import main
main()
"""

RATE = "{_target_: optax.exponential_decay, transition_steps: 1, init_value:"
UPHILL = ["~optimizer.learning_rate", f"+optimizer.learning_rate={RATE} -0.1, decay_rate: 1}}"]
EXPLODING = ["~optimizer.learning_rate", f"+optimizer.learning_rate={RATE} 0.001, decay_rate: 5}}"]


@pytest.mark.parametrize(
    ("overrides", "ends", "status"),
    [
        (["figures_every=30"], [60], 0),
        (["+evaluation.splits.validation={}", "evaluation.patience=2", *UPHILL], [40], 0),
        (EXPLODING, range(41, 60), 1),
    ],
)
def test_what_is_written_does_not_depend_on_how_long_evaluations_take(overrides, ends, status, tmp_path, environment):
    command = ["steps=60", "log_every=5", "evaluation.every=20", "checkpoint.every=30", "wandb.mode=disabled"]
    for name, program in {"as_usual": ["-m", "twmaml.train"], "slow": ["-c", SLOW_EVALUATIONS]}.items():
        arguments = [*SMALL, *command, *overrides, f"hydra.run.dir={name}"]
        run = [sys.executable, *program, *arguments]
        process = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == status, process.stderr
    assert read_metrics(tmp_path / "slow/metrics.csv")["step"][-1] in ends
    assert_equal_runs(tmp_path / "as_usual", tmp_path / "slow")


@pytest.mark.parametrize("patience", [None, 3])
def test_a_run_may_end_where_its_evaluation_decides_that_and_at_its_last_step(patience):
    plan = Plan(50, 5, 20, None, 100, 3, patience)
    assert [step for step in range(1, 51) if plan.may_end_at(step)] == ([50] if patience is None else [20, 40, 50])
