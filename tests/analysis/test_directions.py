"""A family with an accuracy, of which more is better, on an axis of kinds: it leads, and better is higher."""

import csv
import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from rich.console import Console

from tests.conftest import ACCURACY, SCORE, write_run
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.figures import FIGURES, draw_comparison
from twmaml.analysis.finished_runs import group_runs, read_runs
from twmaml.analysis.page_data import page_data
from twmaml.analysis.tables import print_tables, write_cells, write_statistics
from twmaml.space.axis import Categories, Interval
from twmaml.space.grid import ParameterGrid
from twmaml.storage.pictures_file import Pictures

KINDS = ["Alpha", "Beta", "Gamma"]
GRID = ParameterGrid({"kind": Categories(KINDS), "noise": Interval(0.0, 1.0, 4)})
SEEDS = 4


def write_sweep(folder, diverged=()):
    """`good` has more accuracy than `uniform` in every task, and more loss; `bad` the reverse."""
    random = np.random.default_rng(0)
    written = {}
    for seed in range(SEEDS):
        common = random.uniform(40, 60, (2, 12, 6))
        for name, more in (("good", 20.0), ("uniform", 0.0), ("bad", -20.0)):
            accuracy = common + more + random.uniform(0, 5, common.shape)
            losses = np.exp(accuracy / 100)
            if (name, seed) in diverged:
                losses[-1, 0, 1:] = 1e6
            pictures = Pictures(np.zeros((3, 2)), {"height": np.arange(3.0)})
            further = [(ACCURACY, accuracy)]
            place = folder / f"{name}{seed}"
            write_run(place, losses, seed=seed, sampler=name, grid=GRID, further=further, pictures=pictures)
            written[name, seed] = accuracy
    return written


def draw_line(axes, picture):
    axes.plot([0, 1], 2 * [float(picture["height"])], label="a line")


def comparison_of(folder):
    return Comparison(group_runs(read_runs([folder])[0]), "uniform", draw_line)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return write_sweep(folder), comparison_of(folder)


def arm_of(comparison, name):
    return next(arm for arm in comparison.arms if arm.name == name)


def test_accuracy_leads_and_the_score_keeps_its_keys(sweep):
    accuracy, comparison = sweep
    assert comparison.lead == ACCURACY
    assert comparison.metrics == [SCORE, ACCURACY]
    assert next(iter(comparison.measures)) == "accuracy_mean"
    assert {"mean", "sd", "worst_task", "cvar_10", "diverged", "accuracy_sd", "accuracy_cvar_5"} < set(
        comparison.measures
    )
    expected = np.mean([accuracy["good", seed][-1].mean(axis=0) for seed in range(SEEDS)], axis=0)
    found = comparison.estimates["accuracy_mean", "good"]
    np.testing.assert_allclose(found.value[-1], expected)
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()


def test_tails_and_the_worst_are_low(sweep):
    accuracy, comparison = sweep
    of_runs = np.array([accuracy["good", seed][-1] for seed in range(SEEDS)])
    worst = comparison.estimates["accuracy_worst_task", "good"].value[-1]
    np.testing.assert_allclose(worst, of_runs.min(axis=1).mean(axis=0))
    tail = comparison.estimates["accuracy_cvar_30", "good"].value[-1]
    assert (worst < tail).all()
    assert (tail < comparison.estimates["accuracy_mean", "good"].value[-1]).all()
    found = comparison.worst_task(arm_of(comparison, "good"), 5)
    assert found is not None
    assert found.value == of_runs[..., 5].min()
    assert comparison.maps(arm_of(comparison, "good"), -1) == pytest.approx(of_runs.mean(axis=0))


def test_more_is_better_in_differences_and_probabilities(sweep):
    _, comparison = sweep
    for name, sign in (("good", 1), ("bad", -1)):
        estimate = comparison.differences["accuracy_mean", name].estimate
        assert (sign * np.array(estimate) > 0).all()
        assert (estimate.low <= estimate.high).all()
        assert (sign * comparison.differences["mean", name].estimate.value > 0).all()  # the loss is the other way
    assert (comparison.improvement("accuracy_mean")["good", "bad"].value == 1).all()
    assert (comparison.improvement("mean")["good", "bad"].value == 0).all()


def test_a_spread_is_better_when_it_is_low_whatever_it_is_of(sweep):
    _, comparison = sweep
    assert comparison.measures["accuracy_mean"].higher_is_better
    assert not comparison.measures["accuracy_sd"].higher_is_better
    assert not comparison.measures["accuracy_task_interval"].higher_is_better
    assert not comparison.measures["diverged"].higher_is_better


def test_a_task_that_diverged_in_one_run_is_left_out_of_both(tmp_path):
    accuracy = write_sweep(tmp_path, diverged={("good", 1)})
    comparison = comparison_of(tmp_path)
    kept = {seed: slice(1 if seed == 1 else 0, None) for seed in range(SEEDS)}
    pairs = [(accuracy["good", seed] - accuracy["uniform", seed])[-1, kept[seed], 5].mean() for seed in range(SEEDS)]
    assert comparison.differences["accuracy_mean", "good"].estimate.value[5] == pytest.approx(np.mean(pairs))
    assert comparison.differences["diverged", "good"].estimate.value[5] == pytest.approx(100 / 12 / SEEDS)
    found = comparison.difference_maps(arm_of(comparison, "good"), -1)
    assert found is not None
    first = [(accuracy["good", seed] - accuracy["uniform", seed])[-1, 0, 5] for seed in range(SEEDS) if seed != 1]
    assert found[0, 5] == pytest.approx(np.mean(first))
    assert comparison.difference_maps(arm_of(comparison, "uniform"), -1) is None


def axes_of(name, comparison):
    figure = FIGURES[name](comparison)
    assert figure is not None
    figure.draw_without_rendering()
    return figure.axes


def test_every_figure_is_drawn(sweep, tmp_path, caplog):
    paths = draw_comparison(sweep[1], tmp_path, lambda _: None)
    assert {path.stem for path in paths} == set(FIGURES)
    assert not caplog.records


def test_heatmaps_are_blue_where_accuracy_is_gained_and_name_the_kinds(sweep):
    panels = [axes for axes in axes_of("heatmaps", sweep[1]) if axes.images]
    ends = {}
    for axes in panels:
        name, kind = axes.get_title().split("\n")
        image = axes.images[0]
        ends[name, kind] = image.cmap(image.norm(np.asarray(image.get_array()).mean()))[:3]
        assert [label.get_text() for label in axes.get_xticklabels()] == KINDS
    red, _, blue = ends["good", "difference"]
    assert blue > red
    red, _, blue = ends["bad", "difference"]
    assert red > blue
    assert sum(ends["good", "accuracy"]) < sum(ends["bad", "accuracy"])  # dark is good


def test_arrows_point_to_what_is_better(sweep):
    arrows = {axes.get_title(): axes.get_xlabel() for axes in axes_of("differences", sweep[1])}
    for title, arrow in arrows.items():
        assert arrow.endswith("→") == ("standard deviation" not in title)


def test_axes_of_the_leading_metric_are_linear_and_labelled(sweep):
    for name in ("learning_curves", "inner_steps", "parameters"):
        assert {axes.get_yscale() for axes in axes_of(name, sweep[1])} == {"linear"}
    (axes,) = axes_of("distribution", sweep[1])
    assert ACCURACY.label in axes.get_xlabel()
    for line in axes.lines:
        share = np.asarray(line.get_ydata())
        assert np.all(np.diff(share[np.isfinite(share)]) >= 0)  # more cells have at most a higher accuracy


def test_pictures_are_drawn_as_the_family_says_in_the_colour_of_the_sampler(sweep):
    panels = axes_of("pictures", sweep[1])
    assert [np.asarray(axes.lines[0].get_ydata())[0] for axes in panels[:3]] == [0, 1, 2]
    assert len({to_rgb(axes.lines[0].get_color()) for axes in panels}) == 3
    assert all("kind Alpha" in axes.get_title() for axes in panels)
    assert FIGURES["pictures"](Comparison(sweep[1].arms, "uniform")) is None  # nobody there who could draw them


def test_visits_of_tasks_without_cells_are_not_drawn(sweep, tmp_path):
    write_sweep(tmp_path)
    for path in tmp_path.glob("uniform*/evaluation/*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{name: array for name, array in arrays.items() if name not in ("visits", "queue_losses")})
    comparison = comparison_of(tmp_path)
    assert FIGURES["visits"](comparison) is None
    assert np.isnan(comparison.health["queue/loss_rank_correlation", "uniform"].value).all()
    assert not np.isnan(comparison.health["queue/loss_rank_correlation", "good"].value).any()


def test_tables_begin_with_accuracy_and_say_which_sign_is_better(sweep, tmp_path):
    console = Console(width=300, record=True, file=io.StringIO())
    print_tables(console, sweep[1], [], full=True)
    lines = console.export_text().splitlines()
    assert lines[1].strip().startswith("accuracy [%]")
    assert any("+ is better" in line and "- is better" in line for line in lines)
    assert any("kind Alpha" in line or "kind Beta" in line or "kind Gamma" in line for line in lines)
    write_statistics(sweep[1], tmp_path / "statistics.csv")
    with (tmp_path / "statistics.csv").open() as file:
        rows = {(row["sampler"], row["metric"], row["inner_step"]): row for row in csv.DictReader(file)}
    assert float(rows["good", "accuracy_mean", "5"]["difference"]) > 0
    assert set(sweep[1].measures) == {metric for _, metric, _ in rows}


def test_every_cell_has_a_row_that_says_where_it_lies(sweep, tmp_path):
    accuracy, comparison = sweep
    write_cells(comparison, tmp_path / "cells.csv")
    with (tmp_path / "cells.csv").open() as file:
        rows = {
            (row["sampler"], row["metric"], row["kind"], row["noise"], row["inner_step"]): row
            for row in csv.DictReader(file)
        }
    assert len(rows) == 3 * 2 * 3 * 4 * 3
    of_cells = np.mean([accuracy["good", seed][-1] for seed in range(SEEDS)], axis=0)
    for i, (kind, noise) in enumerate(itertools.product(KINDS, ("0.125", "0.375", "0.625", "0.875"))):
        for k in (0, 1, 5):
            row = rows["good", "accuracy", kind, noise, str(k)]
            assert float(row["value"]) == pytest.approx(of_cells[i, k])
            assert float(row["low"]) < float(row["value"]) < float(row["high"])
            assert (row["seeds"], row["meta_step"]) == ("4", "10")


def test_the_page_knows_directions_groups_and_kinds(sweep, tmp_path):
    data = page_data(sweep[1], [], tmp_path)
    metrics = {metric["key"]: metric for metric in data["metrics"]}
    up = {key for key, metric in metrics.items() if metric.get("higher_is_better")}
    spreads = {"accuracy_sd", "accuracy_task_interval"}
    assert up == {key for key in metrics if key.startswith("accuracy_")} - spreads
    assert metrics["accuracy_cvar"]["tails"] == metrics["cvar"]["tails"]
    assert metrics["accuracy_mean"]["group"] != metrics["mean"]["group"]
    assert data["metrics"][0]["key"] == "accuracy_mean"
    heatmaps = data["heatmaps"]
    assert heatmaps["higher_is_better"]
    assert heatmaps["linear"]
    (view,) = heatmaps["views"]
    assert view["x"]["cells"] == [label for _, label in view["x"]["ticks"]] == KINDS
    assert "ticks" not in view["y"]
    (differences,) = heatmaps["differences"]
    assert set(differences["5"]["10"]) == {"good", "bad"}
    assert min(differences["5"]["10"]["good"]) > 0
