"""The sweeper and the launcher: by the command line, in parts, and by Hydra's own tests for launchers."""

import json
import logging
import os
import pickle
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.test_utils.launcher_common_tests import LauncherTestSuite
from hydra.types import HydraContext, RunMode
from hydra.version import _UNSPECIFIED_, VersionBase
from omegaconf import OmegaConf

from hydra_plugins.twmaml_launcher.contract import TakesComposed, VectorisedTask
from hydra_plugins.twmaml_launcher.launcher import VectorisedLauncher, ended, entered, group_jobs
from hydra_plugins.twmaml_launcher.logs import log_to_folders
from hydra_plugins.twmaml_launcher.sweep_job import SweepJob, SweepJobs
from tests.conftest import contents, read_wandb, succeed, wait_for_rows
from twmaml.configuration.composition import compose_configuration
from twmaml.configuration.config_files import configuration_folder, register_resolvers
from twmaml.jobs.grouping import group_keys
from twmaml.jobs.task import TrainTask
from twmaml.storage.files import run_log
from twmaml.storage.metrics_file import read_metrics

SIX = ["delta", "epsilon_greedy", "importance", "importance_delta", "uniform", "weighted"]
SAMPLERS = sorted(path.stem for path in (Path(configuration_folder()) / "sampler").glob("*.yaml"))


@pytest.mark.parametrize(("launcher_name", "overrides"), [("vectorised", [])])
@pytest.mark.filterwarnings("ignore:.*change working directory")
class TestHydrasOwn(LauncherTestSuite):
    """What Hydra asks of every launcher, of a task function that knows nothing of groups."""

    @pytest.fixture(autouse=True)
    def _as_in_a_new_process(self, monkeypatch):
        monkeypatch.setattr(VersionBase.instance(), "version_base", _UNSPECIFIED_)  # other tests leave it at 1.3


@pytest.mark.parametrize(
    ("pattern", "samplers"),
    [
        ("glob([epsilon*,importance_*])", ["epsilon_greedy", "importance_delta"]),
        pytest.param("glob(*)", SAMPLERS, marks=pytest.mark.slow),
    ],
)
def test_a_sweep_in_groups_is_the_same_as_one_by_one(pattern, samplers, train, tmp_path):
    for launcher in ("vectorised", "basic"):
        overrides = [f"sampler={pattern}", "seed=0,1,2", f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}"]
        output = succeed(train("--multirun", *overrides, "steps=200", wandb="offline")).stdout
        if launcher == "vectorised":
            lines = re.findall(r"(\d+)/\d+ jobs  sampler=(\w+) seed=0,...,2: eval/loss", output)
            assert lines == [(str(3 * i + 3), sampler) for i, sampler in enumerate(samplers)]
            assert "group 1 of 1 took" in output
    jobs = [(sampler, seed) for sampler in samplers for seed in range(3)]
    expected = {*(str(number) for number in range(len(jobs))), "multirun.yaml"}
    assert {path.name for path in (tmp_path / "vectorised").iterdir()} == expected
    assert {path.name for path in (tmp_path / "basic").iterdir()} == expected
    for number, (sampler, seed) in enumerate(jobs):
        together, alone = (tmp_path / launcher / str(number) for launcher in ("vectorised", "basic"))
        check_the_same_files(together, alone, sampler, seed)
        check_the_same_numbers(together, alone)
        check_wandb(together, sampler, seed)
    assert len({read_wandb(tmp_path / "vectorised" / str(n))[0] for n in range(len(jobs))}) == len(jobs)


def test_a_search_over_numbers_is_one_program_and_each_of_its_runs_is_that_of_the_job_alone(train, tmp_path):
    search = [
        "sampler=weighted,epsilon_greedy",
        "optimizer.learning_rate=0.001,0.003",
        "sampling.uniform_fraction=0.1,0.4",
        "sampling.epsilon.end_value=0.2,0.3",
        "adaptation.decay=1.0,0.9",
    ]
    only = "hydra.sweep.dir=sweep"
    output = succeed(train("--multirun", *search, "steps=200", only)).stdout
    assert re.findall(r"group (\d) of (\d) took", output) == [("1", "2"), ("2", "2")]  # of the two decays
    for number in (3 * 2, 13 * 2 + 1):
        folder = tmp_path / "sweep" / str(number)
        own = OmegaConf.load(folder / ".hydra/overrides.yaml")
        succeed(train(*own, f"hydra.run.dir=alone_{number}"))
        check_the_same_numbers(folder, tmp_path / f"alone_{number}")


def check_the_same_files(together, alone, sampler, seed):
    files = [
        {p.relative_to(f) for p in f.rglob("*") if f / "wandb" not in p.parents and p.parent.name != "d"}  # Orbax's
        for f in (together, alone)
    ]
    assert files[0] == files[1]
    assert OmegaConf.load(together / ".hydra/config.yaml") == OmegaConf.load(alone / ".hydra/config.yaml")
    overrides: Any = OmegaConf.to_object(OmegaConf.load(together / ".hydra/overrides.yaml"))
    assert overrides == OmegaConf.to_object(OmegaConf.load(alone / ".hydra/overrides.yaml"))
    assert {f"sampler={sampler}", f"seed={seed}"} <= set(overrides)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (together, alone)]
    assert list(summaries[0]) == list(summaries[1])
    assert (summaries[0]["status"], summaries[0]["seed"]) == ("finished", seed)


def check_the_same_numbers(together, alone):
    first, second = (read_metrics(folder / "metrics.csv") for folder in (together, alone))
    assert list(first) == list(second)
    assert first["step"][-1] == 200
    for name, values in second.items():
        np.testing.assert_allclose(first[name], values, rtol=1e-4, atol=1e-6, err_msg=f"{together} {name}")


def check_wandb(folder, sampler, seed):
    _, config, history, exit_code = read_wandb(folder)
    assert (config["sampler"], config["seed"], exit_code) == (sampler, seed, 0)
    metrics = read_metrics(folder / "metrics.csv")
    known = np.isfinite(metrics["train/loss"])
    logged = [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]
    np.testing.assert_allclose(logged, np.stack([metrics["step"], metrics["train/loss"]], 1)[known], rtol=1e-6)
    assert any(key.startswith("figures/queue/") for row in history for key in row)


def test_failed_jobs_are_listed_and_stop_no_other(train, tmp_path):
    process = train("--multirun", "optimizer.learning_rate=1e20,0.001", "seed=0,1", "hydra.sweep.dir=sweep")
    assert process.returncode == 1
    listed = process.stderr.splitlines()
    assert listed[0] == "twmaml: 2 of 4 jobs failed; the others are in sweep"
    for line, number in zip(listed[1:], [0, 1], strict=True):
        assert line.split()[0] == str(number)
        assert "optimizer.learning_rate=1e+20 seed=" in line
        assert "steps=60" not in line  # which all jobs have in common
        assert "is not finite at meta-step" in line
    status = [json.loads((tmp_path / "sweep" / str(i) / "summary.json").read_text())["status"] for i in range(4)]
    assert status[2:] == ["finished"] * 2
    assert all(line.startswith("failed: the loss of seed") for line in status[:2])


def test_a_sampler_of_the_users_own_that_is_no_distribution_any_more_stops_no_other_of_its_group(train, tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\n"
        "import jax.numpy as jnp\n"
        "from twmaml.samplers.base import Sampler\n"
        "@dataclass(frozen=True)\n"
        "class Shrinking(Sampler):\n"
        "    def probabilities(self, grid, view):\n"
        "        return jnp.where(view.step < 30, 1.0, 0.5) * jnp.full(grid.size, 1 / grid.size)\n"
    )
    (tmp_path / "own" / "sampler").mkdir(parents=True)
    (tmp_path / "own" / "sampler" / "shrinking.yaml").write_text("_target_: own.Shrinking\n")
    process = train("--config-dir=own", "--multirun", "sampler=uniform,shrinking", "hydra.sweep.dir=sweep")
    assert process.returncode == 1
    first, line = process.stderr.splitlines()
    assert first == "twmaml: 1 of 2 jobs failed; the others are in sweep"
    assert "the probabilities of Shrinking are no distribution at meta-step" in line
    assert line.endswith("they sum to 0.5, the least is 0.025")
    status = [json.loads((tmp_path / "sweep" / str(i) / "summary.json").read_text())["status"] for i in range(2)]
    assert status[0] == "finished"
    assert status[1].startswith("failed: the probabilities of Shrinking")


def test_a_job_without_a_folder_stops_no_other_of_its_group(train, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "0").write_text("a file stands where the folder should be")
    (tmp_path / "sweep" / "2").mkdir()
    (tmp_path / "sweep" / "2" / "metrics.csv").write_text("step\n")
    (tmp_path / "sweep" / "3" / ".hydra" / "config.yaml").mkdir(parents=True)  # which Hydra cannot write then
    process = train("--multirun", "seed=0,1,2,3,4", "hydra.sweep.dir=sweep")
    assert process.returncode == 1
    first, *listed = process.stderr.splitlines()
    assert first == "twmaml: 3 of 5 jobs failed; the others are in sweep"
    for line, (number, reason) in zip(
        listed, [(0, "cannot write to"), (2, "already holds a run"), (3, "cannot write to")], strict=True
    ):
        assert line.split()[:2] == [str(number), f"seed={number}:"]
        assert reason in line
    assert re.search(r"5/5 jobs  seed=0,...,4: eval/loss \S+ \(sd \S+ over 2 jobs\) 3 failed", process.stdout)
    for number in "14":
        assert json.loads((tmp_path / "sweep" / number / "summary.json").read_text())["status"] == "finished"


def test_all_jobs_of_a_sweep_are_of_one_folder_and_one_wandb_group(train, tmp_path):
    output = succeed(train("--multirun", "sampler=uniform,delta,weighted", "steps=20", wandb="offline")).stdout
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "multirun.yaml"]
    for part in (f"sweep of 3 jobs, in outputs/multirun/{folder.name}", f"  folder     outputs/multirun/{folder.name}"):
        assert part in output
    (upload,) = re.findall(r"wandb sync (\S+)", output)
    assert len(list(tmp_path.glob(upload))) == 3
    for log in folder.glob("*/wandb/offline-run-*/run-*.wandb"):
        assert folder.name.encode() in log.read_bytes()  # the group
    output = succeed(train(f"resume={folder}", small=False)).stdout
    assert "3 of 3 jobs were finished before" in output


def test_a_sweep_takes_no_folder_of_another_that_began_in_the_same_second(train, tmp_path):
    for second in range(60):
        (tmp_path / f"sweep_{second:02}").mkdir()
    process = train("--multirun", "seed=0,1", "hydra.sweep.dir='sweep_${now:%S}'")
    assert process.returncode == 1
    assert re.fullmatch(r"twmaml: sweep_\d\d: is of another sweep that began .*\n", process.stderr)
    assert not [*tmp_path.glob("sweep_*/*")]


def test_a_job_whose_tasks_have_all_diverged_fails_no_other_of_its_group(train):
    far = ["adaptation.learning_rate=3.0", "adaptation.steps=0", "evaluation.steps=10", "steps=20"]
    output = succeed(train("--multirun", "seed=0,1", *far)).stdout
    assert "eval/loss nan (sd nan over 2 jobs)" in output


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
        (["seed=0,1", "hydra.launcher.group_size=0"], "group_size"),
        (["seed=0,1,0"], "jobs 0 and 2 are the same"),
        (["seed=interval(0,5)"], "seed=interval(0,5): is for a search"),
        (["seed=0,1", "hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size=0: must be at least 1"),
        (["seed=0,1", "hydra.sweep.subdir=same"], "jobs 0 and 1 need folders of their own (hydra.sweep.subdir)"),
    ],
)
def test_a_mistake_in_any_job_ends_the_sweep_before_the_first(launcher, overrides, line, train, tmp_path):
    process = train("--multirun", *overrides, f"hydra/launcher={launcher}")
    assert process.returncode == 1
    assert line in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("metrics.csv"))


def test_groups_that_are_too_large_or_do_not_fit_are_split(train, tmp_path):
    succeed(train("--multirun", "seed=0,1,2", "hydra.sweep.dir=whole"))
    # Not even one run fits: each trains by itself, in two groups.
    small = ["devices.memory_gib=0.0001", "hydra.launcher.group_size=2"]
    succeed(train("--multirun", "seed=0,1,2", "hydra.sweep.dir=parts", *small))
    assert "2 runs need" in (tmp_path / "parts" / "0" / "train.log").read_text()
    assert "goes on with" not in (tmp_path / "parts" / "2" / "train.log").read_text()
    assert "goes on with" not in (tmp_path / "whole" / "0" / "train.log").read_text()
    for seed in "012":
        whole, parts = (read_metrics(tmp_path / name / seed / "metrics.csv") for name in ("whole", "parts"))
        for name, values in whole.items():
            np.testing.assert_allclose(parts[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


FEW_FILES = ["bash", "-c", 'ulimit -Sn 128 && ulimit -Hn $0 && exec "$@"']
"""Before the number of files that a process may have open, if it asks for more than 128."""


@pytest.mark.slow
def test_a_sweep_of_400_jobs_is_one_group(train, tmp_path):
    sweep = ["seed=range(0,400)", "hydra.launcher.group_size=400", "hydra.sweep.dir=sweep", "steps=20"]
    output = succeed(train("--multirun", *sweep, prefix=[*FEW_FILES, "1024"], timeout=1800)).stdout
    assert "400/400 jobs  seed=0,...,399: eval/loss" in output
    assert "group 1 of 1 took" in output
    summaries = [json.loads((tmp_path / "sweep" / str(i) / "summary.json").read_text()) for i in range(400)]
    assert [summary["seed"] for summary in summaries] == [*range(400)]
    assert {(summary["status"], summary["runs_at_once"]) for summary in summaries} == {("finished", 400)}


def test_more_jobs_in_a_group_than_files_may_be_open_are_refused_before_the_first(train, tmp_path):
    process = train("--multirun", "seed=range(0,60)", "hydra.sweep.dir=sweep", prefix=[*FEW_FILES, "256"])
    assert process.returncode == 1
    assert process.stderr == (
        "twmaml: 60 runs at once need 270 open files, and the system allows 256 (ulimit -Hn): raise that, or "
        "train fewer at once (hydra.launcher.group_size, seed)\n"
    )
    assert not list((tmp_path / "sweep").glob("*/metrics.csv"))


def test_lists_of_seeds_can_be_swept(train, tmp_path):
    succeed(train("--multirun", "seed=[0,1],[2,3]", "hydra.sweep.dir=sweep"))
    folders = [path.relative_to(tmp_path / "sweep") for path in (tmp_path / "sweep").glob("*/seed_*")]
    assert sorted(map(str, folders)) == ["0/seed_0", "0/seed_1", "1/seed_2", "1/seed_3"]


def test_a_job_that_changes_its_folder_runs_by_itself(train, tmp_path):
    output = succeed(train("--multirun", "seed=0,1", "hydra.job.chdir=true", "hydra.sweep.dir=sweep")).stdout
    assert output.count("eval/loss") == 2
    assert all((tmp_path / "sweep" / seed / "summary.json").exists() for seed in "01")


def test_comparing_samplers_needs_no_quotes(train, tmp_path):
    output = succeed(train("experiment=compare_samplers", "seed=0", "steps=20", "hydra.sweep.dir=sweep")).stdout
    assert re.findall(r"sampler=(\w+)", output) == SIX
    assert output.splitlines()[0] == "twmaml: sweep of 6 jobs, in sweep"
    assert output.splitlines()[-1] == "  folder     sweep"
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 6


def test_ctrl_c_ends_a_sweep_with_everything_written(start, tmp_path):
    overrides = ["steps=1000000", "shots=5,10", "seed=0,1", "hydra.sweep.dir=sweep"]
    process = start("--multirun", *overrides, start_new_session=True)
    wait_for_rows(process, tmp_path / "sweep/1")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the command gets it
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "0 of 4 jobs done" in output
    assert output.endswith("  go on with python -m twmaml.train resume=sweep\n")
    for number in "01":
        folder = tmp_path / "sweep" / number
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["status"] == "interrupted"
        assert read_metrics(folder / "metrics.csv")["step"][-1] == summary["step"]
        assert len(list((folder / "figures").iterdir())) == 5
    assert not (tmp_path / "sweep" / "2").exists()


def test_what_has_not_begun_when_a_sweep_is_stopped_does_not_begin(start, tmp_path):
    one_by_one = "devices.memory_gib=0.0001"
    process = start("--multirun", "steps=1000000", "seed=0,1,2,3", one_by_one, "hydra.sweep.dir=sweep")
    wait_for_rows(process, tmp_path / "sweep/0")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 143
    assert errors == "WARNING: Interrupted: ends after this chunk; Ctrl-C (again) to end at once\n"
    assert [path.parent.name for path in (tmp_path / "sweep").glob("*/metrics.csv")] == ["0"]


@pytest.fixture
def composed():
    """The configuration of a sweep as Hydra composes it, and what composes its jobs."""
    register_resolvers()
    search_path = create_config_search_path(configuration_folder())
    hydra = Hydra.create_main_hydra2(task_name="train", config_search_path=search_path)
    yield lambda *overrides: (hydra.compose_config("train", [*overrides], RunMode.MULTIRUN), hydra.config_loader)
    GlobalHydra.instance().clear()


def test_jobs_are_composed_as_hydra_composes_them(composed):
    sweep, loader = composed("steps=7", "hydra.job.chdir=false")
    composer = SweepJobs(HydraContext(loader, Callbacks()), sweep)
    for number, overrides in enumerate(
        [["sampler=delta", "seed=3"], ["sampler=delta", "seed=4"], ["sampler=delta", "seed=[5,6]"], ["seed=7"]]
    ):
        job = composer.compose(number, overrides)
        expected: Any = OmegaConf.to_container(loader.load_sweep_config(sweep, overrides))
        assert str(job.folder).endswith(f"/{number}")
        expected["hydra"]["job"] |= {"num": number, "id": str(number)}
        expected["hydra"]["runtime"]["output_dir"] = str(job.folder)
        assert OmegaConf.to_container(job.config) == expected


class Witness:
    """A callback that notes when it is called, and the surroundings of that."""

    def __init__(self):
        self.seen = []

    def on_job_start(self, config, **_):
        self.note("start", config)

    def on_job_end(self, config, job_return, **_):
        self.note("end", config, job_return.status, job_return.return_value, job_return.cfg.steps)

    def note(self, *what):
        folder = HydraConfig.get().runtime.output_dir
        config = [str(each.hydra.job.num) if OmegaConf.is_config(each) else each for each in what]
        self.seen.append([*config, Path(folder).name, Path.cwd().name, os.environ.get("TWMAML_ENTERED")])


def test_a_job_is_entered_as_hydra_enters_it(composed, tmp_path):
    witnesses, saved = [], []
    for name in ("alone", "entered"):
        own = ["hydra.job.chdir=true", "+hydra.job.env_set.TWMAML_ENTERED=yes", f"hydra.sweep.dir={tmp_path / name}"]
        sweep, loader = composed("steps=7", *own)
        context, witness = HydraContext(loader, Callbacks()), Witness()
        context.callbacks.callbacks.append(witness)
        job = SweepJobs(context, sweep).compose(3, ["seed=1"])
        before = Path.cwd(), HydraConfig.instance().cfg

        def task(cfg, job=job, witness=witness):
            witness.note("inside", job.config, cfg.seed)
            return 0.5

        if name == "alone":
            place: Any = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
            run_job(task, job.config, hydra_context=context, configure_logging=False, **place)
        else:
            with entered(job, context, task) as job_return:
                ended(job_return, task(job_return.cfg))
        assert before == (Path.cwd(), HydraConfig.instance().cfg)
        assert "TWMAML_ENTERED" not in os.environ
        witnesses.append(witness.seen)
        files = contents(tmp_path / name)
        saved.append({path: text.replace(str(tmp_path / name).encode(), b"") for path, text in files.items()})
    assert [each[0] for each in witnesses[0]] == ["start", "inside", "end"]
    assert witnesses[0] == witnesses[1]
    assert len(saved[0]) == 3
    assert saved[0] == saved[1]


def test_task_and_launcher_keep_their_contracts():
    assert isinstance(TrainTask(), VectorisedTask)
    assert isinstance(VectorisedLauncher(1000), TakesComposed)
    assert not isinstance(print, VectorisedTask)
    assert isinstance(pickle.loads(pickle.dumps(TrainTask())), TrainTask)  # as launchers of processes do


def job(number, chdir=False, env=None, **config):
    hydra = {"job": {"chdir": chdir, "env_set": env or {}}}
    return SweepJob(number, [], OmegaConf.create({"hydra": hydra}), {"seed": 0, "steps": 5, **config})


def keys(configs):
    return group_keys(configs, [False] * len(configs), lambda _, others: {*others} - {"adaptation.decay"})


def numbers(groups):
    return [[job.number for job in group] for group in groups]


def test_jobs_are_grouped_that_differ_only_in_what_is_a_runs_own():
    own = [{"seed": i, "wandb": {"group": str(i)}, "sampler": {"f": i}, "sampling": {"f": i}} for i in range(6)]
    jobs = [job(i, rate=i % 2, **own[i]) for i in range(6)]
    assert numbers(group_jobs(jobs, keys, 64)) == [[0, 2, 4], [1, 3, 5]]


def test_on_an_accelerator_an_expensive_sampler_has_a_program_of_its_own(monkeypatch):
    configs = [compose_configuration([f"sampler={name}"]).config for name in ("uniform", "weighted", "risk_prediction")]
    on_cpu = TrainTask().group_keys(configs)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    uniform, weighted, expensive = TrainTask().group_keys(configs)
    assert len({*on_cpu}) == 1
    assert uniform == weighted != expensive


def test_groups_have_no_more_runs_than_allowed():
    jobs = [job(i, seed=[3 * i, 3 * i + 1, 3 * i + 2]) for i in range(5)]
    assert numbers(group_jobs(jobs, keys, 6)) == [[0, 1], [2, 3], [4]]
    assert numbers(group_jobs(jobs, keys, 2)) == [[0], [1], [2], [3], [4]]


def test_what_belongs_to_the_process_is_not_shared():
    jobs = [job(0, chdir=True), job(1, chdir=True), job(2, env={"A": "1"}), job(3, env={"A": "2"})]
    assert numbers(group_jobs(jobs, keys, 64)) == [[0], [1], [2], [3]]


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
