"""Runs and sweeps that go on, by the command line: in the end they are as if nothing had interrupted them."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.conftest import SMALL, contents, succeed, wait_for_rows
from tests.storage.test_checkpoint import as_of_layout_1
from tests.wandb_server import WandbServer, assert_arrived
from twmaml.configuration.config_files import configuration_folder
from twmaml.storage.checkpoint import newest, remove_after, steps_in
from twmaml.storage.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]


def assert_equal_runs(first, second):
    """To the bit: every row, every evaluation, and all that the last checkpoint holds."""
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()
    assert contents(first / "evaluation") == contents(second / "evaluation")
    one, other = newest([first]) + newest([second])
    assert one is not None
    assert other is not None
    assert one.arrays.keys() == other.arrays.keys()
    assert all(one.arrays[name].tobytes() == other.arrays[name].tobytes() for name in one.arrays)
    assert one.notes.latest == other.notes.latest


def go_back(folder, step, keep_summary=False):
    """Makes a run what `kill -9` had left after that step: rows behind its last checkpoint, the last one cut."""
    remove_after(folder, step)
    if not keep_summary:
        (folder / "summary.json").unlink()
    with (folder / "metrics.csv").open("a") as file:
        file.write("61,0.5,0.")


def test_a_killed_group_goes_on_to_the_bit(train, tmp_path, environment):
    group = ["seed=[0,1,2]", "sampler=importance_delta", "checkpoint.every=20", "steps=100", "log_every=10"]
    succeed(train("hydra.run.dir=whole", *group, wandb="offline"))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for seed, step in zip("012", (100, 80, 80), strict=True):  # while the checkpoints of step 100 were being written
        go_back(tmp_path / "part" / f"seed_{seed}", step)
    identities = {path.name[-8:] for path in tmp_path.glob("part/seed_*/wandb/offline-run-*")}
    output = succeed(train("resume=part", small=False, wandb="offline"))
    assert "WARNING" not in output.stderr
    for seed in "012":
        whole, part = (tmp_path / name / f"seed_{seed}" for name in ("whole", "part"))
        assert_equal_runs(whole, part)
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, part)]
        assert [summary["status"] for summary in summaries] == ["finished"] * 2
        assert summaries[0]["eval/loss"] == summaries[1]["eval/loss"]
        assert steps_in(part) == [100, 80, 60]
    assert identities == {path.name[-8:] for path in tmp_path.glob("part/seed_*/wandb/offline-run-*")}
    assert len(list(tmp_path.glob("part/seed_*/wandb/offline-run-*"))) == 6  # W&B joins what has the same identity
    (command,) = re.findall("wandb sync .*", output.stdout)
    with WandbServer() as server:
        variables = {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"} | server.variables
        succeed(subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment | variables, check=False))
    assert server.runs.keys() == identities
    for run in server.runs.values():
        assert_arrived(run, tmp_path / f"part/seed_{run.config['seed']}")
    assert "go on from meta-step 80" in (tmp_path / "part/train.log").read_text()


def empty(run):
    """Leaves nothing in the files of the arrays of all checkpoints of a run."""
    for path in run.glob("checkpoints/*/arrays/d/*"):
        path.write_bytes(b"")


def assert_only_twmaml_complains(lines, *runs):
    """A line for a damaged checkpoint, and none of the threads that would have read it."""
    damaged = rf"WARNING: the checkpoint ({'|'.join(map(str, runs))})/checkpoints/\d+ is damaged \(arrays/.*"
    assert lines
    assert all(re.fullmatch(damaged, line) for line in lines), lines


def test_a_run_whose_checkpoints_are_all_damaged_ends_in_one_line(train, tmp_path):
    succeed(train("hydra.run.dir=run", "checkpoint.every=20"))
    go_back(tmp_path / "run", 40)
    empty(tmp_path / "run")
    process = train("resume=run", small=False)
    assert process.returncode == 1
    *warnings, line = process.stderr.splitlines()
    assert_only_twmaml_complains(warnings, tmp_path / "run")
    whole = f"twmaml: {tmp_path}/run already holds a run, and none of its checkpoints is whole; choose another folder"
    assert line == whole


def test_a_run_of_an_older_layout_is_refused_in_one_line_and_left_as_it_was(train, tmp_path):
    succeed(train("hydra.run.dir=run", "checkpoint.every=20"))
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    go_back(tmp_path / "killed", 40)
    for path in tmp_path.glob("*/checkpoints/[0-9]*"):
        as_of_layout_1(path)
    before = contents(tmp_path)
    for name, step in (("run", 60), ("killed", 40)):
        process = train(f"resume={name}", "steps=100", small=False)
        assert process.returncode == 1
        reason = f"the checkpoint {name}/checkpoints/{step} has layout 1; this version of twmaml reads 2"
        assert process.stderr == f"twmaml: {reason}\n"
        assert contents(tmp_path) == before


@pytest.mark.parametrize("damaged", [[1], [0, 1]])
def test_a_seed_whose_checkpoints_are_all_damaged_fails_and_no_other(damaged, train, tmp_path):
    succeed(train("hydra.run.dir=run", "seed=[0,1]", "checkpoint.every=20"))
    for seed in (0, 1):
        go_back(tmp_path / f"run/seed_{seed}", 40)
    for seed in damaged:
        empty(tmp_path / f"run/seed_{seed}")
    process = train("resume=run", small=False)
    assert process.returncode == 1
    *warnings, line = process.stderr.splitlines()
    assert_only_twmaml_complains(warnings, *(tmp_path / f"run/seed_{seed}" for seed in damaged))
    assert line.startswith("twmaml: ")
    for seed in (0, 1):
        reason = f"{tmp_path}/run/seed_{seed} already holds a run, and none of its checkpoints is whole"
        assert (reason in line) == (seed in damaged)
        assert (tmp_path / f"run/seed_{seed}/summary.json").exists() == (seed not in damaged)


def test_a_finished_run_may_be_longer_and_is_otherwise_left_alone(train, tmp_path):
    succeed(train("hydra.run.dir=run", "checkpoint.every=20", "steps=50"))
    before = contents(tmp_path / "run")
    for again in (["resume=run"], ["hydra.run.dir=run", "checkpoint.every=20", "steps=50"]):
        assert (
            succeed(train(*again, small="resume=run" not in again)).stdout == "twmaml: run is finished: 50 meta-steps\n"
        )
    for change, line in {
        "shots=7": "run already holds a run of another configuration: shots (10 there, 7 here); only steps",
        "steps=40": "steps=40: the run in run is at meta-step 50 already",
        "shotss=3": "shotss: there is no such key; did you mean shots?",
    }.items():
        refused = train("resume=run", change, small=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"twmaml: {line}")
        assert refused.stderr.count("\n") == 1
    assert contents(tmp_path / "run") == before
    # The row of step 50 is only there because the run ended; so it goes on from 40, and a longer one has no such row.
    succeed(train("resume=run", "steps=120", "checkpoint.keep=1", small=False))
    succeed(train("hydra.run.dir=longer", "steps=120"))
    assert_equal_runs(tmp_path / "longer", tmp_path / "run")
    assert steps_in(tmp_path / "run") == [120]


def test_a_change_that_is_refused_leaves_the_run_as_it_was(train, tmp_path):
    succeed(train("hydra.run.dir=run", "checkpoint.every=20"))
    go_back(tmp_path / "run", 40)
    shutil.copytree(tmp_path / "run", tmp_path / "list/seed_0")
    before = contents(tmp_path)
    own = ["hydra.run.dir=list", "checkpoint.every=20"]
    for arguments, line in {
        ("resume=run", "wandb.mode=onlin"): "wandb.mode=onlin: must be",
        ("resume=run", "steps=abc"): "steps=abc: must be",
        ("resume=run", "~steps"): "steps: is missing",
        ("resume=run", "seed=[0,1]"): "seed=[0, 1]: run already holds a run of another seed",
        (*own, "seed=0"): "seed=0: list/seed_0 already holds a run of another seed",
        (*own, "seed=[1,2]"): "seed=[1, 2]: list/seed_0 already holds a run of another seed",
    }.items():
        refused = train(*arguments, small="resume=run" not in arguments)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"twmaml: {line}")
        assert refused.stderr.count("\n") == 1
        assert contents(tmp_path) == before
    succeed(train("resume=run", small=False))


@pytest.mark.parametrize("overrides", [[], ["evaluation.every=1000", "figures_every=60"]])
def test_how_a_shorter_run_ended_leaves_no_trace_in_the_longer_one(overrides, train, tmp_path):
    succeed(train("hydra.run.dir=run", *overrides))  # evaluates every 40 meta-steps, and after 60, which is a row
    assert np.isfinite(read_metrics(tmp_path / "run/metrics.csv")["eval/loss"][-1])
    succeed(train("resume=run", "steps=100", small=False))
    succeed(train("hydra.run.dir=longer", "steps=100", *overrides))
    assert_equal_runs(tmp_path / "longer", tmp_path / "run")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, environment):
    """Of four jobs, whole; and what it would be if it had been killed."""
    folder = tmp_path_factory.mktemp("sweep")
    command = [sys.executable, "-m", "twmaml.train", "--multirun", *SMALL, "wandb.mode=disabled", "seed=0,1,2,3"]
    command += ["checkpoint.every=20", "hydra.sweep.dir=whole"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    shutil.copytree(folder / "whole", folder / "killed")
    go_back(folder / "killed" / "1", 40)
    go_back(folder / "killed" / "2", 20)
    shutil.rmtree(folder / "killed" / "3")
    return folder


def test_a_run_whose_checkpoints_are_all_damaged_fails_alone(sweep, train, tmp_path):
    shutil.copytree(sweep / "whole", tmp_path / "whole")
    for number in "012":
        go_back(tmp_path / "whole" / number, 40)
    empty(tmp_path / "whole/1")
    process = train("resume=whole", small=False)
    assert process.returncode == 1
    *warnings, first, reason = process.stderr.splitlines()
    assert_only_twmaml_complains(warnings, tmp_path / "whole/1", "whole/1")
    assert first == "twmaml: 1 of 4 jobs failed; the others are in whole"
    assert "seed=1: " in reason
    assert reason.endswith("whole/1 already holds a run, and none of its checkpoints is whole; choose another folder")
    for number in "023":
        assert json.loads((tmp_path / "whole" / number / "summary.json").read_text())["status"] == "finished"
    assert not (tmp_path / "whole/1/summary.json").exists()


@pytest.mark.parametrize("launcher", ["vectorised", "basic"])
def test_a_sweep_finishes_what_is_missing(launcher, sweep, train, tmp_path):
    for name in ("whole", "killed"):
        shutil.copytree(sweep / name, tmp_path / name)
    before = contents(tmp_path / "killed" / "0")
    if launcher == "vectorised":  # the folder says what the command was
        output = succeed(train("resume=killed", small=False)).stdout
        assert "1 of 4 jobs were finished before" in output
        assert "3/3 jobs" in output
        assert contents(tmp_path / "killed" / "0") == before
    else:
        own = ["seed=0,1,2,3", "checkpoint.every=20", "hydra.sweep.dir=killed", "hydra/launcher=basic"]
        succeed(train("--multirun", *own))
        same = {path: content for path, content in before.items() if path.parts[0] != ".hydra"}
        after = contents(tmp_path / "killed" / "0")
        assert {path: after[path] for path in same if path.name != "train.log"} == {
            path: content for path, content in same.items() if path.name != "train.log"
        }
    for number in "0123":  # in other groups than before, so the same up to rounding only
        whole, killed = (tmp_path / name / number for name in ("whole", "killed"))
        assert json.loads((killed / "summary.json").read_text())["status"] == "finished"
        first, second = (read_metrics(folder / "metrics.csv") for folder in (whole, killed))
        for name, values in first.items():
            np.testing.assert_allclose(second[name], values, rtol=1e-4, atol=1e-6, err_msg=f"{number} {name}")


def test_jobs_that_refer_to_their_own_values_do_so_when_the_sweep_goes_on(train, tmp_path):
    values = ["optimizer.learning_rate=0.002,0.01", "adaptation.learning_rate=${optimizer.learning_rate}"]
    named = "hydra.sweep.subdir=rate_${optimizer.learning_rate}"
    succeed(train("--multirun", *values, named, "steps=20", "hydra.sweep.dir=sweep"))
    succeed(train("resume=sweep", "steps=40", small=False))
    for rate in (0.002, 0.01):
        folder = tmp_path / "sweep" / f"rate_{rate}"
        assert json.loads((folder / "summary.json").read_text())["step"] == 40
        assert OmegaConf.load(folder / ".hydra" / "config.yaml").adaptation.learning_rate == rate


def test_the_last_line_after_a_signal_goes_on_with_the_run(train, start, tmp_path):
    rare = ["evaluation.every=1000000", "checkpoint.every=100000"]
    process = start("steps=1000000", *rare, "hydra.run.dir='a folder'")
    folder = tmp_path / "a folder"
    wait_for_rows(process, folder)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 143
    (stopped,) = map(int, re.findall(r"interrupted after ([\d,]+) of", output.replace(",", "")))
    assert steps_in(folder)[0] == stopped
    assert np.isfinite(read_metrics(folder / "metrics.csv")["eval/loss"][-1])  # which the longer run does not have
    last = re.fullmatch(r"  go on with python -m twmaml.train (.*)", output.splitlines()[-1])
    assert last
    steps = f"steps={stopped + 30}"
    succeed(train(*shlex.split(last.group(1)), steps, small=False))
    succeed(train("evaluation.every=1000000", steps, "hydra.run.dir=whole"))
    assert_equal_runs(tmp_path / "whole", folder)


def test_resume_is_the_command_again_so_a_changed_yaml_is_refused_and_without_a_change_nothing_is_rewritten(
    train, tmp_path, environment
):
    (tmp_path / "own/sampler").mkdir(parents=True)
    mine = (Path(configuration_folder()) / "sampler/weighted.yaml").read_text()
    (tmp_path / "own/sampler/mine.yaml").write_text(mine)
    succeed(train("--config-dir=own", "sampler=mine", "checkpoint.every=20", "hydra.run.dir=run"))
    go_back(tmp_path / "run", 40)
    before = contents(tmp_path / "run")
    resume: Any = {"args": [sys.executable, "-m", "twmaml.train", "resume=run"], "cwd": tmp_path, "env": environment}
    (tmp_path / "own/sampler/mine.yaml").write_text(mine.replace("losses", "deltas"))
    refused = subprocess.run(**resume, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    differing = "sampler.signal (losses there, deltas here); only"
    assert refused.stderr.startswith(f"twmaml: run already holds a run of another configuration: {differing}")
    assert contents(tmp_path / "run") == before
    (tmp_path / "own/sampler/mine.yaml").write_text(mine)
    subprocess.run(**resume, check=True)
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"
    assert contents(tmp_path / "run/.hydra") == {
        path.relative_to(".hydra"): content for path, content in before.items() if path.parts[0] == ".hydra"
    }


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("nothing.txt", "", "resume=x: holds neither a run (.hydra/config.yaml) nor a sweep (multirun.yaml)"),
        (".hydra/config.yaml", "a: [", "x/.hydra/hydra.yaml"),
        ("multirun.yaml", "!!python/object/apply:os.system ['touch exploded']", "x/multirun.yaml is no configuration"),
        ("metrics.csv", "step\n0\n", "resume=x: holds neither"),
    ],
)
def test_a_folder_that_cannot_go_on_is_refused_in_one_line(name, content, line, train, tmp_path):
    (tmp_path / "x" / name).parent.mkdir(parents=True)
    (tmp_path / "x" / name).write_text(content)
    before = contents(tmp_path)
    process = train("resume=x", small=False)
    assert process.returncode == 1
    assert line in process.stderr
    assert process.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_killed_again_and_again_it_is_the_same_run_to_the_bit(environment):
    command = [sys.executable, "scripts/torture.py", "--kills", "2", "--terms", "1", "--steps", "4000"]
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stdout + output.stderr
    assert output.stdout.splitlines()[-1].endswith("the same as undisturbed, to the bit")


@pytest.mark.slow
def test_killed_thirty_times_it_is_the_same_run_to_the_bit(environment):
    output = subprocess.run([sys.executable, "scripts/torture.py"], cwd=ROOT, env=environment, check=False)
    assert output.returncode == 0
