"""Each sampler and weighting of the field against its rule, worked out by hand or by its authors' code."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import optimize, stats

from tests.conftest import FIELD
from twmaml.samplers.bandit import Bandit, share_weights
from twmaml.samplers.base import Draw, Report, View
from twmaml.samplers.cells import is_distribution
from twmaml.samplers.cross_entropy import CrossEntropy, beta_masses, worst
from twmaml.samplers.group_robust import GroupRobust
from twmaml.samplers.hard_tasks import HardTasks
from twmaml.samplers.learnability import Learnability
from twmaml.samplers.learning_progress import LearningProgress
from twmaml.samplers.level_replay import LevelReplay, rank_weights, spread_out
from twmaml.samplers.ordering import mean_of_same_cell
from twmaml.samplers.proportional import Proportional
from twmaml.samplers.risk_prediction import RiskPrediction, choose_apart, transposed_product
from twmaml.samplers.tail_risk import TailRisk, density_quantile, worst_part
from twmaml.samplers.task_robust import TaskRobust, onto_simplex
from twmaml.samplers.uniform import Uniform
from twmaml.samplers.uniform_difficulty import UniformDifficulty
from twmaml.space.axis import Categories, Interval
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import empty_queue, record

LINE = ParameterGrid({"a": Interval(0.0, 1.0, 6)})
losses_of_a_batch = st.lists(st.floats(0, 1e3, width=32), min_size=6, max_size=6)


def after(sampler, grid, batches):
    """The view after some batches, each a list of cells and one of scores."""

    @jax.jit
    def step(view, cells, scores):
        tasks = grid.sample_in(jax.random.fold_in(jax.random.key(9), view.step), cells)
        report = Report(Draw(tasks, cells, jnp.ones(cells.size)), scores, scores, view.queue)
        queue = record(view.queue, cells, scores, view.step)
        own = sampler.update(jax.random.key(view.step), grid, report, view._replace(queue=queue))
        return View(queue, own, view.step + 1)

    view = View(empty_queue(grid.size), sampler.init(grid), jnp.int32(0))
    for cells, scores in batches:
        view = step(view, jnp.array(cells, jnp.int32), jnp.array(scores, jnp.float32))
    return view


def weights_of(sampler, scores, grid=LINE, view=None, cells=None, weights=None):
    scores = jnp.asarray(scores, jnp.float32)
    cells = jnp.arange(scores.size, dtype=jnp.int32) % grid.size if cells is None else jnp.array(cells, jnp.int32)
    draw = Draw(jnp.zeros((scores.size, 1)), cells, jnp.ones(scores.size) if weights is None else jnp.asarray(weights))
    view = after(sampler, grid, []) if view is None else view
    return np.asarray(sampler.weigh(Report(draw, scores, scores, view.queue), view))


# Tail risk


@pytest.mark.parametrize(("confidence", "n", "kept"), [(0.7, 10, 3), (0.7, 25, 8), (0.95, 20, 1), (0.0, 7, 7)])
def test_the_tail_of_a_batch_is_its_worst_tasks_which_count_alike(confidence, n, kept):
    scores = np.random.default_rng(n).permutation(n) + 1.0
    weights = weights_of(TailRisk(confidence, "batch", Uniform()), scores)
    np.testing.assert_allclose(weights, np.where(scores > n - kept, n / kept, 0), rtol=1e-6)


def test_equal_losses_do_not_make_a_tail_longer():
    assert worst_part(jnp.ones(10), jnp.ones(10), 0.3).sum() == 3


@given(st.lists(st.floats(0, 100, width=32), min_size=8, max_size=8, unique=True), st.sampled_from([0.5, 0.7, 0.9]))
def test_the_density_quantile_is_that_of_scipy(values, level):
    values = np.array(values, np.float32)
    assume(values.std() > 1e-3)
    density = stats.gaussian_kde(values)  # Scott's rule, as in the authors' Listing 1
    low, high = float(values.min()), float(values.max())

    def excess(x):
        return density.integrate_box_1d(-np.inf, x) - level

    assume(excess(low) < 0 < excess(high))
    expected = float(optimize.root_scalar(excess, bracket=(low, high)).root)
    found = density_quantile(jnp.asarray(values), jnp.ones(8), level)
    np.testing.assert_allclose(found, expected, atol=1e-4 * (high - low))


def test_the_tail_by_density_is_what_lies_above_its_quantile():
    scores = np.array([0.1, 0.2, 0.3, 5.0, 0.15, 0.25])
    weights = weights_of(TailRisk(0.7, "density", Uniform()), scores)
    threshold = density_quantile(jnp.asarray(scores, jnp.float32), jnp.ones(6), 0.7)
    np.testing.assert_allclose(weights, np.where(scores > threshold, 1 / 0.3, 0), rtol=1e-5)
    assert weights[3] > 0


def test_the_tail_of_the_queue_is_what_lies_above_its_quantile():
    sampler = TailRisk(0.5, "queue", Uniform())
    np.testing.assert_array_equal(weights_of(sampler, [1.0, 9.0]), 1)  # the queue knows nothing yet
    view = after(sampler, LINE, [([0, 1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0, 5.0])])
    np.testing.assert_allclose(weights_of(sampler, [2.5, 3.5, 9.0], view=view), [0, 2, 2])


@pytest.mark.parametrize("quantile", ["batch", "queue"])
def test_importance_weighted_tail_risk_is_the_tail_risk_of_uniform_sampling(quantile):
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 40)})
    losses = np.random.default_rng(1).exponential(size=40).astype(np.float32)
    gradients = np.random.default_rng(2).normal(size=40)  # anything that is a function of the task
    expected = gradients[losses > np.quantile(losses, 0.75)].mean()
    sampler = TailRisk(0.75, quantile, Proportional("losses", True))
    view = after(sampler, grid, [(range(40), losses)])
    draw = sampler.draw(jax.random.key(0), grid, view, 1500)
    cells = np.asarray(draw.cells)
    assert losses[cells].mean() > 1.5 * losses.mean()  # it draws the tail
    report = Report(draw, jnp.asarray(losses[cells]), jnp.asarray(losses[cells]), view.queue)
    products = np.asarray(sampler.weigh(report, view), float) * gradients[cells]
    assert abs(products.mean() - expected) < 5 * products.std() / np.sqrt(products.size)


def test_a_proposal_keeps_its_tree_on_a_large_grid():
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 5000)})
    proposal = Proportional("losses", True)
    sampler, batch = TailRisk(0.5, "queue", proposal), (range(0, 5000, 50), np.arange(100.0))
    wrapped, alone = after(sampler, grid, [batch]), after(proposal, grid, [batch])
    assert len(jax.tree.leaves(alone.own)) > 0
    for one, other in zip(jax.tree.leaves(wrapped.own.proposal), jax.tree.leaves(alone.own), strict=True):
        np.testing.assert_array_equal(one, other)
    draw, expected = sampler.draw(jax.random.key(0), grid, wrapped, 9), proposal.draw(jax.random.key(0), grid, alone, 9)
    np.testing.assert_array_equal(draw.tasks, expected.tasks)


# Robust weightings


@given(st.lists(st.floats(-1, 2, width=32), min_size=12, max_size=12))
def test_the_projection_onto_the_simplex_is_that_of_optax(values):
    values = jnp.array(values, jnp.float32)
    found = jax.jit(onto_simplex)(values)
    np.testing.assert_allclose(found, optax.projections.projection_simplex(values), atol=1e-5)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)


def test_task_robust_ascends_and_projects():
    sampler = TaskRobust(0.1, Uniform())
    view = after(sampler, LINE, [([1, 1, 4], [1.0, 2.0, 0.5])])
    raised = np.full(6, 1 / 6) + 0.1 * np.array([0, 3.0, 0, 0, 0.5, 0])
    p = raised - (raised.sum() - 1) / 6  # none falls below 0
    np.testing.assert_allclose(view.own.weighting, p, rtol=1e-5)
    np.testing.assert_allclose(weights_of(sampler, [7.0, 7.0], view=view, cells=[1, 0]), 6 * p[[1, 0]], rtol=1e-5)
    np.testing.assert_array_equal(weights_of(sampler, [3.0, 5.0]), 1)


def test_group_robust_raises_visited_cells_by_the_exponential_of_their_mean_loss():
    sampler = GroupRobust(0.5, Uniform())
    view = after(sampler, LINE, [([1, 1, 4], [1.0, 2.0, 0.5])])
    q = np.exp([0, 0.5 * 1.5, 0, 0, 0.5 * 0.5, 0])
    q /= q.sum()
    np.testing.assert_allclose(np.exp(view.own.weighting), q, rtol=1e-5)
    q = q * np.exp([0.5 * 3.0, 0.5 * 7.0, 0, 0, 0, 0])
    q /= q.sum()
    np.testing.assert_allclose(weights_of(sampler, [7.0, 3.0], view=view, cells=[1, 0]), 6 * q[[1, 0]], rtol=1e-5)


@pytest.mark.parametrize("name", ["task_robust", "group_robust"])
def test_the_weights_of_robust_learning_average_to_one_over_cells(name, grid):
    sampler, rng = FIELD[name], np.random.default_rng(0)
    view = after(sampler, grid, [(rng.integers(0, grid.size, 8), rng.exponential(size=8)) for _ in range(30)])
    weights = weights_of(sampler, np.zeros(grid.size), grid, view, range(grid.size))
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-4)
    assert weights.std() > 1e-4


def test_uniform_difficulty_weighs_normal_losses_to_be_uniform():
    sampler = UniformDifficulty(0.9, Uniform())
    view = after(sampler, LINE, [])
    view = view._replace(own=view.own._replace(weighting=type(view.own.weighting)(jnp.float32(3), jnp.float32(0.25))))
    scores = np.array([3.0, 3.5, 1.8, 4.2, 1.0])  # z: 0, 1, -2.4, 2.4, -4
    ratio = np.array([1, np.exp(0.5), np.exp(2.88), np.exp(2.88), 0])
    expected = 5 * ratio * np.sqrt(2 * np.pi) / 5.16 / (ratio.sum() ** 2 / (ratio**2).sum())
    np.testing.assert_allclose(weights_of(sampler, scores, view=view), expected, rtol=1e-4)
    normal = np.random.default_rng(0).normal(3, 0.5, 20_000)
    weights = weights_of(sampler, normal, view=view)
    inside = abs(normal - 3) < 2.58 / 2
    low, high = (weights[inside & (side * (normal - 3) > 0.5)].sum() for side in (-1, 1))
    np.testing.assert_allclose(low / high, 1, atol=0.1)
    np.testing.assert_allclose((low + high) / weights.sum(), 1 - 0.5 / 1.29, atol=0.05)


def test_the_mean_difficulty_is_an_exponential_average():
    sampler = UniformDifficulty(0.9, Uniform())
    view = after(sampler, LINE, [([0, 1], [1.0, 3.0]), ([2, 3], [2.0, 6.0])])
    variance = ((2 - 2) ** 2 + (6 - 2) ** 2) / 2  # of the second batch, about the mean that was known
    np.testing.assert_allclose(view.own.weighting, [0.9 * 2 + 0.1 * 4, 0.9 * 1 + 0.1 * variance], rtol=1e-6)


def test_difficulty_is_that_of_uniform_sampling_if_the_draw_weighs_so():
    sampler, scores = UniformDifficulty(0.9, Uniform()), jnp.array([1.0, 3.0])
    draw = Draw(jnp.zeros((2, 1)), jnp.array([0, 1]), jnp.array([1.5, 0.5]))
    view = after(sampler, LINE, [])
    own = sampler.update(jax.random.key(0), LINE, Report(draw, scores, scores, view.queue), view).weighting
    np.testing.assert_allclose(own, [1.5, 0.75], rtol=1e-6)


# Level replay


def test_level_replay_has_the_weights_of_jaxued():
    # LevelSampler(8, staleness_coeff=0.3, temperature 0.3).level_weights of jaxued 0.0.1, on a buffer of six levels.
    theirs = [0.08064556, 0.07192644, 0.10156175, 0.64631349, 0.0615892, 0.03796358, 0, 0]
    scores = np.array([0.5, 2.0, 0.1, 3.0, 0.7, 1.1, np.nan, np.nan])
    last_visit = np.array([3, 9, 1, 7, 5, 8, -1, -1])
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 8)})
    queue = empty_queue(8)._replace(losses=jnp.asarray(scores, jnp.float32), last_visit=jnp.asarray(last_visit))
    queue = queue._replace(visits=jnp.int32(last_visit >= 0))
    view = View(queue, rank_weights(queue.losses, 0.3), jnp.int32(10))
    p = LevelReplay("losses", 1.0, 0.3, 0.3).probabilities(grid, view)
    np.testing.assert_allclose(p, theirs, rtol=2e-5)
    explored = LevelReplay("losses", 0.8, 0.3, 0.3).probabilities(grid, view)
    np.testing.assert_allclose(explored, 0.8 * np.array(theirs) + 0.2 / 8, rtol=2e-5)


def test_robust_replay_counts_only_what_is_replayed():
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 8)})
    sampler = LevelReplay("losses", 0.5, 1.0, 0.3, robust=True)
    early = after(sampler, grid, [([0, 1, 2], [1.0, 2.0, 3.0])])
    assert (np.asarray(sampler.draw(jax.random.key(0), grid, early, 50).weights) == 0).all()
    np.testing.assert_allclose(sampler.probabilities(grid, early), 1 / 8, rtol=1e-6)
    view = after(sampler, grid, [([0, 1, 2, 4], [1.0, 2.0, 3.0, 0.5])])
    draw = sampler.draw(jax.random.key(0), grid, view, 20_000)
    weights, cells = np.asarray(draw.weights), np.asarray(draw.cells)
    assert set(np.unique(weights)) == {0, 2}
    np.testing.assert_allclose(weights.mean(), 1, atol=0.03)
    assert (weights[~np.isin(cells, [0, 1, 2, 4])] == 0).all()  # never visited, so never replayed
    replayed = LevelReplay("losses", 1.0, 1.0, 0.3).probabilities(grid, view)
    counts = np.bincount(cells[weights > 0], minlength=8)
    np.testing.assert_allclose(counts / counts.sum(), replayed, atol=0.02)


def test_spreading_moves_to_the_neighbours_and_keeps_the_mass():
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 3), "kind": Categories(["x", "y"]), "b": Interval(0.0, 1.0, 4)})
    p = np.zeros(grid.shape)
    p[1, 0, 3] = 1
    spread = np.asarray(spread_out(jnp.asarray(p.ravel(), jnp.float32), grid, 0.4)).reshape(grid.shape)
    expected = np.zeros(grid.shape)
    expected[1, 0, 3], expected[0, 0, 3], expected[2, 0, 3], expected[1, 0, 2] = 0.7, 0.1, 0.1, 0.1
    np.testing.assert_allclose(spread, expected, atol=1e-6)


# Samplers by what is known of the cells


def test_learnable_cells_are_those_about_the_median():
    sampler = Learnability("rank", share=0.5, learnable=0.3, refresh=1)
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 10)})
    view = after(sampler, grid, [(range(9), [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0])])
    p = np.full(10, 0.05)
    p[[6, 7, 8]] += 0.5 / 3  # losses 6, 4, 5; the last cell is not known
    np.testing.assert_allclose(sampler.probabilities(grid, view), p, rtol=1e-5)


def test_learnable_cells_by_score_are_those_that_succeed_half_the_time():
    sampler = Learnability("score", share=1.0, learnable=0.2, refresh=1)
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 10)})
    view = after(sampler, grid, [(range(8), [0.0, 0.1, 0.4, 0.9, 1.0, 0.55, 0.2, 7.0])])
    np.testing.assert_allclose(np.flatnonzero(sampler.probabilities(grid, view)), [2, 5])
    view = after(sampler, grid, [(range(8), [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 7.0])])  # nothing is learnable
    np.testing.assert_allclose(sampler.probabilities(grid, view), 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["learnability", "level_replay"])
def test_the_queue_is_filled_before_it_is_trusted(name, grid):
    few, many = ([(range(n), np.arange(float(n)))] for n in (9, 11))  # of 20 cells
    np.testing.assert_allclose(FIELD[name].probabilities(grid, after(FIELD[name], grid, few)), 1 / 20, rtol=1e-5)
    assert np.ptp(FIELD[name].probabilities(grid, after(FIELD[name], grid, many))) > 0.01


def test_a_tail_of_equal_losses_is_not_empty_and_a_batch_that_does_not_count_is_no_error():
    for quantile in ("density", "queue"):
        sampler = TailRisk(0.5, quantile, Uniform())
        view = after(sampler, LINE, [(range(6), [2.0] * 6)])
        assert (weights_of(sampler, [2.0, 2.0], view=view) > 0).all()
    np.testing.assert_array_equal(weights_of(TailRisk(0.5, "batch", Uniform()), [1.0, 2.0], weights=[0.0, 0.0]), 0)


def test_progress_is_the_distance_of_two_averages():
    sampler = LearningProgress(fast=0.5, slow=0.1, uniform_fraction=0.0)
    batches = [([0, 1, 2], [4.0, 1.0, 1.0]), ([0, 1, 2], [2.0, 1.0, 3.0]), ([0, 3, 3], [2.0, 5.0, 7.0])]
    view = after(sampler, LINE, batches)
    fast = [4 + 0.5 * (2 - 4), 1, 1 + 0.5 * 2]
    slow = [4 + 0.1 * (2 - 4), 1, 1 + 0.1 * 2]
    fast[0], slow[0] = fast[0] + 0.5 * (2 - fast[0]), slow[0] + 0.1 * (2 - slow[0])
    progress = np.abs(np.subtract(fast, slow))
    expected = np.array([*progress, *[progress.mean()] * 3])  # 3, 4, 5 have not been visited at two steps
    np.testing.assert_allclose(sampler.probabilities(LINE, view), expected / expected.sum(), rtol=1e-5)


def test_the_bandit_follows_its_rule():
    sampler = Bandit(rate=0.3, epsilon=0.1, refresh=1)
    first = ([0, 1, 2, 3], [4.0, 4.0, 4.0, 4.0])
    second = ([0, 1, 2, 3], [1.0, 2.0, 5.0, 4.0])  # gains 3, 2, -1, 0
    view = after(sampler, LINE, [first, second])
    np.testing.assert_allclose(view.own.range, np.quantile([3, 2, -1, 0], [0.2, 0.8]), rtol=1e-5)
    np.testing.assert_allclose(sampler.probabilities(LINE, view), 1 / 6, rtol=1e-5)  # no reward without a range
    view = after(sampler, LINE, [first, second, ([0, 1], [0.0, 4.0])])  # gains 1, -2
    low, high = np.quantile([3, 2, -1, 0], [0.2, 0.8])
    reward = np.clip(2 * (np.array([1.0, -2.0]) - low) / (high - low) - 1, -1, 1)
    w = np.zeros(6)
    w[:2] = 0.3 * reward / (1 / 6) / 2
    e = np.exp(w)
    e = (1 - 1 / 3) * e + 1 / 3 / 5 * (e.sum() - e)
    np.testing.assert_allclose(sampler.probabilities(LINE, view), 0.9 * e / e.sum() + 0.1 / 6, rtol=1e-4)


def test_the_bandit_finds_the_cell_where_there_is_progress():
    sampler, grid = Bandit(rate=0.05, epsilon=0.2), ParameterGrid({"a": Interval(0.0, 1.0, 10)})

    def step(view, _):
        draw = sampler.draw(jax.random.fold_in(jax.random.key(0), view.step), grid, view, 5)
        known = jnp.nan_to_num(view.queue.losses[draw.cells], nan=100.0)
        scores = jnp.where(draw.cells == 7, known * 0.99, 5.0)
        queue = record(view.queue, draw.cells, scores, view.step)
        report = Report(draw, scores, scores, view.queue)
        own = sampler.update(jax.random.key(0), grid, report, view._replace(queue=queue))
        return View(queue, own, view.step + 1), None

    start = View(empty_queue(10), sampler.init(grid), jnp.int32(0))
    view, _ = jax.jit(lambda view: jax.lax.scan(step, view, None, length=300))(start)
    p = np.asarray(sampler.probabilities(grid, view))
    assert p.argmax() == 7
    assert p[7] > 0.5


@given(st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5), st.integers(1, 10**6))
def test_weights_that_are_shared_stay_finite(log_weights, t):
    shared = np.asarray(share_weights(jnp.array(log_weights, jnp.float32), jnp.int32(t)))
    assert np.isfinite(shared).all()
    assert shared.max() <= 1e-5


def test_hard_tasks_come_again_exactly_until_they_turn_out_easier():
    sampler, grid = HardTasks(share=0.5, memory=3, wait=2), ParameterGrid({"a": Interval(0.0, 1.0, 50)})
    batches = [([0, 1, 2, 3], [5.0, 1.0, 9.0, 2.0]), ([4, 5, 6, 7], [0.5, 7.0, 0.1, 0.2])]
    view = after(sampler, grid, batches)
    np.testing.assert_array_equal(view.own.scores, [9, 7, 5])
    draw = sampler.draw(jax.random.key(0), grid, view, 4)
    np.testing.assert_array_equal(draw.cells[:2], [2, 5])
    np.testing.assert_array_equal(draw.tasks[:2], view.own.tasks[:2])
    scores = jnp.array([6.0, 1.0, 0.3, 0.2])  # the second has become easy
    report = Report(draw, scores, scores, view.queue)
    memory = sampler.update(jax.random.key(0), grid, report, view)
    np.testing.assert_array_equal(memory.scores, [6, 5, 1])
    np.testing.assert_array_equal(memory.cells, [2, 0, 5])
    early = sampler.draw(jax.random.key(0), grid, view._replace(step=jnp.int32(1)), 4)
    assert not np.isin(early.tasks[:2], view.own.tasks).any()


# The cross-entropy method and the prediction of risk


def test_a_fit_is_that_of_the_authors():
    # CEM_Beta of cross-entropy-method 0.1.1 from φ = .7, ten samples, the worst three of ten: its next φ.
    x = [0.637, 0.27, 0.041, 0.017, 0.813, 0.913, 0.607, 0.729, 0.544, 0.935]
    scores = [0.816, 0.003, 0.857, 0.034, 0.73, 0.176, 0.863, 0.541, 0.3, 0.423]
    weights = 1 / stats.beta.pdf(x, 1.4, 0.6)
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 7)})
    sampler = CrossEntropy(tail=1e-6, kept=0.3, tasks=10, smoothing=0.0)
    own = sampler.init(grid)._replace(
        positions=jnp.array(x)[:, None], scores=jnp.array(scores), weights=jnp.asarray(weights, jnp.float32)
    )
    fitted = sampler._fit(own)
    np.testing.assert_allclose(fitted.centre, 0.2251463, rtol=1e-4)
    expected = np.diff(stats.beta.cdf(np.linspace(0, 1, 8), 2 * 0.2251463, 2 - 2 * 0.2251463))
    np.testing.assert_allclose(fitted.masses[0], expected, rtol=1e-4)


def test_the_tail_is_that_of_uniform_sampling_and_at_least_a_part_of_the_tasks():
    scores = jnp.array([5.0, 4.0, 3.0, 2.0, 1.0])
    light = jnp.array([0.1, 0.1, 0.1, 1.0, 1.0])  # what was drawn often stands for little
    np.testing.assert_array_equal(worst(scores, light, 0.14, 0.2), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(worst(scores, light, 0.01, 0.4), [1, 1, 0, 0, 0])


@given(st.floats(0.001, 0.999))
def test_the_masses_of_the_cells_are_a_distribution_of_the_right_mean(mean):
    masses = np.asarray(beta_masses(jnp.float32(mean), 200), float)
    np.testing.assert_allclose(masses.sum(), 1, rtol=1e-5)
    assert (masses >= 0).all()
    np.testing.assert_allclose(masses @ ((np.arange(200) + 0.5) / 200), mean, atol=4e-3)


def test_the_distribution_moves_to_where_losses_are_large(grid):
    sampler = CrossEntropy(tail=0.1, kept=0.2, tasks=40, smoothing=0.5)
    rng, batches = np.random.default_rng(0), []
    for _ in range(30):
        cells = rng.integers(0, grid.size, 10)
        batches.append((cells, cells // 5))  # losses rise along the first axis
    view = after(sampler, grid, batches)
    p = np.asarray(sampler.probabilities(grid, view)).reshape(grid.shape)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    assert (np.diff(p.sum(axis=1)) > 0).all()


def test_axes_without_an_order_are_refused():
    from twmaml.configuration.part_checks import check_sampler
    from twmaml.errors import ConfigurationError

    grid = ParameterGrid({"kind": Categories(["x", "y"])})
    with pytest.raises(ConfigurationError, match=r"sampler: CrossEntropy .* categories of kind"):
        check_sampler(FIELD["cross_entropy"], grid, 4)
    with pytest.raises(ConfigurationError, match=r"sampler.proposal: CrossEntropy .* categories of kind"):
        check_sampler(TailRisk(0.5, "batch", FIELD["cross_entropy"]), grid, 4)
    between = Proportional("losses", False, interpolate=True)
    with pytest.raises(ConfigurationError, match=r"sampler.proposal.interpolate=True: .* categories of kind"):
        check_sampler(TailRisk(0.5, "batch", between), grid, 4)


def test_candidates_are_chosen_apart_from_each_other():
    scores, places = jnp.array([1.0, 0.99, 0.0]), jnp.array([[0.0], [0.0], [3.0]])
    np.testing.assert_array_equal(choose_apart(scores, places, 0.0, 2), [0, 1])
    np.testing.assert_array_equal(choose_apart(scores, places, 1.0, 2), [0, 2])  # .99 < 3/2


@pytest.mark.parametrize(("candidates", "n"), [(1, 1), (5, 5), (16, 3), (50, 25), (67, 10)])
def test_candidates_are_chosen_greedily(candidates, n):
    generator = np.random.default_rng(candidates)
    scores, places = generator.normal(size=candidates), generator.uniform(-1.7, 1.7, (candidates, 2))
    chosen = []
    for _ in range(n):
        distances = sum((np.linalg.norm(places - places[each], axis=1) for each in chosen), np.zeros(candidates))
        value = scores + 5.0 * distances / max(n * (n - 1), 1)
        chosen.append(max(set(range(candidates)) - {*chosen}, key=lambda each: value[each]))
    np.testing.assert_array_equal(choose_apart(jnp.float32(scores), jnp.float32(places), 5.0, n), chosen)


@pytest.mark.parametrize("selection", ["top", "diverse"])
def test_the_process_learns_which_tasks_are_hard_and_draws_them(selection):
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 20)})
    sampler = RiskPrediction(4, selection, learning_rate=0.01, diversity=0.0)

    def step(view, _):
        draw = sampler.draw(jax.random.fold_in(jax.random.key(1), view.step), grid, view, 8)
        scores = 10 * draw.tasks[:, 0]
        report = Report(draw, scores, scores, view.queue)
        own = sampler.update(jax.random.fold_in(jax.random.key(2), view.step), grid, report, view)
        return view._replace(own=own, step=view.step + 1), jnp.mean(draw.tasks)

    start = View(empty_queue(20), sampler.init(grid), jnp.int32(0))
    view, means = jax.jit(lambda view: jax.lax.scan(step, view, None, length=300))(start)
    assert means[-50:].mean() > 0.7
    assert view.own.correlation > 0.5
    draw = sampler.draw(jax.random.key(0), grid, view, 8)
    assert len({*np.asarray(draw.tasks)[:, 0].tolist()}) == 8


def test_the_product_of_the_process_and_its_gradient_are_those_of_the_matrices():
    weight, h, towards = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(3, 2), (3, 5), (2, 5)])
    )
    ours, plain = (jax.vjp(f, weight, h) for f in (transposed_product, lambda weight, h: weight.T @ h))
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-6)
    for gradient, expected in zip(ours[1](towards), plain[1](towards), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)


# All of them


KEEP_TASKS = ("cross_entropy", "hard_tasks", "risk_prediction", "risk_prediction_diverse")  # in the order of a batch


@pytest.mark.parametrize("name", [name for name in FIELD if name not in KEEP_TASKS])
def test_the_state_does_not_depend_on_the_order_of_a_batch(name, grid):
    rng = np.random.default_rng(3)
    batches = [(rng.integers(0, grid.size, 6), rng.exponential(size=6)) for _ in range(24)]
    view = after(FIELD[name], grid, batches)._replace(step=jnp.int32(100))  # at which what is refreshed is
    draw = Draw(grid.centres()[:6], jnp.array([3, 3, 7, 1, 9, 3]), jnp.ones(6))
    scores = jnp.array([0.3, 1.7, 0.2, 5.0, 0.9, 0.1])
    queue = record(view.queue, draw.cells, scores, view.step)

    def updated(order):
        shuffled = jax.tree.map(lambda each: each[order], draw)
        report = Report(shuffled, scores[order], scores[order], view.queue)
        return FIELD[name].update(jax.random.key(0), grid, report, view._replace(queue=queue))

    order = jnp.array([4, 2, 5, 0, 3, 1])
    one, other = updated(jnp.arange(6)), updated(order)
    if jax.tree.leaves(one):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(view.own), strict=True)
        assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    weights, shuffled = (
        FIELD[name].weigh(Report(jax.tree.map(lambda each, o=o: each[o], draw), scores[o], scores[o], view.queue), view)
        for o in (jnp.arange(6), order)
    )
    np.testing.assert_allclose(weights[order], shuffled, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if name == "uniform_difficulty":
            np.testing.assert_allclose(a, b, rtol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", FIELD)
def test_whatever_is_known_there_is_a_distribution_and_finite_weights(name, grid):
    sampler, rng = FIELD[name], np.random.default_rng(5)
    for scale in (0.0, 1.0, 1e30):
        batches = [(rng.integers(0, grid.size, 8), scale * rng.exponential(size=8)) for _ in range(12)]
        view = after(sampler, grid, batches)
        assert is_distribution(sampler.probabilities(grid, view))
        if name.startswith("risk"):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(view.own._replace(correlation=0.0)))
        draw = sampler.draw(jax.random.key(0), grid, view, 8)
        scores = jnp.float32(scale) * jnp.arange(8)
        weights = sampler.weigh(Report(draw, scores, scores, view.queue), view)
        assert np.isfinite(weights).all()
        assert (np.asarray(weights) >= 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LevelReplay("losses", 0.0, 1.0, 0.1, robust=True), "replay must be above 0"),
        (lambda: LearningProgress(0.1, 0.1), "slow must be less than fast"),
        (lambda: TailRisk(1.0, "batch", Uniform()), "less than 1"),
        (lambda: TailRisk(0.5, cast(Any, "median"), Uniform()), "'batch', 'density' or 'queue'"),
        (lambda: TaskRobust(0.0, Uniform()), "greater than 0"),
        (lambda: RiskPrediction(0, "top"), "greater than or equal to 1"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(build, message):
    with pytest.raises(ValidationError, match=message):
        build()


def test_the_mean_over_a_cell_is_of_all_its_tasks():
    cells, values = jnp.array([3, 1, 3, 3]), jnp.array([1.0, 5.0, 2.0, 6.0])
    np.testing.assert_allclose(mean_of_same_cell(cells, values), [3, 5, 3, 3])
