import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.analysis.test_finished_runs import change_summary
from tests.conftest import ACCURACY, SCORE, SMALL, succeed, write_run
from twmaml.analysis.finished_runs import read_runs
from twmaml.analysis.measures import measures_of
from twmaml.analysis.published import arms_of, changes_here, compare_runs, compare_with, judge
from twmaml.analysis.published_runs import commands_of
from twmaml.analysis.reproduction import reproduce as reproduce_preset
from twmaml.configuration.build import build_parts
from twmaml.configuration.composition import compose_configuration
from twmaml.configuration.config_files import configuration_folder
from twmaml.configuration.settings import read_settings
from twmaml.reproduce import compose, read_presets
from twmaml.statistics import reported_steps
from twmaml.storage.flat_config import flatten_run
from twmaml.types import Metric


@pytest.fixture
def reproduce(tmp_path, environment):
    def run(*arguments):
        command = [sys.executable, "-m", "twmaml.reproduce", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    return run


RETURN = Metric("return", "return", higher_is_better=True, logarithmic=False)


@pytest.mark.parametrize("name", list(read_presets()))
def test_a_preset_can_be_run_and_says_what_it_is_compared_with(name):
    preset = read_presets()[name]
    folder = Path(configuration_folder())
    assert (folder / "experiment" / f"{name}.yaml").exists()
    for arm in preset["arms"].values():
        (sampler,) = (override.removeprefix("sampler=") for override in arm if override.startswith("sampler="))
        assert (folder / "sampler" / f"{sampler}.yaml").exists()
    splits = ["eval", *OmegaConf.create(compose_configuration([f"experiment={name}"]).config).evaluation.splits]
    assert preset["source"]
    assert preset["protocol"]
    assert ("data" in preset) == ("data_help" in preset)
    for figure in preset["figures"]:
        assert figure["metric"] in measures_of([SCORE, ACCURACY, RETURN])
        assert figure["arm"] in preset["arms"]
        assert figure.get("read", "text") in ("text", "figure", "derived")  # what is only remembered is not printed
        assert (figure.get("read") == "figure") == ("read_to" in figure)
        assert figure.get("at", "last") in ("last", "best")
        assert figure.get("split", "eval") in splits
        assert ("rerun" in figure) <= ("rerun" in preset)


@pytest.mark.parametrize(
    ("name", "arm"),
    [(name, arm) for name, preset in read_presets().items() if "data" not in preset for arm in preset["arms"]],
)
def test_every_arm_of_a_preset_composes(name, arm):
    overrides = read_presets()[name]["arms"][arm]
    config = OmegaConf.create(compose_configuration([f"experiment={name}", *overrides]).config)
    parts = build_parts(config, read_settings(config))
    if any(figure.get("at") == "best" for figure in read_presets()[name]["figures"]):
        assert "validation" in parts.evaluations
    reported = reported_steps(parts.evaluations["eval"].steps)
    assert {figure["inner_steps"] for figure in read_presets()[name]["figures"]} <= {*reported}


@pytest.mark.parametrize("name", list(read_presets()))
def test_runs_of_a_preset_have_no_changes_but_those_made_wherever_their_data_is(name):
    preset = read_presets()[name]
    data = [f"{preset['data']}=/somewhere/else"] if "data" in preset else []
    arm, overrides = next(iter(preset["arms"].items()))

    def changes(*made: str) -> list[str]:
        config = compose_configuration([f"experiment={name}", *overrides, *data, "seed=7", *made]).config
        return [*changes_here(name, preset, {arm: flatten_run(config)}, compose)]

    assert changes() == []
    assert changes("checkpoint.keep=9", "meta_batch=77") == [
        f"changed here: meta_batch=77 instead of {compose_configuration([f'experiment={name}']).config['meta_batch']}"
    ]


def test_what_nobody_has_published_is_not_judged():
    assert judge(-15.0, [-15.5, -14.5], None, 0.0) == "nothing published"


@pytest.mark.parametrize(
    ("published", "plus_minus", "verdict"),
    [
        (1.2, None, "agrees"),
        (1.4, None, "differs"),
        (1.4, 0.3, "differs"),
        (1.4, 0.4, "agrees: our mean is inside the published interval"),
    ],
)
def test_a_published_figure_is_a_seed_of_ours_or_ours_lies_in_its_interval(published, plus_minus, verdict):
    assert judge(1.0, [0.8, 1.2], published, 0.0, plus_minus).startswith(verdict)


def test_a_preset_runs_over_seeds_and_is_compared(reproduce, tmp_path):
    output = succeed(reproduce("maml_sine", "--seeds", "2", *SMALL, "wandb.mode=disabled")).stdout
    (path,) = tmp_path.rglob("reproduction.json")
    report = json.loads(path.read_text())
    assert [each["inner_steps"] for each in report["figures"]] == [1, 5]  # SMALL adapts no further
    runs, left_out = read_runs([path.parent])
    assert not left_out
    assert [run.seed for run in runs] == [0, 1]
    for each, published in zip(report["figures"], (0.67, 0.38), strict=True):
        losses = [run.evaluations.losses[-1, :, each["inner_steps"]].mean() for run in runs]
        assert each["published"] == published
        assert each["of_seeds"] == pytest.approx(sorted(losses), rel=1e-6)
        assert each["ours"] == pytest.approx(np.mean(losses), rel=1e-6)
        assert each["verdict"].startswith("differs: outside the range of our seeds; our mean is +")  # 60 meta-steps
    changes = [note for note in report["notes"] if note.startswith("changed here")]
    assert "changed here: steps=60 instead of 70000" in changes
    assert {change.partition("=")[0].split(": ")[1] for change in changes} <= {each.partition("=")[0] for each in SMALL}
    assert "meta-steps of these runs: 60" in output
    assert "Finn, Abbeel, Levine 2017" in output
    again = succeed(reproduce("maml_sine", "--runs", str(path.parent))).stdout
    assert "differs: outside" in again
    assert all(change in again for change in changes)


def test_figures_are_those_of_the_last_evaluation(tmp_path):
    losses = np.random.default_rng(0).uniform(0.2, 1.0, (3, 2, 12, 11))
    for seed in range(3):
        write_run(tmp_path / str(seed), losses[seed], seed=seed)
    preset = read_presets()["maml_sine"]
    found = compare_with(preset, compare_runs(preset, read_runs([tmp_path])[0]))
    assert [each.inner_steps for each in found] == [1, 5, 10]
    for each in found:
        assert each.ours == pytest.approx(losses[:, -1, :, each.inner_steps].mean())
        assert each.low <= each.ours <= each.high


ROBUST = {
    "title": "robust meta-learning",
    "source": "somebody",
    "arms": {
        "maml": ["sampler=uniform"],
        "delta": ["sampler=delta"],
        "large": ["sampler=delta", "meta_batch=50"],
        "larger": ["sampler=uniform", "meta_batch=50"],
    },
    "seeds": 3,
    "protocol": ["as published"],
    "figures": [
        {"metric": "mean", "arm": "maml", "inner_steps": 5, "at": "best", "published": 2.0, "read": "derived"},
        {"metric": "mean", "arm": "maml", "inner_steps": 5, "published": 2.0, "published_sd": 0.5},
        {"metric": "mean", "arm": "large", "inner_steps": 5, "published": 9.0, "no_verdict": "of another learner"},
        {"metric": "mean", "arm": "delta", "inner_steps": 5, "at": "best", "published": 9.0},
    ],
}


def test_arms_of_which_only_the_sampler_differs_share_a_sweep(tmp_path):
    found = commands_of("robust", ROBUST, 3, ["steps=5"], tmp_path)
    assert [folder.name for folder, _ in found] == ["maml+delta", "large+larger"]
    assert [command[4:-1] for _, command in found] == [
        ["experiment=robust", "sampler=uniform,delta", "seed=0,1,2", "steps=5"],
        ["experiment=robust", "sampler=delta,uniform", "seed=0,1,2", "meta_batch=50", "steps=5"],
    ]
    assert [command[-1] for _, command in found] == [f"hydra.sweep.dir={folder}" for folder, _ in found]


def test_an_interruption_leaves_the_run_in_order_and_names_the_sweeps_that_have_not_begun(tmp_path, environment):
    small = ["steps=1000000", "log_every=10", "evaluation.every=1000000", "evaluation.draws=1", "model.widths=[8]"]
    command = [sys.executable, "-m", "twmaml.reproduce", "trmaml_sine", "--seeds", "1", *small, "wandb.mode=disabled"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes) as process:
        try:
            deadline = time.monotonic() + 200
            while not (rows := [*tmp_path.glob("outputs/**/0/metrics.csv")]) or rows[0].read_text().count("\n") < 4:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            output, _ = process.communicate(timeout=100)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert json.loads((rows[0].parent / "summary.json").read_text())["status"] == "interrupted"
    assert [*rows[0].parent.glob("checkpoints/*/")]
    assert "go on with python -m twmaml.train" in output
    (begun,) = re.findall(r"^twmaml: python -m (.*)", output, re.MULTILINE)
    assert "sampler=uniform" in begun
    assert len(re.findall(r"^twmaml: not begun: python -m twmaml.train", output, re.MULTILINE)) == 3


def test_figures_are_of_their_arm_and_of_the_best_evaluation_beside_the_last(tmp_path, capsys):
    rising = np.array([2.0, 1.0, 3.0])[:, None, None] * np.ones((3, 12, 6))
    for seed in range(3):
        write_run(tmp_path / f"maml{seed}", rising + 0.1 * seed, seed=seed, steps=20)
        change_summary(tmp_path / f"maml{seed}", best_step=10 * min(seed, 1))
        write_run(
            tmp_path / f"large{seed}", rising + 5 + 0.1 * seed, seed=seed, sampler="delta", meta_batch=50, steps=20
        )
    # delta has no best one
    best, last, large = reproduce_preset("maml_sine", ROBUST, None, [], None, tmp_path, compose)
    assert best.of_seeds == pytest.approx([1.1, 1.2, 2.0])
    assert last.of_seeds == pytest.approx([3.0, 3.1, 3.2])
    assert large.of_seeds == pytest.approx([8, 8.1, 8.2])
    assert large.verdict == "of another learner"
    output = capsys.readouterr().out
    assert "2 (derived)" in output
    assert "2 ± 0.5" in output
    assert "protocol: large is sampler=delta meta_batch=50" in output
    assert "protocol: delta is" not in output


def test_a_run_belongs_to_the_arm_whose_overrides_it_was_started_with(tmp_path):
    for number, batch in enumerate((25, 50)):
        write_run(tmp_path / str(number), sampler="delta", meta_batch=batch)
    assert [arm.name for arm in arms_of(ROBUST, read_runs([tmp_path])[0])] == ["delta", "large"]
    path = tmp_path / "0" / ".hydra" / "hydra.yaml"
    started = {"overrides": {"task": ["sampler=delta", "meta_batch=50", "meta_batch=25"]}}
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(path), {"hydra": started}), path)
    assert [arm.name for arm in arms_of(ROBUST, read_runs([tmp_path / "0"])[0])] == ["large"]
    with pytest.raises(ValueError, match="there are runs of large of several configurations"):
        arms_of(ROBUST, read_runs([tmp_path])[0])


IMAGES = {
    "title": "few-shot images",
    "source": "somebody",
    "arms": {"uniform": ["sampler=uniform"]},
    "seeds": 2,
    "data": "task.source.data_dir",
    "data_help": "it must hold images.zip",
    "protocol": ["as published"],
    "figures": [
        {
            "metric": "accuracy_mean",
            "arm": "uniform",
            "inner_steps": 5,
            "published": 0.63,
            "published_plus_minus": 0.009,
        }
    ],
}


def test_an_accuracy_is_compared_with_its_interval_over_tasks(tmp_path, capsys):
    accuracy = np.random.default_rng(0).uniform(0.5, 0.8, (3, 2, 12, 6))
    for seed in range(3):
        further = [(ACCURACY, accuracy[seed])]
        write_run(tmp_path / str(seed), np.ones((2, 12, 6)), seed=seed, further=further, steps=10)
        change_summary(tmp_path / str(seed), protocols={"eval": "5 ways, 12 tasks"})
    (found,) = reproduce_preset("omniglot_5way1shot", IMAGES, None, [], None, tmp_path, compose)
    last = accuracy[:, -1, :, 5]
    assert found.ours == pytest.approx(last.mean())
    assert found.ours_plus_minus == pytest.approx(1.96 * (last.std(axis=1, ddof=1) / math.sqrt(12)).mean())
    output = capsys.readouterr().out
    assert "± over tasks" in output
    assert "0.63 ± 0.009" in output
    assert "re-run" not in output
    assert "  protocol: 5 ways, 12 tasks\n" in output
    assert "5 ways, 12 tasks" in json.loads((tmp_path / "reproduction.json").read_text())["notes"]


def test_data_are_passed_on_to_the_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = []

    class Refused:
        def __init__(self, command):
            commands.append(command)

        def wait(self):
            return 1

    monkeypatch.setattr(subprocess, "Popen", Refused)
    (tmp_path / "it's, here").mkdir()
    with pytest.raises(SystemExit):
        reproduce_preset("images", IMAGES, None, ["steps=5"], Path("it's, here"), None, compose)
    ((*_, data, steps, _),) = commands
    assert steps == "steps=5"
    (override,) = OverridesParser.create().parse_overrides([data])
    assert (override.key_or_group, override.value()) == ("task.source.data_dir", str(tmp_path / "it's, here"))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (None, "images needs --data FOLDER: it must hold images.zip"),
        (Path("nowhere"), "--data nowhere: there is no such folder"),
    ],
)
def test_without_data_nothing_is_run(data, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ValueError, match=line):
        reproduce_preset("images", IMAGES, None, [], data, None, compose)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("of_seeds", "verdict"),
    [
        ([0.3, 0.5], "agrees: inside the range of our seeds; our mean is +0%"),
        ([0.41, 0.43], "differs: outside the range of our seeds; our mean is +5%"),
        ([0.405, 0.43], "agrees: inside the range of our seeds; our mean is +4%"),  # read to 0.01
        ([0.4], "undecided with one seed; our mean is +0%"),
    ],
)
def test_one_published_run_is_held_against_the_range_of_seeds(of_seeds, verdict):
    assert judge(math.fsum(of_seeds) / len(of_seeds), of_seeds, 0.4, 0.01 if of_seeds[0] == 0.405 else 0.0) == verdict


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["maml_sin"], "maml_sin: must be list or one of maml_sine, predecessor, omniglot_5way1shot, "),
        (["maml_sine", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["maml_sine", "--data", "."], "--data .: maml_sine needs none"),
        (["maml_sine", "--runs", ".", "--seeds", "2"], "--runs .: are there already; --seeds and overrides"),
        (["maml_sine", "--runs", ".", "steps=9"], "--runs .: are there already; --seeds and overrides"),
        (["maml_sine", "--runs", "nowhere"], "--runs nowhere: there is no such folder"),
        (["maml_sine", "--runs", "."], ".: no finished run that the preset maml_sine can be compared with"),
        (["maml_sine", "stepz=1"], "stepz: there is no such key"),
    ],
)
def test_a_mistake_ends_in_one_line(arguments, line, reproduce):
    process = reproduce(*arguments)
    assert process.returncode == 1
    assert process.stderr.startswith(f"twmaml: {line}")
    assert len(process.stderr.splitlines()) == 1


def test_presets_are_listed(reproduce):
    output = succeed(reproduce("list")).stdout
    assert all(name in output for name in read_presets())
