from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from tests.conftest import SAMPLERS
from twmaml.samplers.base import View
from twmaml.samplers.cells import _find, _high_product, _thresholds, draw_cells, is_distribution
from twmaml.samplers.epsilon_greedy import EpsilonGreedy
from twmaml.samplers.proportional import Proportional
from twmaml.samplers.uniform import Uniform
from twmaml.space.axis import Interval
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import empty_queue

SPIKE = optax.join_schedules([optax.constant_schedule(e) for e in (0.5, 2.0, 0.1)], [5000, 8000])
STEP = jnp.int32(5)
values = st.one_of(st.just(float("nan")), st.floats(0, 2.0**100, width=32))
signals = st.sampled_from([1, 12]).flatmap(lambda n: st.lists(values, min_size=n, max_size=n))


def queue_with(losses, deltas=None, visits=None):
    losses = jnp.asarray(losses, jnp.float32)
    deltas = losses if deltas is None else jnp.asarray(deltas, jnp.float32)
    visits = (~jnp.isnan(losses)).astype(jnp.int32) if visits is None else jnp.asarray(visits, jnp.int32)
    return empty_queue(losses.size)._replace(losses=losses, deltas=deltas, visits=visits)


def p_of(sampler, queue, step=STEP):
    grid = ParameterGrid({"a": Interval(0.0, 1.0, queue.losses.size)})
    return sampler.probabilities(grid, View(queue, sampler.init(grid), step))


@given(signals)
@pytest.mark.parametrize("name", SAMPLERS)
def test_probabilities_are_a_distribution_whatever_the_queue_holds(name, losses):
    probabilities = jax.jit(partial(p_of, SAMPLERS[name]))(queue_with(losses))
    assert is_distribution(probabilities)
    p = np.asarray(probabilities, float)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(), 1, atol=1e-5)


@pytest.mark.parametrize("p", [[0.5, 0.6], [0.5, 0.4], [1.5, -0.5], [0.5, np.nan], [0.0, 0.0], [np.inf, 0.0]])
def test_what_is_no_distribution(p):
    assert not is_distribution(jnp.array(p))


def test_proportional_follows_its_formula():
    losses = np.array([1.0, 2.0, 5.0])
    p = p_of(Proportional("losses", False, uniform_fraction=0.1), queue_with(losses))
    np.testing.assert_allclose(p, 0.9 * losses / 8 + 0.1 / 3, rtol=1e-6)


def test_unvisited_cells_take_the_mean_priority_of_the_visited_ones():
    p = p_of(Proportional("losses", False, uniform_fraction=0.0), queue_with([1.0, np.nan, 3.0]))
    np.testing.assert_allclose(p, [1 / 6, 2 / 6, 3 / 6], rtol=1e-6)
    p = p_of(Proportional("losses", False, uniform_fraction=0.0, initial=8.0), queue_with([1.0, np.nan, 3.0]))
    np.testing.assert_allclose(p, [1 / 12, 8 / 12, 3 / 12], rtol=1e-6)


@pytest.mark.parametrize("losses", [[np.nan] * 4, [0.0] * 4])
def test_without_any_priority_every_cell_is_alike(losses):
    for signal in ("losses", "deltas"):
        np.testing.assert_allclose(p_of(Proportional(signal, False), queue_with(losses)), 0.25, rtol=1e-6)


def test_greedy_shares_the_maximum_among_ties():
    p = p_of(EpsilonGreedy(0.2), queue_with([1.0, 7.0, 7.0, np.nan]))
    np.testing.assert_allclose(p, [0.05, 0.45, 0.45, 0.05], rtol=1e-6)


def test_epsilon_follows_its_schedule():
    sampler = EpsilonGreedy(optax.linear_schedule(1.0, 0.0, 100))
    queue = queue_with([1.0, 2.0])
    for step in (0, 25, 100, 200):
        epsilon = max(0.0, 1 - step / 100)
        np.testing.assert_allclose(sampler.metrics(View(queue, (), jnp.int32(step)))["epsilon"], epsilon, atol=1e-6)
        np.testing.assert_allclose(p_of(sampler, queue, jnp.int32(step)), [epsilon / 2, 1 - epsilon / 2], atol=1e-6)


def test_burn_in_draws_unvisited_cells_first_then_only_the_largest_loss():
    sampler = EpsilonGreedy(0.0, burn_in=True)
    np.testing.assert_allclose(p_of(sampler, queue_with([9.0, np.nan, 1.0, np.nan])), [0, 0.5, 0, 0.5], atol=1e-7)
    np.testing.assert_allclose(p_of(sampler, queue_with([9.0, 2.0, 1.0, 0.0])), [1, 0, 0, 0], atol=1e-7)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=9, max_size=9), st.floats(0.01, 1))
def test_the_expected_importance_weight_is_one_and_bounded(losses, fraction):
    p = p_of(Proportional("losses", True, uniform_fraction=fraction), queue_with(losses))
    p = np.asarray(p, float)
    weights = 1 / (p.size * p)
    np.testing.assert_allclose((p * weights).sum(), 1, rtol=1e-5)
    assert weights.max() <= 1 / fraction * (1 + 1e-5)


def test_uniform_draws_reach_all_cells_alike_and_those_of_a_subclass_follow_its_own_rule(grid):
    class OnlyTheFifth(Uniform):
        def probabilities(self, grid, view):
            return jnp.zeros(grid.size).at[5].set(1.0)

    view = View(empty_queue(grid.size), (), STEP)
    cells, probability = Uniform().draw_cells(jax.random.key(0), grid, view, 20_000)
    assert stats.chisquare(np.bincount(cells, minlength=grid.size)).pvalue > 1e-3
    np.testing.assert_allclose(probability(cells[:3]), 1 / grid.size)
    np.testing.assert_allclose(Uniform().entropy(grid, view), np.log(grid.size), rtol=1e-6)
    cells, probability = OnlyTheFifth().draw_cells(jax.random.key(0), grid, view, 50)
    np.testing.assert_array_equal(cells, 5)
    np.testing.assert_array_equal(probability(cells), 1)
    assert OnlyTheFifth().entropy(grid, view) == 0


@pytest.mark.parametrize("name", ["importance", "importance_delta", "interpolated_importance"])
def test_weights_of_draws_average_to_one_and_match_the_density(name, grid):
    sampler = SAMPLERS[name]
    losses = jax.random.uniform(jax.random.key(3), (grid.size,)) ** 3
    draw = sampler.draw(jax.random.key(4), grid, View(queue_with(losses), (), STEP), 200_000)
    weights = np.asarray(draw.weights, float)
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(weights.size)
    assert weights.std() > 0.1
    # Weighted, the tasks are uniform again: what importance sampling promises.
    position = np.asarray(grid._position(draw.tasks)) / grid.shape
    np.testing.assert_allclose((weights[:, None] * position).mean(axis=0), 0.5, atol=0.02)


@pytest.mark.parametrize("name", ["uniform", "epsilon_greedy", "weighted", "delta", "interpolated"])
def test_without_importance_all_weights_are_one(name, grid):
    losses = jax.random.uniform(jax.random.key(3), (grid.size,))
    draw = SAMPLERS[name].draw(jax.random.key(4), grid, View(queue_with(losses), (), STEP), 10)
    assert (np.asarray(draw.weights) == 1).all()


def test_a_drawn_task_lies_in_the_cell_that_is_recorded(sampler, grid):
    losses = jax.random.uniform(jax.random.key(3), (grid.size,))
    draw = sampler.draw(jax.random.key(4), grid, View(queue_with(losses), (), STEP), 1000)
    assert np.mean(np.asarray(grid.locate(draw.tasks)) == np.asarray(draw.cells)) > 0.999


@pytest.mark.parametrize("cells", [1, 2, 7, 100, 1764])
def test_draws_follow_the_distribution(cells):
    p = np.asarray(jax.random.uniform(jax.random.key(cells), (cells,)), float) ** 4
    p[::5] = 0 if cells > 2 else p[::5]
    p /= p.sum()
    n = 300_000
    counts = np.bincount(np.asarray(draw_cells(jax.random.key(1), jnp.asarray(p, jnp.float32), n)), minlength=cells)
    assert counts[p == 0].sum() == 0
    likely = p * n >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(p[likely], p[~likely].sum()) * n
    keep = expected > 0
    if keep.sum() > 1:
        assert stats.chisquare(observed[keep], expected[keep]).pvalue > 1e-3


def test_on_a_million_cells_every_cell_of_positive_probability_can_be_drawn():
    side = 1000
    # Twelve decades, and now and then a cell that holds most of its block: the worst for cumulative sums.
    p = 10 ** np.random.default_rng(0).uniform(-12, 0, side * side)
    p[:: 7 * side] = 1e3
    p[3::11] = 0.0
    p = (p / p.sum()).astype(np.float32)

    flat = jnp.cumsum(jnp.asarray(p))
    never = np.mean(np.diff(np.asarray(flat), prepend=0)[p > 0] <= 0)
    assert never > 0.01  # what a flat float32 cumulative sum does to the same distribution

    blocks = jnp.asarray(p).reshape(side, side)
    for level in (blocks, jnp.sum(blocks, axis=1)[None]):
        thresholds = np.asarray(_thresholds(level)).astype(np.int64)
        interval = np.diff(thresholds, prepend=0, axis=1)
        assert ((interval > 0) == (np.asarray(level) > 0)).all()
        assert (thresholds[:, -1] >= 2**31).all()
        np.testing.assert_allclose(interval / thresholds[:, -1:], level / level.sum(axis=1, keepdims=True), atol=1e-6)


@given(st.lists(st.integers(0, 2**20), min_size=5, max_size=5).filter(any), st.data())
def test_a_number_falls_on_the_interval_that_holds_it(intervals, data):
    scaled = [i * (2**31 // sum(intervals)) for i in intervals]
    thresholds = np.cumsum(scaled)
    index = data.draw(st.sampled_from([i for i, width in enumerate(scaled) if width]))
    for number in (thresholds[index] - scaled[index], thresholds[index] - 1):
        bits = -(-(int(number) << 32) // int(thresholds[-1]))  # the smallest that the high product turns into it
        found = _find(jnp.asarray(thresholds, jnp.uint32), jnp.asarray([[bits]], jnp.uint32))
        assert found[0] == index


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_the_high_product_is_exact(a, b):
    assert int(_high_product(jnp.uint32(a), jnp.uint32(b))) == (a * b) >> 32


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan"), "much", optax.linear_schedule(1.0, -0.5, 1000), SPIKE])
def test_an_epsilon_outside_its_range_is_refused(epsilon):
    with pytest.raises(ValidationError, match=r"epsilon must .* \[0, 1\]"):
        EpsilonGreedy(epsilon)


def test_a_sampler_adds_up_on_a_one_cell_grid():
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 1)})
    for sampler in SAMPLERS.values():
        draw = sampler.draw(jax.random.key(0), grid, View(empty_queue(1), (), jnp.int32(0)), 5)
        assert (np.asarray(draw.cells) == 0).all()
        np.testing.assert_allclose(draw.weights, 1, rtol=1e-6)


@pytest.mark.parametrize("loss", [0.1, 0.3, 1 / 3, 1e-7, 12345.678])
def test_unvisited_cells_are_as_good_as_equal_visited_ones(loss):
    queue = queue_with([loss] * 37 + [np.nan] * 5)
    np.testing.assert_allclose(p_of(EpsilonGreedy(0.0), queue), 1 / 42, rtol=1e-6)
