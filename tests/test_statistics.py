"""Statistics of evaluations: directions, tails, names and what has diverged."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.conftest import ACCURACY, SCORE
from twmaml.statistics import LOGGED, STATISTICS, as_cost, interquartile_mean, rank_correlation, summarize

LOSSES = arrays(np.float32, (12, 3), elements=st.floats(0.125, 100, width=32))


def further_of(figures):
    return {name.replace("/accuracy_", "/"): value for name, value in figures.items() if "/accuracy_" in name}


@given(LOSSES)
def test_a_metric_of_which_more_is_better_is_the_mirror_of_a_cost(losses):
    values = {"loss": losses, "accuracy": -losses}
    found = summarize(values, [SCORE, ACCURACY], 2)
    for name, value in further_of(found).items():
        if name.startswith("eval/step_"):
            continue
        expected = found[name] if "/std" in name else -found[name]
        assert value == expected or (math.isnan(value) and math.isnan(expected))
    assert found["eval/accuracy"] == -found["eval/loss"] or math.isnan(found["eval/loss"])


def test_the_tail_of_an_accuracy_is_its_low_end():
    accuracy = np.arange(1.0, 11.0)[:, None] * np.ones((1, 2))
    found = summarize({"loss": np.ones((10, 2)), "accuracy": accuracy}, [SCORE, ACCURACY], 1, "seen")
    assert found["seen/accuracy"] == 5.5
    assert found["seen/accuracy_worst"] == found["seen/accuracy_cvar_10"] == 1
    assert found["seen/accuracy_cvar_30"] == 2
    assert found["seen/accuracy_std"] > 0
    assert {name.partition("/")[0] for name in found} == {"seen"}


def test_the_score_alone_says_what_has_diverged():
    losses, accuracy = np.ones((4, 2)), np.array([[0.0], [50.0], [100.0], [100.0]]) * np.ones((1, 2))
    losses[0, 1], losses[3, 1] = np.inf, 1000.0
    found = summarize({"loss": losses, "accuracy": accuracy}, [SCORE, ACCURACY], 1)
    assert found["eval/diverged"] == 2
    assert found["eval/accuracy"] == 75
    assert found["eval/accuracy_worst"] == 50


def test_further_metrics_change_nothing_of_the_score():
    losses = np.random.default_rng(0).gamma(2.0, 1.0, (12, 6)).astype(np.float32)
    alone = summarize({"loss": losses}, [SCORE], 2)
    both = summarize({"loss": losses, "accuracy": losses}, [SCORE, ACCURACY], 2)
    assert {name: both[name] for name in alone} == alone


def test_every_statistic_has_a_name_and_a_label_of_its_own():
    for name in ("key", "label"):
        assert len({getattr(statistic, name) for statistic in STATISTICS}) == len(STATISTICS)
    assert len({statistic.column for statistic in LOGGED}) == len(LOGGED)


@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(-10, 10)))
def test_a_cost_turned_twice_is_itself(values):
    np.testing.assert_array_equal(as_cost(as_cost(values, ACCURACY), ACCURACY), values)
    np.testing.assert_array_equal(as_cost(values, SCORE), values)


@pytest.mark.parametrize("count", range(1, 12))
def test_the_interquartile_mean_is_scipys(count):
    values = np.random.default_rng(count).normal(size=(count, 2))
    np.testing.assert_array_equal(interquartile_mean(values), scipy.stats.trim_mean(values, 0.25))


def test_ranks_of_what_does_not_vary_have_no_correlation():
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
    assert math.isnan(rank_correlation(np.array([]), np.array([])))
    assert rank_correlation(np.array([1.0, 2.0, np.nan]), np.array([3.0, 5.0, 1.0])) == pytest.approx(1)
