import importlib
import math
import os
import time
from urllib.parse import urlparse

import numpy as np
import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st

import twmaml.storage.wandb_run
from twmaml.errors import ExpectedError
from twmaml.storage.files import write_json
from twmaml.storage.metrics_file import MetricsFile, format_number, read_metrics
from twmaml.storage.wandb_run import WandbRun, resolve_wandb_mode


@given(st.floats(width=32, allow_nan=False))
def test_a_float32_survives_the_file_to_the_bit(value):
    assert np.float32(format_number(value)) == np.float32(value)


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_count_survives_the_file_exactly(count):
    assert format_number(float(count)) == str(count)


def test_metrics_are_read_back_as_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", ["train/loss", "eval/loss"])
    file.write(0, {"eval/loss": 2.5})
    file.write(10, {"train/loss": 1.5, "eval/loss": math.nan})
    read = read_metrics(tmp_path / "metrics.csv")  # before it is closed: every row is on disk at once
    np.testing.assert_array_equal(read["step"], [0, 10])
    np.testing.assert_array_equal(read["train/loss"], [np.nan, 1.5])
    np.testing.assert_array_equal(read["eval/loss"], [2.5, np.nan])
    with pytest.raises(KeyError, match="unheard"):
        file.write(20, {"unheard": 1.0})
    file.close()
    with pytest.raises(FileExistsError):
        MetricsFile(tmp_path / "metrics.csv", [])


def test_a_file_of_other_columns_says_which_it_lacks(tmp_path):
    path = tmp_path / "metrics.csv"
    before = MetricsFile(path, ["a"])
    before.write(0, {"a": 1.0})
    before.close()
    with pytest.raises(ExpectedError, match=r"metrics.csv has no column b, so another version or configuration"):
        MetricsFile(path, ["a", "b"], before.mark)
    path.write_text("something else\n")
    with pytest.raises(ExpectedError, match="is not the file that the checkpoint is of"):
        MetricsFile(path, ["a"], before.mark)


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"x": math.nan, "y": 1.5, "z": "text"})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": null,\n  "y": 1.5,\n  "z": "text"\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.fixture
def clean_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


def test_auto_is_online_only_with_a_key(clean_environment, monkeypatch):
    assert resolve_wandb_mode("auto") == "offline"
    host = urlparse(importlib.import_module("wandb").Settings().base_url).hostname  # where W&B itself looks
    (clean_environment / "netrc").write_text(f"machine {host} login user password {'a' * 40}\n")
    assert resolve_wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert resolve_wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert resolve_wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_wandb_mode("auto") == "disabled"
    assert resolve_wandb_mode("offline") == "offline"


def test_a_failure_of_wandb_costs_only_its_own_data(tmp_path, clean_environment, caplog):
    run = WandbRun(tmp_path, mode="disabled", project="p", group=None, name="n", tags=[], config={})

    class Broken:
        summary: dict[str, float]

        def log(self, row, **where):
            raise ConnectionError("the server is gone\nand this is more")

    run._run = Broken()
    run.log(1, {"a": 1.0})
    run.log(2, {"a": 1.0})
    run.finish({"a": 1.0}, exit_code=0)
    run._run = Broken()
    run.finish({"a": 1.0}, exit_code=0)  # has no summary
    messages = [r.getMessage() for r in caplog.records]
    assert messages[0] == "W&B failed (the server is gone); the run goes on without it"
    assert len(messages) == 2
    assert "summary" in messages[1]


def test_a_server_out_of_reach_makes_the_run_an_offline_one(tmp_path, clean_environment, monkeypatch, caplog):
    monkeypatch.setattr(twmaml.storage.wandb_run, "INIT_TIMEOUT", 2.0)
    monkeypatch.setattr(WandbRun, "out_of_reach", False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    run = WandbRun(tmp_path, mode="auto", project="p", group=None, name="n", tags=[], config={"seed": 0})
    assert run.mode == "offline"
    run.log(1, {"a": 1.0})
    run.finish({"a": 1.0}, exit_code=0)
    (saved,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 30
    while saved.stat().st_size <= 500 and time.monotonic() < until:
        time.sleep(0.1)  # W&B's own process may still be writing
    assert saved.stat().st_size > 500
    assert "could not be reached" in caplog.text
    modes, start = [], wandb.init
    monkeypatch.setattr("wandb.init", lambda **arguments: (modes.append(arguments["mode"]), start(**arguments))[1])
    second = WandbRun(tmp_path / "second", mode="auto", project="p", group=None, name="n", tags=[], config={})
    assert modes == ["offline"]  # the next run of the process does not so much as try the server again
    assert second.mode == "offline"
    second.finish({}, exit_code=0)
    assert caplog.text.count("could not be reached") == 1


def test_a_wandb_that_cannot_start_at_all_does_not_cost_the_run(tmp_path, clean_environment, monkeypatch, caplog):
    def refuse(**_):
        raise RuntimeError("no service")

    monkeypatch.setattr("wandb.init", refuse)
    monkeypatch.setattr(WandbRun, "out_of_reach", False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    run = WandbRun(tmp_path, mode="auto", project="p", group=None, name="n", tags=[], config={})
    assert run.mode == "disabled"
    run.log(1, {"a": 1.0})
    run.log_figures(1, [])
    run.finish({"a": 1.0}, exit_code=0)
    assert ["could not be reached" in r.getMessage() for r in caplog.records] == [True, False]
