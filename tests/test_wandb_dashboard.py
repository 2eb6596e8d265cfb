"""The command line that writes W&B's workspace: what it would send, and what a server on this machine receives."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ACCURACY, GRID, succeed, write_run
from tests.wandb_server import WandbServer
from twmaml.figures.run import FIGURES
from twmaml.statistics import LOGGED, column_of
from twmaml.storage.metrics_file import read_metrics

SCRIPT = Path(__file__).parent.parent / "scripts" / "wandb_dashboard.py"
GROUP = "it's lr=0.1 <\\é>"  # all that wandb-workspaces would change


class Server(WandbServer):
    """Keeps the views that it is sent."""

    def __init__(self):
        super().__init__()
        self.views = []

    def graphql(self, query, variables):
        if "upsertView" in query:
            self.views.append(variables)
            view = {"id": "VmlldzoxMjM=", "name": variables["name"]}
            return {"upsertView": {"view": view, "inserted": True}}
        return {"viewer": {"id": "VXNlcjox", "username": "someone", "entity": "someone", "flags": "{}"}}


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.fixture
def command(tmp_path, environment):
    def run(*arguments, server=None, **variables):
        # Without a server nobody may be asked: there is no key, and nobody listens at the discard port.
        nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false"}
        wandb = {**server.variables, "WANDB_APP_URL": f"{server.url}/wandb"} if server else nobody
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments],
            cwd=tmp_path,
            env={**environment, **wandb, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def _read(process):
    assert succeed(process).stderr == ""
    return json.loads(process.stdout)


def _panels(spec):
    """Section by section."""
    sections = spec["section"]["panelBankConfig"]["sections"]
    return {s["name"]: [(panel["viewType"], panel["config"]) for panel in s["panels"]] for s in sections}


def _without_ids(spec):
    for section in spec["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            assert panel.pop("__id__")
    return spec


def test_everything_shown_is_what_a_run_writes(command, train, tmp_path):
    with_own_metrics, with_own_figures = "sampler=epsilon_greedy,risk_prediction", "adaptation=meta_sgd,cavia"
    succeed(train("--multirun", with_own_metrics, with_own_figures, "hydra.sweep.dir=x"))
    runs = [read_metrics(tmp_path / "x" / number / "metrics.csv") for number in "0123"]
    written = {name for metrics in runs for name, values in metrics.items() if np.isfinite(values).any()}
    panels = [panel for section in _panels(_read(command("--dry-run"))["spec"]).values() for panel in section]
    shown = {name for _, config in panels for name in config.get("metrics", [])}
    assert {"eval/loss", "queue/entropy", "sampler/epsilon", "weights/max"} < shown
    assert shown <= written
    figures = [key for _, config in panels for key in config.get("mediaKeys", [])]
    assert len(figures) == len({*figures})
    assert {*figures} == {f"figures/{path.stem}" for path in (tmp_path / "x").glob("*/figures/*")}


def test_a_dry_run_shows_curves_bars_and_figures_by_sampler(command):
    view = _read(command("--dry-run", "--group", GROUP))
    assert (view["entity"], view["project"], view["displayName"]) == ("", "twmaml", "Samplers it's lr 0.1  \\é ")
    panels = _panels(view["spec"])
    assert list(panels) == ["Evaluation", "Training and queue", "At the end", "Figures", "Sampler health"]
    curves = panels["Evaluation"] + panels["Training and queue"] + panels["Sampler health"]
    assert {kind for kind, _ in curves} == {"Run History Line Plot"}
    assert {config["xAxis"] for _, config in curves} == {"step"}
    assert {kind for kind, _ in panels["At the end"]} == {"Bar Chart"}
    assert {kind for kind, _ in panels["Figures"]} == {"Media Browser"}
    evaluated = [f"eval/{name}" for name in (*(column_of(statistic) for statistic in LOGGED), "diverged")]
    for section in ("Evaluation", "At the end"):
        assert [config["metrics"] for _, config in panels[section]] == [[name] for name in evaluated]
    figures = [config["mediaKeys"] for _, config in panels["Figures"]]
    assert figures == [[f"figures/{name}"] for name in FIGURES]
    for _, config in curves + panels["At the end"]:
        # With `.value` at its end it is a key of the runs' configuration, as W&B keeps that; otherwise one of the run.
        assert (config["groupBy"], config["groupAgg"], config["groupArea"]) == ("sampler.value", "mean", "minmax")
        assert config["aggregate"]
    (runs,) = view["spec"]["section"]["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "sampler.value"}]
    (condition,) = runs["filters"]["filters"]
    assert condition["key"] == {"section": "run", "name": "group"}
    assert (condition["op"], condition["value"]) == ("=", GROUP)


def test_the_metrics_of_a_family_lead_and_say_which_way_is_better(command, tmp_path):
    losses = np.ones((2, GRID.size, 6))
    write_run(tmp_path / "run", losses, further=[(ACCURACY, 100 * losses)])
    panels = _panels(_read(command("--dry-run", "--run", tmp_path / "run"))["spec"])
    for section in ("Evaluation", "At the end"):
        shown = {config["metrics"][0]: config["chartTitle"] for _, config in panels[section]}
        assert [name.startswith("eval/accuracy") for name in shown] == [True] * len(LOGGED) + [False] * (
            len(LOGGED) + 1
        )
        up = {name for name, title in shown.items() if "higher is better" in title}
        assert up == {name for name in shown if name.startswith("eval/accuracy") and not name.endswith("_std")}
        assert set(shown) <= set(read_metrics(tmp_path / "run" / "metrics.csv"))


def test_a_folder_without_a_run_is_one_line(command, tmp_path):
    process = command("--dry-run", "--run", tmp_path)
    assert process.returncode == 1
    assert str(tmp_path) in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("named", [False, True])
def test_what_is_sent_is_what_a_dry_run_prints(named, command, server):
    chosen = ["--entity", "team", "--project", "p", "--group", "g", "--name", "Title"] if named else []
    process = succeed(command(*chosen, server=server))
    (sent,) = server.views
    owner, project, title = ("team", "p", "Title") if named else ("someone", "twmaml", "Samplers")
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == (owner, project, title)
    assert sent["type"] == "project-view"
    assert "id" not in sent  # a new one
    printed = _read(command("--dry-run", *chosen))
    assert (printed["entity"], printed["project"], printed["displayName"]) == (owner if named else "", project, title)
    spec = json.loads(sent["spec"])
    assert "minmax" in sent["spec"]
    assert len(spec["section"]["runSets"][0]["filters"]["filters"]) == named
    assert _without_ids(spec) == _without_ids(printed["spec"])
    identity = sent["name"].removeprefix("nw-").removesuffix("-v")
    assert process.stdout == f"{server.url}/wandb/{owner}/{project}?nw={identity}\n"
    assert process.stderr == ""


def test_what_a_server_refuses_is_one_line(command, server):
    server.refuses = "upsertView"
    process = command(server=server)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith("twmaml: W&B: returned error 403")
    assert process.stderr.count("\n") == 1
    assert len(server.views) == 1


def test_a_server_out_of_reach_is_one_line(command):
    process = command(WANDB_API_KEY="a" * 40, WANDB_HTTP_TIMEOUT="1")
    assert process.returncode == 1
    assert process.stderr.startswith("twmaml: W&B: Failed to verify credentials with http://127.0.0.1:9: ")
    assert process.stderr.count("\n") == 1


def test_a_package_that_is_missing_is_named(command, tmp_path):
    hidden = "raise ModuleNotFoundError(\"No module named 'wandb_workspaces'\")"
    (tmp_path / "wandb_workspaces.py").write_text(hidden)
    process = command("--dry-run", PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    assert process.stderr == "twmaml: No module named 'wandb_workspaces'; pip install -e \".[dashboard]\"\n"


def test_without_login_nobody_is_asked_for_a_key_even_in_a_terminal(tmp_path, environment):
    variables = {**environment, "WANDB_BASE_URL": "http://127.0.0.1:9", "TERM": "xterm"}
    ours, theirs = pty.openpty()
    process = subprocess.run(
        [sys.executable, SCRIPT],
        cwd=tmp_path,
        env=variables,
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 1
    assert process.stdout == b""
    assert shown == "twmaml: W&B: No API key configured. Use `wandb login` to log in.\r\n"
