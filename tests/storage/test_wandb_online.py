"""Runs that are sent to W&B while they train: what arrives is what stands on disk."""

import signal

import pytest

from tests.conftest import succeed, wait_for_rows
from tests.wandb_server import WandbServer, assert_arrived
from twmaml.storage.metrics_file import read_metrics


@pytest.fixture
def server():
    with WandbServer() as server:
        yield server


def test_a_sweep_that_is_interrupted_and_resumed_arrives_whole(server, start, train, tmp_path):
    online = {"wandb": "auto", "variables": server.variables}
    # With an evaluation in every row, or W&B would keep one of the interruption, which metrics.csv does not.
    sweep = ["seed=0,1", "steps=100000", "evaluation.every=20", "hydra.sweep.dir=sweep", "wandb.mode=auto"]
    process = start("--multirun", *sweep, variables=server.variables)
    wait_for_rows(process, tmp_path / "sweep/0")
    process.send_signal(signal.SIGINT)
    assert "go on with" in process.communicate(timeout=120)[0]
    before = {name: len(run.history) for name, run in server.runs.items()}
    assert [run.exit_codes for run in server.runs.values()] == [[1], [1]]
    done = int(read_metrics(tmp_path / "sweep/0/metrics.csv")["step"][-1])

    resumed = succeed(train("resume=sweep", f"steps={done + 50}", small=False, **online))
    assert f"{server.url}/someone/twmaml/groups/sweep\n" in resumed.stdout
    assert server.runs.keys() == before.keys()  # the same runs
    assert all(len(run.history) > before[name] > 3 for name, run in server.runs.items())
    assert [run.exit_codes for run in server.runs.values()] == [[1, 0], [1, 0]]
    for run in server.runs.values():
        seed = run.config["seed"]
        assert run.settings["displayName"] == f"uniform-sin2d-s{seed}"
        assert run.settings["groupName"] == "sweep"
        assert (run.settings["project"], run.settings["tags"]) == ("twmaml", ["uniform", "sin2d"])
        config = ("sampler", "task", "model", "adaptation", "steps", "meta_batch")
        assert [run.config[key] for key in config] == ["uniform", "sin2d", "mlp", "maml", done + 50, 4]
        assert_arrived(run, tmp_path / f"sweep/{seed}")
    assert sorted(run.config["seed"] for run in server.runs.values()) == [0, 1]
