"""Commands that a run or a sweep ends with: a shell takes them for what they mean, whatever the folder is called."""

import math
import shlex
import subprocess
from pathlib import Path

import pytest

from twmaml.jobs.report import resume_command, upload_command, view_command
from twmaml.jobs.terminal import Terminal


@pytest.mark.parametrize("name", ["run", "it's a run", "$HOME; x", "lr=0.1,seed=(0)"])
def test_a_folder_may_have_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        (tmp_path / f"{name}/seed_{seed}/wandb/offline-run-{seed}").mkdir(parents=True)
    assert shlex.split(resume_command(Path(name).absolute()))[-1] == f"resume={name}"
    assert shlex.split(view_command(Path(name).absolute())) == ["wandb", "leet", f"{name}/wandb"]
    for folders in (f"{name}/seed_*", f"{tmp_path}/{name}/seed_*"):
        words = upload_command(folders).replace("wandb sync", "printf '%s\\n'")
        told = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=True).stdout
        expected = [f"{folders[:-1]}{seed}/wandb/offline-run-{seed}" for seed in range(2)]
        assert told.splitlines() == expected


def test_a_table_of_tasks_that_have_all_diverged_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    Terminal(1, "loss").finish({"evaluation": [(1, {"mean": math.nan, "worst": math.inf, "diverged": 2.0})]}, {})
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("nan", "inf", " 2 "))
