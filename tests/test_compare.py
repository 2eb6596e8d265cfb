"""The command line of comparisons, on files as runs leave them."""

import csv
import json
import os
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from tests.analysis.test_finished_runs import change_summary, write_split
from tests.conftest import GRID, succeed, write_run
from twmaml.storage.pictures_file import Pictures

FIGURES = ["differences", "distribution", "health", "heatmaps", "improvement", "inner_steps", "learning_curves"]
FIGURES += ["parameters", "visits"]


@pytest.fixture
def compare(tmp_path, environment):
    def run(*arguments, columns=200):
        command = [sys.executable, "-m", "twmaml.compare", *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment | {"COLUMNS": str(columns)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def sweep(tmp_path):
    make = np.random.default_rng(0)
    losses = {}
    for sampler, scale in (("delta", 0.8), ("uniform", 1.0), ("weighted", 0.5)):
        for seed in range(5):
            losses[sampler, seed] = make.gamma(2.0, scale, (3, 12, 6)) / np.arange(1, 7)
            write_run(tmp_path / "sweep" / f"{sampler}{seed}", losses[sampler, seed], seed=seed, sampler=sampler)
    return losses


def read_page(path):
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(data)


def test_a_sweep_becomes_a_table_figures_and_a_page(sweep, compare, tmp_path):
    (tmp_path / "sweep" / "delta0" / "summary.json").unlink()
    write_run(tmp_path / "sweep" / "other", task="quadratic")
    output = succeed(compare("sweep")).stdout
    assert "sin2d: 3 samplers, 4 to 5 seeds each, 12 tasks after 20 meta-steps" in output
    assert "note: The numbers of seeds differ: delta 4, uniform 5, weighted 5." in output
    assert "note: Left out: sweep/delta0 (unfinished)." in output
    assert "note: Left out: sweep/other (of another task or evaluation: quadratic)." in output
    assert "note: With 4 seeds little can be concluded" in output
    assert "cannot give a p below 0.12" in output
    of_uniform = np.array([sweep["uniform", seed][-1, :, 5].mean() for seed in range(5)])
    assert f"{of_uniform.mean():.3g}" in output
    folder = tmp_path / "sweep" / "comparison"
    assert sorted({path.stem for path in (folder / "figures").iterdir()}) == FIGURES
    for name in FIGURES:
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert matplotlib.image.imread(folder / "figures" / f"{name}.png").std() > 0.01  # something is drawn
    with (folder / "statistics.csv").open() as file:
        rows = {(row["sampler"], row["metric"], row["inner_step"]): row for row in csv.DictReader(file)}
    row = rows["weighted", "mean", "5"]
    of_weighted = np.array([sweep["weighted", seed][-1, :, 5].mean() for seed in range(5)])
    assert float(row["value"]) == pytest.approx(of_weighted.mean())
    assert float(row["difference"]) == pytest.approx((of_weighted - of_uniform).mean())
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert rows["uniform", "mean", "5"]["difference"] == ""
    with (folder / "cells.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if (row["sampler"], row["inner_step"]) == ("uniform", "5")]
    assert np.mean([float(row["value"]) for row in cells]) == pytest.approx(of_uniform.mean())
    assert [(row["amplitude"], row["phase"]) for row in cells[2:5]] == [("0.5", "150"), ("1.5", "30"), ("1.5", "90")]
    closing = [line.split() for line in output.splitlines()[-4:]]
    assert [[name, (tmp_path / path).exists()] for name, path in closing] == [
        [name, True] for name in ("page", "figures", "statistics", "cells")
    ]


def test_another_split_has_a_comparison_of_its_own(sweep, compare, tmp_path):
    for (sampler, seed), losses in sweep.items():
        folder = tmp_path / "sweep" / f"{sampler}{seed}"
        change_summary(folder, protocols={"eval": "5 ways, 200 tasks", "seen": "5 ways, 60 tasks"})
        if sampler != "weighted":
            write_split(folder, "seen", losses / 2)
    output = succeed(compare("sweep")).stdout
    assert re.search(r"^sin2d: 3 samplers.*\nProtocol: 5 ways, 200 tasks$", output, re.MULTILINE)
    output = succeed(compare("sweep", "--split", "seen")).stdout
    assert re.search(r"^sin2d, split seen: 2 samplers.*\nProtocol: 5 ways, 60 tasks$", output, re.MULTILINE)
    assert "note: Left out: sweep/weighted0 (not judged on seen, only on eval)." in output
    whole, half = (tmp_path / "sweep" / name for name in ("comparison", "comparison_seen"))
    means = [read_page(folder / "index.html")["curves"]["mean"]["5"]["delta"]["estimate"] for folder in (whole, half)]
    np.testing.assert_allclose(means[0], 2 * np.array(means[1]), rtol=1e-3)
    data = read_page(half / "index.html")
    assert data["title"] == "2 samplers on sin2d, split seen, 5 seeds each"
    assert data["protocols"] == ["5 ways, 60 tasks"]
    assert sorted({path.stem for path in (half / "figures").iterdir()}) == [n for n in FIGURES if n != "visits"]


def test_at_equal_budgets_the_one_that_spends_more_is_stopped_earlier(compare, tmp_path):
    make = np.random.default_rng(0)
    losses = {}
    for sampler, batch in (("delta", 50), ("uniform", 25)):
        for seed in range(5):
            losses[sampler, seed] = make.gamma(2.0, 1.0, (5, 12, 6))
            folder = tmp_path / "sweep" / f"{sampler}{seed}"
            write_run(folder, losses[sampler, seed], seed=seed, sampler=sampler, meta_batch=batch, trained=15)
    output = succeed(compare("sweep", "--budget", "tasks_adapted")).stdout
    assert "12 tasks after 1,000 tasks adapted" in output
    assert "delta at meta-step 20; uniform at meta-step 40" in output
    folder = tmp_path / "sweep" / "comparison_tasks_adapted"
    data = read_page(folder / "index.html")
    assert (data["unit"], data["points"]) == ("tasks adapted", [0, 500, 1000])
    over = {each["unit"]: each["places"] for each in data["across"]}
    assert list(over) == ["tasks adapted", "meta-steps", "tasks trained"]
    assert over["meta-steps"] == {"delta": [0, 10, 20], "uniform": [0, 20, 40]}
    assert over["tasks trained"] == {"delta": [0, 150, 300], "uniform": [0, 300, 600]}
    with (folder / "statistics.csv").open() as file:
        rows = {(row["sampler"], row["metric"], row["inner_step"]): row for row in csv.DictReader(file)}
    for sampler, place in (("delta", 2), ("uniform", 4)):
        row = rows[sampler, "mean", "5"]
        assert row["tasks_adapted"] == "1000"
        assert float(row["value"]) == pytest.approx(np.mean([losses[sampler, s][place, :, 5].mean() for s in range(5)]))


def test_runs_of_before_tasks_were_counted_are_compared_by_meta_steps(compare, tmp_path):
    for sampler in ("delta", "uniform"):
        write_run(tmp_path / "sweep" / sampler, sampler=sampler, counted=False)
    process = compare("sweep", "--budget", "tasks_trained")
    assert process.returncode == 1
    assert process.stderr == "twmaml: --budget tasks_trained: sweep/delta is of before tasks trained were counted\n"
    succeed(compare("sweep"))
    assert [each["unit"] for each in read_page(tmp_path / "sweep/comparison/index.html")["across"]] == ["meta-steps"]


def test_the_page_holds_what_the_table_says(sweep, compare, tmp_path):
    succeed(compare("sweep", "--output", "elsewhere"))
    data = read_page(tmp_path / "elsewhere" / "index.html")
    assert [sampler["name"] for sampler in data["samplers"]] == ["delta", "uniform", "weighted"]
    assert data["baseline"] == "uniform"
    assert (data["inner_steps"], data["points"]) == ([0, 1, 5], [0, 10, 20])
    for sampler in data["samplers"]:
        for seed, folder in enumerate(sampler["folders"]):
            assert (tmp_path / "elsewhere" / folder["href"] / "summary.json").exists()
            curve = data["curves"]["mean"]["5"][sampler["name"]]["runs"][seed]
            expected = [of_step[:, 5].mean() for of_step in sweep[sampler["name"], seed]]
            np.testing.assert_allclose(curve, expected, rtol=1e-3)
    (values,) = data["heatmaps"]["values"]
    expected = np.mean([sweep["delta", seed][1, :, 1] for seed in range(5)], axis=0)
    np.testing.assert_allclose(values["1"]["10"]["delta"], expected, rtol=1e-3)
    (view,) = data["heatmaps"]["views"]
    assert (view["x"]["name"], view["y"]["unit"]) == ("amplitude", "°")
    assert set(data["differences"]["cvar_10"]["1"]) == {"delta", "weighted"}
    metrics = {metric["key"]: metric.get("tails") for metric in data["metrics"]}
    keys = {key if tail is None else f"{key}_{tail}" for key, tails in metrics.items() for tail in tails or [None]}
    assert keys == set(data["curves"]) == set(data["improvement"])


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(columns, sweep, compare):
    output = succeed(compare("sweep", "--full", columns=columns)).stdout
    tables = [line for line in output.splitlines() if line.startswith(("┏", "│"))]
    assert tables
    assert max(map(len, tables)) <= columns


def test_one_run_is_described_without_intervals(compare, tmp_path):
    write_run(tmp_path / "run", np.random.default_rng(0).gamma(2.0, 1.0, (3, 12, 6)))
    output = succeed(compare("run")).stdout
    assert "With one seed little can be concluded: no interval can be given." in output
    assert "difference to" not in output
    assert read_page(tmp_path / "run" / "comparison" / "index.html")["baseline"] == "uniform"


def test_another_baseline(sweep, compare, tmp_path):
    output = succeed(compare("sweep", "--full", "--baseline", "delta")).stdout
    assert "gainst delta, " in output or "apart from delta" in output
    assert "difference to delta" in output


def test_diverged_tasks_are_told(compare, tmp_path):
    losses = np.ones((3, 12, 6))
    losses[-1, 3, 5] = np.inf
    for seed in range(2):
        write_run(tmp_path / "sweep" / str(seed), losses if seed else np.ones((3, 12, 6)), seed=seed)
    output = succeed(compare("sweep")).stdout
    assert "uniform: after 5 inner steps up to 8.33 % of a run's tasks have diverged" in output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["empty"], "empty: no finished run in there"),
        (["sweep", "--split", "seen"], "--split seen: must be one of eval"),
        (["sweep", "--baseline", "nothing"], "--baseline nothing: must be one of delta, uniform, weighted"),
        (["sweep", "--budget", "tasks"], "--budget tasks: must be one of meta_steps, tasks_adapted, tasks_trained"),
        (["sweep", "--output", "file"], "cannot read or write file"),
    ],
)
def test_a_mistake_ends_in_one_line(arguments, line, sweep, compare, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    process = compare(*arguments)
    assert process.returncode == 1
    assert process.stderr.startswith(f"twmaml: {line}")
    assert len(process.stderr.splitlines()) == 1


def interval(low, high, **more):
    return {"_target_": "twmaml.space.axis.Interval", "low": low, "high": high, "cells": 4, **more}


@pytest.mark.parametrize("module", ["twmaml.tasks.sinusoid", "a_module_of_ones_own"])
def test_pictures_are_drawn_by_families_that_may_be_built(module, compare, tmp_path):
    x = np.linspace(-5, 5, 9)
    arrays = {"x": x, "targets": np.sin(x), "predictions": np.zeros((6, 9)), "support_inputs": x, "support_targets": x}
    pictures = Pictures(np.asarray(GRID.centres()[:3]), {name: np.stack([array] * 3) for name, array in arrays.items()})
    axes = {"amplitude": interval(0.0, 4.0), "phase": interval(0.0, 180.0, unit="deg")}
    family = {"_target_": f"{module}.Sinusoid", **axes, "frequency": 1.0, "x_low": -5.0, "x_high": 5.0}
    (tmp_path / "a_module_of_ones_own.py").write_text("open('executed', 'w')")
    write_run(tmp_path / "run", task_config=family, pictures=pictures)
    write_split(tmp_path / "run", "seen", np.ones((3, 12, 6)))
    drawn = {}
    for split, folder in (("eval", "comparison"), ("seen", "comparison_seen")):
        succeed(compare("run", "--split", split))
        drawn[split] = {path.stem for path in (tmp_path / "run" / folder / "figures").iterdir()}
    assert ("pictures" in drawn["eval"]) == module.startswith("twmaml.")
    assert "pictures" not in drawn["seen"]  # they are of tasks of eval
    assert not (tmp_path / "executed").exists()


def test_a_real_sweep_can_be_compared(train, compare, tmp_path):
    succeed(train("--multirun", "sampler=delta,uniform", "seed=[0,1]", "hydra.sweep.dir=sweep"))
    output = succeed(compare("sweep")).stdout
    assert "sin2d: 2 samplers, 2 seeds each, 12 tasks after 60 meta-steps" in output
    assert "Left out" not in output
    figures = {path.stem for path in (tmp_path / "sweep" / "comparison" / "figures").iterdir()}
    assert figures == {*FIGURES, "pictures"}
    data = read_page(tmp_path / "sweep" / "comparison" / "index.html")
    assert any(item["key"] == "sampler._target_" for item in data["configuration"])
    href = data["samplers"][0]["folders"][1]["href"]
    assert os.path.exists(tmp_path / "sweep" / "comparison" / href / "metrics.csv")
