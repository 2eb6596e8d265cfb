"""The command line itself, as a user calls it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SMALL, contents, read_wandb, succeed, wait_for_rows
from twmaml.storage import evaluation_file
from twmaml.storage.metrics_file import read_metrics

ROOT = Path(__file__).parent.parent


def test_a_run_leaves_what_was_promised(train, tmp_path, environment):
    output = succeed(train("sampler=importance_delta", wandb="auto")).stdout
    (folder,) = tmp_path.glob("outputs/*/*")
    assert re.fullmatch(r"\d\d-\d\d-\d\d_importance_delta-sin2d-s0", folder.name)
    assert {p.name for p in folder.iterdir()} == {
        ".hydra",
        "train.log",
        "metrics.csv",
        "checkpoints",
        "evaluation",
        "figures",
        "pictures.npz",
        "summary.json",
        "wandb",
    }
    metrics = read_metrics(folder / "metrics.csv")
    np.testing.assert_array_equal(metrics["step"], [0, 20, 40, 60])
    assert list(metrics["train/tasks_adapted"]) == list(metrics["train/tasks_trained"]) == [0, 80, 160, 240]
    promised = ["train/loss", "train/loss_std", "weights/max", "weights/effective_sample_size"]
    promised += [f"queue/{n}" for n in ("mean", "std", "entropy", "coverage", "visit_loss_correlation")]
    promised += ["eval/loss", "eval/std", "eval/worst", "eval/cvar_10", "eval/cvar_30", "eval/diverged"]
    promised += [f"eval/{n}_step_{k}" for n in ("loss", "std", "worst", "cvar_10", "cvar_30") for k in (0, 1, 5)]
    assert set(promised) <= set(metrics)
    assert list(np.isfinite(metrics["train/loss"])) == [False, True, True, True]
    assert list(np.isfinite(metrics["eval/loss"])) == [True, False, True, True]
    assert {p.stem for p in (folder / "figures").iterdir()} == {
        "queue",
        "evaluation",
        "adaptation",
        "learning_curves",
        "pictures",
    }
    assert {p.name for p in (folder / "evaluation").iterdir()} == {"0.npz", "40.npz", "60.npz"}
    with np.load(folder / "evaluation" / "60.npz") as saved:
        assert saved["losses"].shape == (12, 6)
        assert saved["tasks"].shape == (12, 2)
        assert list(json.loads(str(saved["axes"]))) == ["amplitude", "phase"]
        assert 0 < saved["tasks"][:, 1].max() < 180  # degrees, as configured
        np.testing.assert_allclose(saved["losses"][:, 5].mean(), metrics["eval/loss"][-1], rtol=1e-6)
        assert saved["queue_losses"].shape == saved["visits"].shape == (12,)
        np.testing.assert_array_equal(np.isnan(saved["queue_losses"]), saved["visits"] == 0)
        assert 0 < saved["visits"].sum() < 60 * 4
    with np.load(folder / "pictures.npz") as saved:
        assert saved["predictions"].shape == (3, 6, 200)  # tasks, inner steps + 1, points
        assert list(saved["tasks"][:, 0]) == sorted(saved["tasks"][:, 0])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["step"], summary["seed"]) == ("finished", 60, 0)
    assert summary["eval/loss"] == pytest.approx(metrics["eval/loss"][-1])
    assert {"wall_seconds", "meta_steps_per_second", "twmaml", "jax", "python"} <= set(summary)
    lines = output.splitlines()
    assert len(lines) < 10  # no terminal, no fuss
    shown = f"outputs/{folder.parent.name}/{folder.name}/wandb"
    assert lines[-2:] == [f"  W&B here   wandb leet {shown}", f"  W&B later  wandb sync {shown}/offline-run-*"]
    assert_viewer_shows(lines[-2].partition("W&B here")[2], tmp_path, environment, b"importance_delta-sin2d-s0")
    _check_wandb(folder)


def assert_viewer_shows(command, folder, environment, text):
    """Runs W&B's viewer in a terminal until it shows a text and a chart; `q` ends it."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 140))
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false", "TERM": "xterm-256color"}
    path = {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    pipes: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(["bash", "-c", command], cwd=folder, env=environment | nobody | path, **pipes) as process:
        drawn, deadline = b"", time.monotonic() + 60
        while (text not in drawn or b"eval/cvar_10" not in drawn) and time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                drawn += os.read(ours, 65536)
        os.write(ours, b"q")
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:  # it waits until all is read
                os.read(ours, 65536)
        process.kill()
    os.close(ours)
    os.close(theirs)
    assert text in drawn
    assert b"eval/cvar_10" in drawn
    assert process.returncode == 0


def _check_wandb(folder):
    """Reads the offline run back from its log: configuration, every row, every figure."""
    _, config, history, exit_code = read_wandb(folder)
    assert (config["sampler"], config["task"], config["seed"]) == ("importance_delta", "sin2d", 0)
    assert config["sampler_config"]["uniform_fraction"] == 0.1
    metrics = read_metrics(folder / "metrics.csv")
    for name in ("train/loss", "eval/loss", "queue/mean"):
        logged = [(row["step"], row[name]) for row in history if name in row]
        known = np.isfinite(metrics[name])
        np.testing.assert_allclose(logged, np.stack([metrics["step"], metrics[name]], axis=1)[known], rtol=1e-6)
    drawn = {key.split("/")[1] for row in history for key in row if key.startswith("figures/")}
    assert drawn == {path.stem for path in (folder / "figures").iterdir()}
    assert exit_code == 0


def test_a_run_is_judged_on_wider_and_on_cleaner_tasks_than_it_is_trained_on(train, tmp_path):
    axis = "_target_: twmaml.space.axis"
    overrides = [
        *("~task.amplitude", "~task.phase"),  # else Hydra merges what stands there
        f"+task.amplitude={{{axis}.Segments, intervals: [[0.1, 1.05, 9], [4.95, 5.0, 2]]}}",
        f"+task.phase={{{axis}.Nuisance, low: 0.0, high: 180.0, unit: deg}}",
        f"task.noise={{{axis}.Interval, low: 0.0, high: 1.0, cells: 2}}",
        f"+evaluation.splits.eval.task.amplitude={{{axis}.Interval, low: 0.1, high: 5.0, cells: 49}}",
        "+evaluation.splits.eval.task.noise=0.0",
        *("+evaluation.splits.known.draws=1", "evaluation.inside_cells=true", "evaluation.draws=3"),
        *("steps=4", "log_every=2", "evaluation.every=4", "evaluation.steps=2", "model.widths=[8]"),
    ]
    output = succeed(train(*overrides, "hydra.run.dir=run", small=False))
    assert "could not be drawn" not in output.stdout + output.stderr
    wide, known = (
        evaluation_file.read(evaluation_file.path_of(tmp_path / "run", 4, split)) for split in ("eval", "known")
    )
    assert wide.grid.names == ("amplitude",)
    np.testing.assert_array_equal(wide.grid.locate(jnp.asarray(wide.tasks)), np.repeat(np.arange(49), 3))
    assert len(np.unique(wide.tasks)) == 3 * 49
    assert wide.visits is wide.queue_losses is None  # the queue has no cells for them
    assert known.grid.names == ("amplitude", "noise")
    assert known.visits is not None
    assert known.visits.shape == (22,)
    protocols = json.loads((tmp_path / "run" / "summary.json").read_text())["protocols"]
    assert [protocols[split].rpartition(", ")[2] for split in ("eval", "known")] == [
        "147 tasks inside their cells",
        "22 tasks inside their cells",
    ]


def test_the_same_seed_gives_the_same_file_and_another_seed_another_one(train, tmp_path):
    for name, overrides in {"a": ["seed=3"], "b": ["seed=3"], "c": ["seed=4"]}.items():
        succeed(train("sampler=importance", f"hydra.run.dir={name}", *overrides))
    a, b, c = ((tmp_path / name / "metrics.csv").read_bytes() for name in "abc")
    assert a == b
    first, other = read_metrics(tmp_path / "a/metrics.csv"), read_metrics(tmp_path / "c/metrics.csv")
    assert first["eval/loss_step_0"][0] != other["eval/loss_step_0"][0]  # another network before the first step
    assert c != a


def test_a_list_of_seeds_is_one_folder_each_and_equals_single_runs(train, tmp_path):
    succeed(train("seed=[0,5]", "hydra.run.dir=both"))
    succeed(train("seed=5", "hydra.run.dir=alone"))
    together, alone = (read_metrics(tmp_path / path / "metrics.csv") for path in ("both/seed_5", "alone"))
    assert set(together) == set(alone)
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-3, atol=1e-5, err_msg=name)
    names = {p.name for p in (tmp_path / "alone").iterdir()} - {".hydra", "train.log"}
    assert {p.name for p in (tmp_path / "both/seed_0").iterdir()} == names


def test_logging_does_not_change_the_training(train, tmp_path):
    succeed(train("hydra.run.dir=often", "log_every=7"))
    succeed(train("hydra.run.dir=seldom", "log_every=60", "figures_every=30"))
    often, seldom = (read_metrics(tmp_path / name / "metrics.csv") for name in ("often", "seldom"))
    assert often["eval/loss"][-1] == seldom["eval/loss"][-1]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sampler=nope", "twmaml: sampler=nope: must be one of bandit, cross_entropy, "),
        ("steps=-1", "twmaml: steps=-1: must be greater than or equal to 1\n"),
        ("hydra.run.dir=a_file/x", "twmaml: cannot write to a_file/x: Not a directory\n"),
        ("model._target_=no.such.Network", "twmaml: model._target_=no.such.Network: there is nothing of that name"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1_in_six_seconds(override, line, train, tmp_path):
    (tmp_path / "a_file").touch()
    began = time.perf_counter()
    process = train(override, small=False)
    assert process.returncode == 1
    assert process.stderr.startswith(line)
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    assert time.perf_counter() - began < 6


def test_a_folder_that_holds_another_run_is_not_written_to(train, tmp_path):
    succeed(train("hydra.run.dir=x"))
    before = contents(tmp_path / "x")
    process = train("hydra.run.dir=x", "shots=7", "optimizer.learning_rate=0.1")
    assert process.returncode == 1
    differing = "optimizer.learning_rate (0.001 there, 0.1 here), shots (10 there, 7 here);"
    assert f"already holds a run of another configuration: {differing}" in process.stderr
    assert process.stderr.count("\n") == 1
    assert contents(tmp_path / "x") == before


def test_a_loss_that_explodes_names_the_step_and_the_cause_and_keeps_everything(train, tmp_path):
    process = train("optimizer.learning_rate=1e20", "hydra.run.dir=x", "log_every=1", wandb="offline")
    assert process.returncode == 1
    match = re.search(r"not finite at meta-step (\d+): .*lower optimizer.learning_rate", process.stderr)
    assert match
    assert process.stderr.count("\n") == 1
    failure = int(match.group(1))
    metrics = read_metrics(tmp_path / "x/metrics.csv")
    np.testing.assert_array_equal(metrics["step"], np.arange(failure + 1))
    assert np.isfinite(metrics["train/loss"][1:]).all()
    np.testing.assert_array_equal(metrics["train/tasks_trained"], 4 * np.arange(failure + 1))
    summary = json.loads((tmp_path / "x/summary.json").read_text())
    assert summary["status"].startswith("failed: ")
    assert summary["step"] == failure
    with np.load(tmp_path / f"x/evaluation/{failure}.npz") as saved:
        assert not np.isfinite(saved["losses"]).all()
    assert summary["eval/diverged"] > 0
    assert len(list((tmp_path / "x/figures").iterdir())) == 5


def test_a_network_that_the_last_update_breaks_is_a_failure_too(train, tmp_path):
    process = train("steps=1", "optimizer.learning_rate=1e38", "hydra.run.dir=x")
    assert process.returncode == 1
    assert "not finite at meta-step 1: the meta-update made the network explode" in process.stderr
    assert json.loads((tmp_path / "x/summary.json").read_text())["status"].startswith("failed: ")


def test_a_folder_may_have_any_name(train, tmp_path):
    output = succeed(train("steps=20", 'hydra.run.dir="x[/b] ü"')).stdout
    assert "x[/b] ü/figures/" in output


def test_ctrl_c_leaves_everything_usable(start, tmp_path):
    process = start("steps=100000000", "hydra.run.dir=x")
    wait_for_rows(process, tmp_path / "x")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "interrupted after" in output
    assert output.endswith("  go on with python -m twmaml.train resume=x\n")
    read = read_metrics(tmp_path / "x/metrics.csv")
    assert np.isfinite(read["eval/loss"][-1])
    assert json.loads((tmp_path / "x/summary.json").read_text())["status"] == "interrupted"
    assert len(list((tmp_path / "x/figures").iterdir())) == 5


def test_help_teaches_without_starting_anything(train, tmp_path):
    output = succeed(train("--help", small=False)).stdout
    assert "sampler=importance_delta task=sin3d" in output
    assert list(tmp_path.iterdir()) == []


def test_a_built_wheel_works_from_any_directory(tmp_path, environment):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, env=environment, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*install, str(wheel)], check=True, env=environment, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import sys, twmaml.train; assert sys.argv.pop() in twmaml.train.__file__; twmaml.train.main()"
    command = [sys.executable, "-c", code, "wandb.mode=disabled", *SMALL, str(tmp_path / "site")]
    environment = {**environment, "PYTHONPATH": str(tmp_path / "site")}
    succeed(subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False))
    assert list(elsewhere.glob("outputs/*/*/summary.json"))


def test_devices_that_share_the_tasks_change_nothing(train, tmp_path):
    succeed(train("hydra.run.dir=one"))
    succeed(train("hydra.run.dir=two", "devices.tasks=2"))
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_ctrl_c_while_it_starts_ends_at_once_without_a_traceback(train, tmp_path):
    (tmp_path / "hydra.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")  # as if it took long
    process = train()
    assert process.returncode == -signal.SIGINT
    assert process.stderr == process.stdout == ""
