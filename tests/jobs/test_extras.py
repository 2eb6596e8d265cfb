"""The engines of other people: each in an environment of its own with only its extra, as its page in docs/ tells."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SMALL, succeed
from twmaml.storage.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.slow


@pytest.fixture
def run_with(tmp_path, environment):
    """Makes an environment with one extra and runs the command line there."""

    def run(extra, *overrides):
        python = tmp_path / "venv" / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
            install = [python, "-m", "pip", "install", "-q", f"{ROOT}[{extra}]", "-c", ROOT / "constraints.txt"]
            subprocess.run(install, check=True, timeout=900, env={**environment, "HOME": str(Path.home())})
        command = [python, "-m", "twmaml.train", *overrides, "wandb.mode=offline", *SMALL]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
        )

    return run


SWEEP = ["--multirun", "sampler=delta,uniform", "seed=0,1,2"]


@pytest.mark.parametrize(
    ("extra", "launcher"), [("joblib", "processes"), ("slurm", "slurm_local"), ("ray", "ray_tasks")]
)
def test_a_sweep_runs_elsewhere_as_it_does_here(extra, launcher, run_with, tmp_path):
    for name in (launcher, "vectorised"):
        succeed(run_with(extra, *SWEEP, f"hydra/launcher={name}", f"hydra.sweep.dir={name}"))
    for number in "012345":
        here, elsewhere = tmp_path / "vectorised" / number, tmp_path / launcher / number
        files = [{p.name for p in folder.iterdir()} for folder in (here, elsewhere)]
        assert files[0] == files[1]
        expected, got = read_metrics(here / "metrics.csv"), read_metrics(elsewhere / "metrics.csv")
        for metric, values in expected.items():
            np.testing.assert_allclose(got[metric], values, rtol=1e-4, atol=1e-6, err_msg=f"{number} {metric}")


def test_a_list_of_seeds_is_one_submitted_job(run_with, tmp_path):
    succeed(
        run_with(
            "slurm",
            "--multirun",
            "sampler=delta,uniform",
            "seed=[0,1,2]",
            "hydra/launcher=slurm_local",
            "hydra.sweep.dir=x",
        )
    )
    assert sorted(p.name for p in (tmp_path / "x").glob("[0-9]")) == ["0", "1"]
    assert len(list((tmp_path / "x").glob("[01]/seed_[012]/summary.json"))) == 6


def test_a_failed_job_elsewhere_is_listed(run_with, tmp_path):
    process = run_with(
        "joblib",
        "--multirun",
        "optimizer.learning_rate=0.001,1e20",
        "hydra/launcher=processes",
        "hydra.sweep.dir=x",
    )
    assert process.returncode == 1
    assert "twmaml: 1 of 2 jobs failed" in process.stderr
    assert "is not finite at meta-step" in process.stderr.splitlines()[-1]


def test_optuna_returns_the_best_of_eight_trials(run_with, tmp_path):
    output = succeed(run_with("optuna", "experiment=search_learning_rate", "hydra.sweep.dir=x")).stdout
    results = (tmp_path / "x" / "optimization_results.yaml").read_text()
    best = float(re.search(r"best_value: (\S+)", results)[1])  # type: ignore[index]
    means = []
    for number in range(8):
        runs = [read_metrics(tmp_path / "x" / str(number) / f"seed_{seed}" / "metrics.csv") for seed in range(3)]
        means.append(np.mean([metrics["eval/loss"][-1] for metrics in runs]))
    assert best == pytest.approx(min(means), rel=1e-6)
    assert f"Best value: {best}"[:16] in output


def test_what_is_not_installed_is_named(train):
    process = train("--multirun", "seed=0,1", "hydra/launcher=slurm")
    assert process.returncode == 1
    assert process.stderr == 'twmaml: hydra/launcher: submitit is not installed; pip install -e ".[slurm]"\n'
