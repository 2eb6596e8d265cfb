"""Each statistic against a computation from its definition, with plain NumPy and Python."""

import itertools
import json
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.analysis.test_finished_runs import change_summary
from tests.conftest import SCORE, write_run
from twmaml.analysis.alignment import BUDGETS, at_best, budgets_of, by_budget
from twmaml.analysis.budgets import at_budget, units_of
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import group_runs, read_runs
from twmaml.analysis.measures import TAILS, measures_of, run_statistics
from twmaml.analysis.resampling import (
    adjust_holm,
    difference,
    estimate,
    estimate_known,
    probability_of_improvement,
)
from twmaml.statistics import interquartile_mean, rank_correlation

MEASURES = measures_of([SCORE])

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def rng():
    return np.random.default_rng(0)


def spearman(first, second) -> Any:
    found: Any = scipy.stats.spearmanr(first, second)
    return found.statistic


def make_comparison(folder, losses, baseline: str | None = "uniform"):
    """Losses by sampler, [seeds, evaluations, tasks, inner steps + 1]."""
    for sampler, of_seeds in losses.items():
        for seed, of_seed in enumerate(of_seeds):
            write_run(folder / f"{sampler}{seed}", of_seed, seed=seed, sampler=sampler)
    return Comparison(group_runs(read_runs([folder])[0]), baseline)


@pytest.fixture
def losses():
    make = rng()
    return {name: make.gamma(2.0, scale, (5, 2, 24, 6)) for name, scale in (("delta", 0.8), ("uniform", 1.0))}


def test_statistics_follow_their_definitions():
    losses = rng().gamma(2.0, 1.0, (24, 6))
    found = run_statistics({"loss": losses}, [SCORE], draws=2)
    for k in range(6):
        cells = sorted(((losses[2 * i, k] + losses[2 * i + 1, k]) / 2 for i in range(12)), reverse=True)
        assert found["mean"][k] == pytest.approx(sum(cells) / 12)
        assert found["sd"][k] == pytest.approx(math.sqrt(sum((c - sum(cells) / 12) ** 2 for c in cells) / 12))
        assert found["iqm"][k] == pytest.approx(sum(cells[3:9]) / 6)
        assert found["worst_task"][k] == losses[:, k].max()
        assert found["task_interval"][k] == pytest.approx(1.96 * scipy.stats.sem(losses[:, k]))
        assert found["worst_cell"][k] == pytest.approx(cells[0])
        assert found["diverged"][k] == 0
        for key, each in (("cvar", cells), ("task_cvar", sorted(losses[:, k], reverse=True))):
            for tail in TAILS:  # the mean of the worst; one on the border counts with its share inside
                size = max(len(each) * tail / 100, 1)
                whole = int(size)
                part = (size - whole) * each[whole] if whole < len(each) else 0
                assert found[f"{key}_{tail}"][k] == pytest.approx((sum(each[:whole]) + part) / size)


def test_diverged_tasks_are_counted_and_left_out():
    losses = np.ones((10, 3))
    losses[3, 1:], losses[7, 2] = 1000.0, np.nan
    found = run_statistics({"loss": losses}, [SCORE], draws=1)
    assert list(found["diverged"]) == [0, 10, 20]
    assert list(found["mean"]) == list(found["worst_task"]) == [1, 1, 1]
    assert list(found["task_interval"]) == [0, 0, 0]


def test_a_single_task_has_no_interval():
    assert np.isnan(run_statistics({"loss": np.ones((1, 3))}, [SCORE], draws=1)["task_interval"]).all()


@pytest.mark.parametrize("aggregate", [np.mean, np.median, interquartile_mean])
def test_intervals_are_those_of_all_resamples(aggregate):
    """Of four seeds there are 4^4 equally likely resamples: the percentiles of all of them are the exact interval."""
    values = rng().gamma(1.0, 1.0, 4)
    found = estimate(values, aggregate)
    every = np.array([aggregate(np.array(r), axis=0) for r in itertools.product(values, repeat=4)])
    assert found.value == aggregate(values, axis=0)
    low, high = np.quantile(every, [0.025, 0.975])
    spread = every.std()
    assert found.low == pytest.approx(low, abs=0.1 * spread)
    assert found.high == pytest.approx(high, abs=0.1 * spread)


def test_intervals_shrink_with_the_number_of_seeds_and_cover_the_mean():
    make = rng()
    widths, hits = {}, 0
    for seeds in (10, 90):
        drawn = make.normal(0.0, 1.0, (seeds, 200))  # 200 experiments
        _, low, high = estimate(drawn, np.mean)
        widths[seeds] = (high - low).mean()
        hits = ((low < 0) & (high > 0)).mean()
    assert widths[10] / widths[90] == pytest.approx(3, rel=0.15)
    assert 0.9 < hits < 0.99  # 95 % intended


def test_one_seed_has_no_interval():
    value, low, high = estimate(np.array([[1.0, 2.0]]), np.mean)
    assert list(value) == [1, 2]
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert np.isnan(difference(np.array([1.0]), np.array([2.0]), np.mean).p)


def test_only_seeds_that_have_a_value_count():
    values = rng().normal(0, 1, (5, 4, 3))
    values[1, 2], values[:4, 0, 1], values[:, 3, 2] = np.nan, np.nan, np.nan
    found = estimate_known(values)
    for cell in np.ndindex(4, 3):
        known = values[(..., *cell)][~np.isnan(values[(..., *cell)])]
        expected = estimate(known, np.mean) if known.size else [np.nan] * 3
        np.testing.assert_allclose([part[cell] for part in found], expected)


def test_p_values_are_the_share_of_sign_flips():
    ours, theirs = rng().normal(0, 1, (2, 7))
    found = difference(ours, theirs, np.mean)
    flips = np.array([np.mean(np.array(signs) * (ours - theirs)) for signs in itertools.product([1, -1], repeat=7)])
    observed = np.mean(ours - theirs)
    assert found.estimate.value == pytest.approx(observed)
    assert found.p == pytest.approx((np.abs(flips) >= abs(observed) - 1e-12).mean())
    assert found.pairs == 7


def test_pairs_take_away_what_seeds_have_in_common():
    common = rng().normal(0, 100, 8)
    found = difference(common + 1 + 0.01 * rng().normal(0, 1, 8), common, np.mean)
    assert 0.9 < found.estimate.low < found.estimate.high < 1.1
    assert found.p == pytest.approx(2 / 2**8)


def test_a_run_without_a_value_has_no_difference_and_is_the_worst_of_all():
    ours, theirs = rng().normal(0, 1, (2, 5, 2))
    ours[3, 1] = np.nan
    found = difference(ours, theirs, np.mean)
    assert np.isfinite([*found.estimate, found.p])[:, 0].all()
    assert np.isnan([*found.estimate, found.p])[:, 1].all()
    better, worse = probability_of_improvement(ours, theirs).value, probability_of_improvement(theirs, ours).value
    np.testing.assert_allclose(better + worse, 1)
    wins = (np.delete(ours[:, 1], 3)[:, None] < theirs[:, 1]).sum()
    assert better[1] == wins / 25
    for measure in (MEASURES["mean_median"], MEASURES["mean_iqm"]):
        huge = np.where(np.isnan(ours), 1e9, ours)
        np.testing.assert_allclose(measure.aggregate(ours, axis=0), measure.aggregate(huge, axis=0))
        assert np.isnan(measure.aggregate(np.full(5, np.nan), axis=0))


def test_holm_by_hand():
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([0.01, math.nan])[0] == 0.01
    assert math.isnan(adjust_holm([0.01, math.nan])[1])


@given(P_VALUES)
def test_holm_rejects_what_the_sequential_procedure_rejects(p_values):
    level, order = 0.05, sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = set()
    for rank, i in enumerate(order):
        if p_values[i] * (len(p_values) - rank) > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjust_holm(p_values)) if p <= level} == rejected


def test_probability_of_improvement_is_that_of_mann_and_whitney():
    first, second = rng().integers(0, 6, (2, 9)).astype(float)  # with ties
    found = probability_of_improvement(first, second[:5])
    u = scipy.stats.mannwhitneyu(second[:5], first).statistic
    assert found.value == pytest.approx(u / 45)
    assert found.low <= found.value <= found.high
    turned = probability_of_improvement(second[:5], first)
    assert found.value + turned.value == pytest.approx(1)
    assert probability_of_improvement(first - 100, second) == pytest.approx((1, 1, 1))


def test_rank_correlation_is_spearmans():
    first, second = rng().normal(0, 1, (2, 30))
    first[4] = np.nan
    known = ~np.isnan(first)
    expected = spearman(first[known], second[known])
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def test_rliable_gives_the_same():
    library = pytest.importorskip("rliable.library", reason="a cross-check where it is installed")
    metrics = pytest.importorskip("rliable.metrics")
    scores = {name: rng().gamma(2.0, scale, (8, 1)) for name, scale in (("a", 1.0), ("b", 1.4))}
    points, intervals = library.get_interval_estimates(
        scores, lambda x: np.array([metrics.aggregate_mean(x), metrics.aggregate_iqm(x)]), reps=4000
    )
    for name, values in scores.items():
        for i, aggregate in enumerate((np.mean, interquartile_mean)):
            found = estimate(values[:, 0], aggregate)
            assert found.value == pytest.approx(points[name][i])
            width = intervals[name][1, i] - intervals[name][0, i]
            assert found.low == pytest.approx(intervals[name][0, i], abs=0.1 * width)
            assert found.high == pytest.approx(intervals[name][1, i], abs=0.1 * width)
    # rliable's scores are better when they are higher
    expected = metrics.probability_of_improvement(scores["b"], scores["a"])
    assert probability_of_improvement(scores["a"][:, 0], scores["b"][:, 0]).value == pytest.approx(expected)


def test_a_comparison_puts_every_run_in_its_place(tmp_path, losses):
    comparison = make_comparison(tmp_path, losses)
    assert [arm.name for arm in comparison.arms] == ["delta", "uniform"]
    for arm in comparison.arms:
        cells = losses[arm.name].reshape(5, 2, 12, 2, 6).mean(axis=3)  # 2 draws a cell
        np.testing.assert_allclose(comparison.values(arm, "mean"), cells.mean(axis=2))
        value, low, high = comparison.estimates["mean", arm.name]
        np.testing.assert_allclose(value, cells.mean(axis=(0, 2)))
        assert (low <= value).all()
        assert (value <= high).all()
        np.testing.assert_allclose(comparison.maps(arm, 1), cells[:, 1].mean(axis=0))
        worst = comparison.worst_task(arm, 5)
        assert worst is not None
        loss, task, seed = worst
        last = losses[arm.name][:, 1, :, 5]
        assert loss == last.max() == last[seed].max()
        i = last[seed].argmax() // 2
        assert task == pytest.approx({"amplitude": [0.5, 1.5, 2.5, 3.5][i // 3], "phase": [30.0, 90.0, 150.0][i % 3]})
    means = {name: of.reshape(5, 2, 24, 6).mean(axis=2)[:, 1] for name, of in losses.items()}
    found = comparison.differences["mean", "delta"]
    np.testing.assert_allclose(found.estimate.value, (means["delta"] - means["uniform"]).mean(axis=0))
    assert set(comparison.differences) == {(key, "delta") for key in MEASURES}


def test_cells_are_means_over_the_seeds_that_did_not_diverge(tmp_path, losses):
    losses["delta"][2, -1, 4:6, 1:] = np.inf  # both draws of a cell
    comparison = make_comparison(tmp_path, losses)
    cells = losses["delta"][:, -1].reshape(5, 12, 2, 6).mean(axis=2)[..., comparison.inner_steps]
    (value, low, high), seeds = comparison.cells(comparison.arms[0], SCORE)
    np.testing.assert_allclose(value, np.where(np.isinf(cells), np.nan, cells).mean(axis=0, where=np.isfinite(cells)))
    assert ((low < value) & (value < high)).all()
    assert seeds[2].tolist() == [5, 4, 4]
    assert (np.delete(seeds, 2, axis=0) == 5).all()


def test_protocols_are_told_with_their_samplers_where_they_differ(tmp_path, losses):
    make_comparison(tmp_path, losses)
    told = []
    for protocols in ({}, {"uniform": "5 ways"}, {"delta": "5 ways"}, {"delta": "2 ways"}):
        for name, text in protocols.items():
            for seed in range(5):
                change_summary(tmp_path / f"{name}{seed}", protocols={"eval": text, "seen": "others"})
        told.append(Comparison(group_runs(read_runs([tmp_path])[0]), "uniform").protocols)
    assert told == [[], ["5 ways (uniform)"], ["5 ways"], ["2 ways (delta)", "5 ways (uniform)"]]


def test_holm_counts_the_samplers(tmp_path):
    make = rng()
    losses = {name: make.gamma(2.0, 1.0, (5, 1, 12, 2)) for name in ("uniform", "a", "b", "c")}
    together = make_comparison(tmp_path / "all", losses).differences
    raw = []
    for name in "abc":
        pair = make_comparison(tmp_path / name, {n: losses[n] for n in ("uniform", name)}).differences
        raw.append(pair["mean", name].p)
    expected = [adjust_holm(list(column)) for column in np.transpose(raw)]
    np.testing.assert_allclose([together["mean", n].p for n in "abc"], np.transpose(expected))


def test_tasks_of_seeds_that_only_one_sampler_has_are_not_paired(tmp_path):
    losses = {"uniform": np.ones((4, 1, 12, 2)), "delta": np.full((6, 1, 12, 2), 2.0)}
    found = make_comparison(tmp_path, losses).differences["mean", "delta"]
    assert found.pairs == 4
    assert found.estimate.value[1] == pytest.approx(1)


def test_without_a_baseline_nothing_is_subtracted(tmp_path, losses):
    assert make_comparison(tmp_path, losses, baseline=None).differences == {}


def test_runs_of_different_length_are_compared_where_both_were_evaluated(tmp_path):
    write_run(tmp_path / "short", np.ones((3, 12, 6)), sampler="uniform")
    write_run(tmp_path / "long", np.ones((5, 12, 6)), sampler="delta")
    end = np.ones((5, 12, 6))
    end[3:, 4] = 7.0  # after the last evaluation that both have
    write_run(tmp_path / "longer", end, sampler="weighted")
    comparison = Comparison(group_runs(read_runs([tmp_path])[0]), "uniform")
    assert list(comparison.points) == [0, 10, 20]
    for arm in comparison.arms:
        worst = comparison.worst_task(arm, 5)
        assert worst is not None
        assert worst[0] == 1


def test_when_every_task_has_diverged_there_is_no_worst_one(tmp_path):
    losses = np.ones((2, 12, 6))
    losses[-1, :, 5] = np.inf
    write_run(tmp_path / "0", losses)
    comparison = Comparison(group_runs(read_runs([tmp_path])[0]), None)
    assert comparison.worst_task(comparison.arms[0], 5) is None
    assert comparison.worst_task(comparison.arms[0], 1) is not None


def test_budgets_are_spent_equally(tmp_path):
    falling = np.linspace(3, 1, 3)[:, None, None] * np.ones((3, 12, 6))  # at meta-steps 0, 10 and 20
    write_run(tmp_path / "small", falling, sampler="uniform", meta_batch=10)
    write_run(tmp_path / "large", falling, sampler="delta", meta_batch=20)
    comparison = Comparison(group_runs(read_runs([tmp_path])[0]), "uniform")
    assert at_budget(comparison, "meta-steps")[0] == 20
    budget, means = at_budget(comparison, "tasks adapted")
    assert budget == 200
    assert means["uniform"][0, 5] == pytest.approx(1)
    assert means["delta"][0, 5] == pytest.approx(2)  # half of its meta-steps
    assert at_budget(comparison, "seconds")[0] == pytest.approx(0.2)
    assert units_of(comparison) == ["meta-steps", "tasks adapted", "tasks trained", "seconds"]


def test_runs_of_before_tasks_were_counted_have_no_such_budget(tmp_path):
    write_run(tmp_path / "old", counted=False)
    write_run(tmp_path / "new", sampler="delta")
    comparison = Comparison(group_runs(read_runs([tmp_path])[0]), "uniform")
    assert units_of(comparison) == ["meta-steps", "seconds"]
    assert [budget.key for budget in budgets_of(comparison.runs)] == ["meta_steps"]


def evaluations_after(steps):
    """Losses that say after how many meta-steps they were measured."""
    return np.array(steps, float)[:, None, None] * np.ones((len(steps), 12, 6)) + 1


def test_at_equal_budgets_no_run_has_spent_more_than_the_others(tmp_path):
    write_run(tmp_path / "all", evaluations_after([0, 10, 20, 30, 40]), sampler="uniform", meta_batch=20)
    write_run(tmp_path / "some", evaluations_after([0, 10, 20, 30, 40]), sampler="delta", meta_batch=50, trained=15)
    runs = read_runs([tmp_path])[0]
    reached = {}
    for key in ("tasks_adapted", "tasks_trained"):
        comparison = Comparison(group_runs(runs), "uniform", align=partial(by_budget, budget=BUDGETS[key]))
        steps = [(comparison.values(arm, "mean")[0, :, 5] - 1).tolist() for arm in comparison.arms]
        reached[key] = comparison.points.tolist(), *steps
    assert reached["tasks_adapted"] == ([0, 500, 800], [0, 10, 10], [0, 20, 40])
    assert reached["tasks_trained"] == ([0, 200, 400, 600], [0, 10, 20, 40], [0, 10, 20, 30])


SPENT = st.lists(st.integers(1, 50), min_size=1, max_size=6).map(lambda steps: np.cumsum([0, *steps]))


@given(st.lists(SPENT, min_size=1, max_size=4))
def test_common_points_of_a_budget(spent):
    with tempfile.TemporaryDirectory() as folder:
        for seed, own in enumerate(spent):
            write_run(Path(folder) / str(seed), evaluations_after(range(len(own))), seed=seed)
        runs = read_runs([Path(folder)])[0]
    for run, own in zip(runs, spent, strict=True):
        run.metrics["train/tasks_trained"][:] = own
    found = by_budget(runs, BUDGETS["tasks_trained"])
    assert found.points[0] == 0
    assert found.points[-1] == min(own[-1] for own in spent)
    for run, own in zip(runs, spent, strict=True):
        places = found.places[run.folder]
        assert (own[places] <= found.points).all()
        assert all(np.append(own, np.inf)[places + 1] > found.points)
        assert (np.diff(places)[:-1] > 0).all()  # evaluated anew at each, but for the end of the one that spends least
        assert found.below(run) == pytest.approx(1 - own[places[-1]] / found.points[-1])


def test_at_their_best_runs_are_compared_wherever_that_is(tmp_path):
    for seed, best in ((0, 10), (1, 0), (2, 20)):
        write_run(tmp_path / str(seed), evaluations_after([0, 10, 20]), seed=seed)
        change_summary(tmp_path / str(seed), best_step=best)
    comparison = Comparison(group_runs(read_runs([tmp_path])[0]), None, align=at_best)
    assert comparison.values(comparison.arms[0], "mean")[:, 0, 5].tolist() == [11, 1, 21]
    change_summary(tmp_path / "1", best_step=None)
    with pytest.raises(ValueError, match="1 has no best checkpoint"):
        _ = Comparison(group_runs(read_runs([tmp_path])[0]), None, align=at_best).points


@pytest.mark.parametrize(
    ("changes", "harmed"),
    [
        ({"runs_at_once": 8}, ["delta"]),
        ({"runs_at_once": None}, ["uniform", "delta"]),  # as an older version wrote it
        ({"meta_steps_per_second": None}, ["delta"]),
        ({"device": "another"}, ["delta"]),
    ],
)
def test_speeds_that_were_not_measured_alike_are_no_budget(changes, harmed, tmp_path):
    for name in ("uniform", "delta"):
        write_run(tmp_path / name, sampler=name)
    for name in harmed:
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        (tmp_path / name / "summary.json").write_text(json.dumps(summary | changes))
    comparison = Comparison(group_runs(read_runs([tmp_path])[0]), "uniform")
    assert "seconds" not in units_of(comparison)


def test_health_tells_how_stale_the_queue_is(tmp_path):
    losses = rng().gamma(2.0, 1.0, (2, 12, 6))
    write_run(tmp_path / "0", losses)
    comparison = Comparison(group_runs(read_runs([tmp_path])[0]), "uniform")
    # The queue holds what was measured just now; visits grow with the number of the task.
    np.testing.assert_allclose(comparison.health["queue/loss_rank_correlation", "uniform"].value, 1)
    expected = [spearman(np.arange(12), of_step[:, 1]) for of_step in losses]
    np.testing.assert_allclose(comparison.health["queue/visit_rank_correlation", "uniform"].value, expected)
    np.testing.assert_allclose(comparison.health["queue/entropy", "uniform"].value, 1.5)
