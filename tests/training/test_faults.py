"""What goes wrong outside of the program, really caused: it ends in one line, and what was written before is of use."""

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import twmaml
from tests.conftest import succeed, wait_for_rows
from tests.jobs.test_resume import assert_equal_runs, go_back
from tests.wandb_server import WandbServer
from twmaml.errors import ConfigurationError, ExpectedError
from twmaml.storage.checkpoint import newest, steps_in
from twmaml.storage.metrics_file import Mark, MetricsFile, read_metrics
from twmaml.storage.run_folder import RunFolder

# No file may be larger than 16 KiB, so that metrics.csv cannot grow on.
SMALL_DISK = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash"]


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(train, tmp_path):
    frequent = ["log_every=1", "checkpoint.every=10", "steps=150"]
    process = train("hydra.run.dir=full", *frequent, prefix=SMALL_DISK, variables={"JAX_COMPILATION_CACHE_DIR": ""})
    assert process.returncode == 1
    *before, line = process.stderr.splitlines()
    assert line == f"twmaml: cannot write to {tmp_path}/full/metrics.csv: {os.strerror(errno.EFBIG)}"
    assert all("font_manager" in each for each in before)  # matplotlib's cache, in a new home
    metrics = read_metrics(tmp_path / "full/metrics.csv")
    np.testing.assert_array_equal(metrics["step"], np.arange(metrics["step"].size))
    assert np.isfinite(metrics["train/loss"][1:]).all()
    (checkpoint,) = newest([tmp_path / "full"])
    assert checkpoint is not None
    assert checkpoint.notes.step >= 20
    succeed(train("resume=full", small=False))
    succeed(train("hydra.run.dir=whole", *frequent))
    assert_equal_runs(tmp_path / "whole", tmp_path / "full")


def remove(folder):
    """Removes at once what a process is writing to: `rmtree` would meet files that were not there when it looked."""
    shutil.rmtree(folder.rename(folder.with_name("removed")))


def test_a_second_process_is_refused_and_a_removed_folder_ends_in_one_line(train, start, tmp_path):
    process = start("steps=100000000", "checkpoint.every=100000000", "hydra.run.dir=x")
    wait_for_rows(process, tmp_path / "x")
    for again in (["hydra.run.dir=x", "steps=100000000", "checkpoint.every=100000000"], ["resume=x"]):
        second = train(*again, small=again != ["resume=x"])
        assert second.returncode == 1
        assert second.stderr == "twmaml: another process is writing to x; choose another folder\n"
    assert process.poll() is None
    remove(tmp_path / "x")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert errors.startswith(f"twmaml: cannot write to {tmp_path}/x/evaluation/")
    assert errors.count("\n") == 1


def test_in_a_group_a_run_whose_folder_is_removed_fails_alone(start, tmp_path):
    process = start("--multirun", "steps=12000", "sampler=uniform,delta", "seed=0,1", "hydra.sweep.dir=sweep")
    wait_for_rows(process, tmp_path / "sweep/3")
    remove(tmp_path / "sweep/2/evaluation")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    title, line = errors.splitlines()
    assert title == "twmaml: 1 of 4 jobs failed; the others are in sweep"
    assert line.startswith(f"     2  sampler=delta seed=0: cannot write to {tmp_path}/sweep/2/evaluation/")
    for number in "013":
        assert json.loads((tmp_path / "sweep" / number / "summary.json").read_text())["status"] == "finished"
    assert not (tmp_path / "sweep/2/summary.json").exists()


def test_the_lock_of_a_folder_ends_with_its_process(tmp_path):
    folder = RunFolder(tmp_path, {})
    for enter in (RunFolder, RunFolder.look):
        with pytest.raises(ConfigurationError, match="another process is writing"):
            enter(tmp_path, {})
    folder.close()
    folder.close()
    code = "import sys, time; from pathlib import Path; from twmaml.storage.run_folder import RunFolder;"
    code += "folder = RunFolder(Path(sys.argv[1]), {}); print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(ConfigurationError, match="another process is writing"):
        RunFolder(tmp_path, {})
    other.kill()
    other.communicate()
    RunFolder(tmp_path, {}).close()


def test_metrics_go_on_from_a_mark_whatever_is_behind_it(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, ["a", "b"])
    file.write(0, {"a": 0.1})
    file.write(10, {"a": 0.2})
    whole, mark = path.read_bytes(), file.mark
    file.write(20, {"a": 0.3})
    file.amend({"b": 0.5})
    assert path.read_bytes() == whole + b"20,0.3,0.5\r\n"
    file.close()
    for behind in (b"", b"20,0.3,\r\n", b"20,0.", b"20,0.3,0.5\r\n30,"):
        path.write_bytes(whole + behind)
        MetricsFile(path, ["a", "b"], mark).close()
        assert path.read_bytes() == whole
    path.write_bytes(whole[: mark.size])  # the checkpoint was there before its row
    MetricsFile(path, ["a", "b"], mark).close()
    assert path.read_bytes() == whole
    for other, said in ((["a"], "is not the file that the checkpoint is of"), (["a", "c"], "has no column c, ")):
        with pytest.raises(ExpectedError, match=said):
            MetricsFile(path, other, mark)
    with pytest.raises(ExpectedError, match="is not the file that the checkpoint is of"):
        MetricsFile(path, ["a", "b"], Mark(1000, "10,0.2,\r\n"))
    assert path.read_bytes() == whole


TWO_RUNS = """
import logging, pathlib, time
from twmaml.storage import wandb_run
logging.basicConfig()
wandb_run.FINISH_TIMEOUT = 2.0
settings = dict(mode="online", project="p", group=None, name="n", tags=[], config={})
runs = [wandb_run.WandbRun(pathlib.Path(name), **settings) for name in "ab"]
runs[0].log(1, {"x": 1.0})
print(*[run.mode for run in runs], runs[0].identity, flush=True)
input()
for run in runs:
    run.log(2, {"x": 2.0})
    run.finish({"x": 2.0}, exit_code=0)
"""


def test_a_wandb_that_dies_costs_only_its_own_data(tmp_path, environment):
    with WandbServer() as server:
        process = subprocess.Popen(
            [sys.executable, "-c", TWO_RUNS],
            cwd=tmp_path,
            env={**environment, **server.variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"online online {next(iter(server.runs))}\n"  # as the server calls it
    _, errors = process.communicate("\n", timeout=120)  # W&B itself would wait for ever
    assert process.returncode == 0
    assert errors.count("W&B failed (Timed out finishing run.); the run goes on without it") == 1
    assert all(list((tmp_path / name).glob("wandb/run-*/run-*.wandb")) for name in "ab")  # for `wandb sync`


JUMPING_CLOCK = """
import atexit, datetime, itertools, time
now, jumps, readings = time.time, itertools.cycle([0.0, 7200.0, -86400.0, 3e8, -3600.0]), []
def read():
    readings.append(now() + next(jumps))
    return readings[-1]
time.time = read
time.time_ns = lambda: int(time.time() * 1e9)
class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = Jumping
atexit.register(lambda: open(__file__ + ".readings", "a").write(f"{len(readings)}\\n"))
"""


def test_a_clock_that_jumps_changes_nothing(train, tmp_path, environment, monkeypatch):
    succeed(train("hydra.run.dir=whole", "checkpoint.every=20"))
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(JUMPING_CLOCK)  # which Python imports when it starts
    monkeypatch.setitem(environment, "PYTHONPATH", str(tmp_path / "clock"))
    succeed(train("hydra.run.dir=part", "checkpoint.every=20"))
    for again in (False, True):
        assert_equal_runs(tmp_path / "whole", tmp_path / "part")
        assert steps_in(tmp_path / "part") == [60, 40, 20]
        summary = json.loads((tmp_path / "part/summary.json").read_text())
        assert summary["status"] == "finished"
        assert 0 < summary["wall_seconds"] < 240
        assert summary["meta_steps_per_second"] > 0
        if not again:
            go_back(tmp_path / "part", 40)
            for step, date in ((20, 4e9), (40, 0.0)):  # the older checkpoint is from the future
                for path in (tmp_path / f"part/checkpoints/{step}").rglob("*"):
                    os.utime(path, (date, date))
                os.utime(tmp_path / f"part/checkpoints/{step}", (date, date))
            succeed(train("resume=part", small=False))
    assert "go on from meta-step 40" in (tmp_path / "part/train.log").read_text()
    readings = (tmp_path / "clock/sitecustomize.py.readings").read_text().split()
    assert len(readings) >= 2
    assert max(map(int, readings)) > 10  # it did jump


def test_nothing_depends_on_what_the_clock_says():
    for path in Path(next(iter(twmaml.__path__))).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            read = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert read not in ("time.time", "datetime.now", "datetime.datetime.now", "os.path.getmtime"), path


def test_nothing_is_unpickled():
    for path in Path(next(iter(twmaml.__path__))).rglob("*.py"):
        assert "pickle" not in path.read_text().replace("cloudpickle", ""), path
