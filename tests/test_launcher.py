"""The sweeper and the launcher: by the command line, in parts, and by Hydra's own tests for launchers."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.test_utils.launcher_common_tests import LauncherTestSuite
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from hydra_plugins.twmaml_launcher.composition import Composer
from hydra_plugins.twmaml_launcher.launcher import SweepJob, group_jobs
from hydra_plugins.twmaml_launcher.logs import log_to_folders
from tests.conftest import SMALL, read_wandb, succeed
from twmaml.configuration import configuration_folder, register_resolvers
from twmaml.jobs import program_of
from twmaml.tracking import read_metrics, run_log

SAMPLERS = ["delta", "epsilon_greedy", "importance", "importance_delta", "uniform", "weighted"]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("vectorised", [])])
@pytest.mark.filterwarnings("ignore:.*change working directory")
class TestHydrasOwn(LauncherTestSuite):
    """What Hydra asks of every launcher, of a task function that knows nothing of groups."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, environment):
    """Six samplers with three seeds each: vectorised, and the same one by one."""
    folder = tmp_path_factory.mktemp("sweep")
    for launcher in ("vectorised", "basic"):
        command = [sys.executable, "-m", "twmaml.train", "--multirun", *SMALL, "steps=200", "wandb.mode=offline"]
        command += ["sampler=glob(*)", "seed=0,1,2", f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}"]
        succeed(subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False))
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "wandb/" not in str(path)}


def test_every_job_leaves_what_it_leaves_alone(sweep):
    numbers = {path.name for path in (sweep / "vectorised").iterdir()}
    assert numbers == {path.name for path in (sweep / "basic").iterdir()} == {*map(str, range(18)), "multirun.yaml"}
    for number in range(18):
        together, alone = sweep / "vectorised" / str(number), sweep / "basic" / str(number)
        assert files_of(together) == files_of(alone)
        configuration = OmegaConf.load(together / ".hydra" / "config.yaml")
        assert configuration == OmegaConf.load(alone / ".hydra" / "config.yaml")
        overrides = OmegaConf.to_object(OmegaConf.load(together / ".hydra" / "overrides.yaml"))
        assert {f"sampler={SAMPLERS[number // 3]}", f"seed={number % 3}"} <= set(overrides)
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in (together, alone)]
        assert list(summaries[0]) == list(summaries[1])
        assert (summaries[0]["status"], summaries[0]["seed"]) == ("finished", number % 3)


def test_the_numbers_of_every_job_are_those_of_the_job_alone(sweep):
    for number in range(18):
        together, alone = (read_metrics(sweep / kind / str(number) / "metrics.csv") for kind in ("vectorised", "basic"))
        assert list(together) == list(alone)
        for name, values in alone.items():
            np.testing.assert_allclose(together[name], values, rtol=1e-4, atol=1e-6, err_msg=f"{number} {name}")


def test_every_job_has_a_wandb_run_of_its_own(sweep):
    identities = set()
    for number in range(18):
        folder = sweep / "vectorised" / str(number)
        identity, config, history, exit_code = read_wandb(folder)
        identities.add(identity)
        assert (config["sampler"], config["seed"], exit_code) == (SAMPLERS[number // 3], number % 3, 0)
        metrics = read_metrics(folder / "metrics.csv")
        known = np.isfinite(metrics["train/loss"])
        logged = [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]
        np.testing.assert_allclose(logged, np.stack([metrics["step"], metrics["train/loss"]], 1)[known], rtol=1e-6)
        assert any(key.startswith("figures/queue/") for row in history for key in row)
    assert len(identities) == 18


def test_failed_jobs_are_listed_and_stop_no_other(train, tmp_path):
    process = train(
        "--multirun", "optimizer.learning_rate=0.001,1e20", "seed=0,1", "hydra.sweep.dir=sweep", "evaluation.draws=1,2"
    )
    assert process.returncode == 1
    listed = process.stderr.splitlines()
    assert listed[0] == "twmaml: 4 of 8 jobs failed; the others are in sweep"
    for line, number in zip(listed[1:], [4, 5, 6, 7], strict=True):
        assert line.split()[0] == str(number)
        assert "optimizer.learning_rate=1e+20 seed=" in line
        assert "steps=60" not in line  # which all jobs have in common
        assert "is not finite at meta-step" in line
    status = [json.loads((tmp_path / "sweep" / str(i) / "summary.json").read_text())["status"] for i in range(8)]
    assert status[:4] == ["finished"] * 4
    assert all(line.startswith("failed: the loss of seed") for line in status[4:])


def test_the_basic_launcher_lists_failed_jobs_too(train, tmp_path):
    process = train("--multirun", "optimizer.learning_rate=1e20,0.001", "hydra/launcher=basic", "hydra.sweep.dir=sweep")
    assert process.returncode == 1
    assert "twmaml: 1 of 2 jobs failed; the others are in sweep" in process.stderr
    assert json.loads((tmp_path / "sweep" / "1" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("launcher", ["vectorised", "basic"])
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["sampler=glob(nothing*)"], "sampler=glob(nothing*): matches none of the choices"),
        (["sampler=uniform,delta", "shots=4,-1"], "job 1 (sampler=uniform shots=-1): shots=-1: "),
        (["seed=0,1,minus"], "seed=minus: must be an integer from 0"),
        (["sampler=uniform,nope"], "sampler=nope: must be one of"),
    ],
)
def test_a_mistake_in_any_job_ends_the_sweep_before_the_first(launcher, overrides, line, train, tmp_path):
    process = train("--multirun", *overrides, f"hydra/launcher={launcher}")
    assert process.returncode == 1
    assert line in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("metrics.csv"))


def test_groups_that_are_too_large_or_do_not_fit_are_split(train, tmp_path):
    for name, extra in {
        "whole": [],
        "parts": ["hydra.launcher.group_size=2"],
        "memory": ["devices.memory_gib=0.0001"],
    }.items():
        succeed(train("--multirun", "seed=0,1,2", f"hydra.sweep.dir={name}", *extra))
    assert "goes on with" in (tmp_path / "memory" / "0" / "train.log").read_text()
    assert "goes on with" not in (tmp_path / "whole" / "0" / "train.log").read_text()
    for seed in "012":
        whole, *others = (read_metrics(tmp_path / n / seed / "metrics.csv") for n in ("whole", "parts", "memory"))
        for other in others:
            for name, values in whole.items():
                np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_lists_of_seeds_can_be_swept(train, tmp_path):
    succeed(train("--multirun", "seed=[0,1],[2,3]", "hydra.sweep.dir=sweep"))
    folders = [path.relative_to(tmp_path / "sweep") for path in (tmp_path / "sweep").glob("*/seed_*")]
    assert sorted(map(str, folders)) == ["0/seed_0", "0/seed_1", "1/seed_2", "1/seed_3"]


def test_a_job_that_changes_its_folder_runs_by_itself(train, tmp_path):
    output = succeed(train("--multirun", "seed=0,1", "hydra.job.chdir=true", "hydra.sweep.dir=sweep")).stdout
    assert output.count("eval/loss") == 2
    assert all((tmp_path / "sweep" / seed / "summary.json").exists() for seed in "01")


def test_comparing_samplers_needs_no_quotes(train, tmp_path):
    output = succeed(train("experiment=compare_samplers", "seed=0,1", "hydra.sweep.dir=sweep")).stdout
    assert [line.split("sampler=")[1].split()[0] for line in output.splitlines() if "sampler=" in line] == SAMPLERS
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 12


def test_ctrl_c_ends_a_sweep_with_everything_written(tmp_path, environment):
    command = [sys.executable, "-m", "twmaml.train", "--multirun", *SMALL, "steps=1000000", "sampler=delta,uniform"]
    command += ["seed=0,1", "wandb.mode=disabled", "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rows = tmp_path / "sweep" / "1" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (rows.exists() and len(rows.read_text().splitlines()) > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the command gets it
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "0 of 4 jobs done" in output
    for number in "01":
        folder = tmp_path / "sweep" / number
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["status"] == "interrupted"
        assert read_metrics(folder / "metrics.csv")["step"][-1] == summary["step"]
        assert len(list((folder / "figures").iterdir())) == 5
    assert not (tmp_path / "sweep" / "2").exists()


def test_jobs_are_composed_as_hydra_composes_them():
    register_resolvers()
    search_path = create_config_search_path(configuration_folder())
    hydra = Hydra.create_main_hydra2(task_name="train", config_search_path=search_path)
    try:
        sweep = hydra.compose_config("train", ["steps=7", "hydra.job.chdir=false"], RunMode.MULTIRUN)
        context = HydraContext(hydra.config_loader, Callbacks())
        composer = Composer(context, sweep)
        for number, overrides in enumerate(
            [["sampler=delta", "seed=3"], ["sampler=delta", "seed=4"], ["sampler=delta", "seed=[5,6]"], ["seed=7"]]
        ):
            composed = OmegaConf.to_container(composer.compose(number, overrides))
            expected = OmegaConf.to_container(hydra.config_loader.load_sweep_config(sweep, overrides))
            folder = composed["hydra"]["runtime"]["output_dir"]
            assert folder.endswith(f"/{number}")
            expected["hydra"]["job"] |= {"num": number, "id": str(number)}
            expected["hydra"]["runtime"]["output_dir"] = folder
            assert composed == expected
    finally:
        GlobalHydra.instance().clear()


def job(number, chdir=False, env=None, **config):
    hydra = {"job": {"chdir": chdir, "env_set": env or {}}}
    return SweepJob(number, [], OmegaConf.create({"hydra": hydra}), {"seed": 0, "steps": 5, **config})


def numbers(groups):
    return [[job.number for job in group] for group in groups]


def test_jobs_that_differ_only_in_the_seed_are_grouped():
    jobs = [job(i, seed=i // 2, rate=i % 2, wandb={"group": str(i)}) for i in range(6)]
    assert numbers(group_jobs(jobs, program_of, 64)) == [[0, 2, 4], [1, 3, 5]]


def test_groups_have_no_more_runs_than_allowed():
    jobs = [job(i, seed=[3 * i, 3 * i + 1, 3 * i + 2]) for i in range(5)]
    assert numbers(group_jobs(jobs, program_of, 6)) == [[0, 1], [2, 3], [4]]
    assert numbers(group_jobs(jobs, program_of, 2)) == [[0], [1], [2], [3], [4]]


def test_what_belongs_to_the_process_is_not_shared():
    jobs = [job(0, chdir=True), job(1, chdir=True), job(2, env={"A": "1"}), job(3, env={"A": "2"})]
    assert numbers(group_jobs(jobs, program_of, 64)) == [[0], [1], [2], [3]]


def test_the_log_of_a_run_is_its_own(tmp_path):
    configs = []
    for number in "01":
        handlers = {"file": {"class": "logging.FileHandler", "filename": str(tmp_path / number / "train.log")}}
        job_logging = {"version": 1, "handlers": handlers, "root": {"level": "INFO", "handlers": ["file"]}}
        job_logging["disable_existing_loggers"] = False
        hydra = {"job_logging": job_logging, "verbose": False, "runtime": {"output_dir": str(tmp_path / number)}}
        configs.append(OmegaConf.create({"hydra": hydra}))
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        with log_to_folders(configs):
            logging.getLogger("anywhere").info("of all")
            run_log(tmp_path / "0").info("of the first")
            run_log(tmp_path / "1" / "seed_3").info("of the second")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)
    assert (tmp_path / "0" / "train.log").read_text().splitlines() == ["of all", "of the first"]
    assert (tmp_path / "1" / "train.log").read_text().splitlines() == ["of all", "of the second"]
