import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from twmaml.samplers import sum_tree
from twmaml.samplers.additive import TREE_FROM, fill_of
from twmaml.samplers.base import Draw, Report, View
from twmaml.samplers.cells import _thresholds
from twmaml.samplers.epsilon_greedy import EpsilonGreedy
from twmaml.samplers.proportional import Proportional
from twmaml.samplers.sum_tree import FAN_OUT
from twmaml.space.axis import Interval
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import SHOWN, PriorityQueue, empty_queue, record

GRID = ParameterGrid({"a": Interval(0.0, 1.0, 71), "b": Interval(-1.0, 1.0, 67)})
KINDS = {
    "losses": Proportional("losses", True, uniform_fraction=0.0),
    "deltas": Proportional("deltas", True, uniform_fraction=0.2),
    "initial": Proportional("losses", True, uniform_fraction=0.1, initial=100.0),
    "interpolated": Proportional("losses", True, interpolate=True),
    "greedy": EpsilonGreedy(0.3),
    "optimistic": EpsilonGreedy(0.3, initial=1e7),
    "burn_in": EpsilonGreedy(0.3, burn_in=True),
}


def queue_of(known: float, cells: int = GRID.size) -> PriorityQueue:
    """Scores over twelve decades for a share of the cells, the largest of them several times."""
    generator = np.random.default_rng(int(10 * known))
    losses = (10 ** generator.uniform(-6, 6, cells)).astype(np.float32)
    losses[generator.random(cells) >= known] = np.nan
    if known:
        losses[[5, cells // 2, cells - 1]] = np.nanmax(losses)
    deltas = np.where(generator.random(cells) < 0.8, losses, np.nan)
    visits = (~np.isnan(losses)).astype(np.int32)
    return empty_queue(cells)._replace(losses=jnp.array(losses), deltas=jnp.array(deltas), visits=jnp.array(visits))


def view_of(sampler, queue, step=7):
    return View(queue, sum_tree.build(getattr(queue, sampler.signal)), jnp.int32(step))


def report_of(cells):
    nothing = jnp.ones(len(cells))
    return Report(Draw(nothing[:, None], jnp.asarray(cells), nothing), nothing, nothing, empty_queue(1))


def assert_same_trees(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for each, same in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(each), np.asarray(same))


@pytest.mark.parametrize("cells", [33, 1025, 33_000])
def test_a_tree_that_is_kept_is_the_tree_that_is_built_to_the_bit(cells):
    grid = ParameterGrid({"a": Interval(0.0, 1.0, cells)})

    @jax.jit
    def step(i, queue, tree):
        key = jax.random.fold_in(jax.random.key(0), i)
        at = jax.random.randint(key, (25,), 0, cells).at[3].set(cells - 1).at[5].set(cells - 1)
        queue = record(queue, at, 10 ** jax.random.uniform(key, (25,), minval=-6, maxval=6), i)
        return queue, sum_tree.refresh(tree, queue.deltas, at)

    queue = empty_queue(grid.size)
    build = jax.jit(sum_tree.build)
    tree = build(queue.deltas)
    for i in range(200):
        queue, tree = step(jnp.int32(i), queue, tree)
    assert_same_trees(tree, build(queue.deltas))
    root, deltas = sum_tree.root(tree), np.asarray(queue.deltas)
    assert (root.cells, root.unknown) == (cells, np.isnan(deltas).sum())
    np.testing.assert_allclose(root.total, np.nansum(deltas.astype(float)), rtol=1e-6)
    assert root.largest == np.nanmax(deltas)
    assert root.of_largest == (deltas == np.nanmax(deltas)).sum()


@pytest.mark.parametrize("name", KINDS)
def test_draws_through_the_tree_follow_the_probabilities(name):
    sampler, n = KINDS[name], 200_000

    @jax.jit
    def draw(queue):
        view = view_of(sampler, queue)
        cells, probability = sampler.draw_cells(jax.random.key(1), GRID, view, n)
        return cells, probability(cells), sampler.probabilities(GRID, view)

    for known in (0.0, 0.4, 1.0):
        cells, own, p = map(np.asarray, draw(queue_of(known)))
        np.testing.assert_allclose(own, p[cells], rtol=1e-5)
        counts, expected = np.bincount(cells, minlength=GRID.size), n * p.astype(float) / p.sum(dtype=float)
        assert counts[p == 0].sum() == 0
        likely = expected >= 5
        observed, expected = (np.append(each[likely], each[~likely].sum()) for each in (counts, expected))
        if likely.sum() > 1:
            assert stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_the_shares_of_nodes_are_the_sums_of_their_cells_and_none_is_left_out(name):
    sampler, queue = KINDS[name], queue_of(0.4)
    tree, whole = view_of(sampler, queue).own, None
    view, whole = View(queue, tree, jnp.int32(7)), sum_tree.root(tree)
    p = np.asarray(sampler.probabilities(GRID, view), float)
    below = FAN_OUT
    for level in tree:
        share = np.asarray(sampler.shares(level, whole, view), float)
        sums = np.pad(p, (0, share.size * below - p.size)).reshape(-1, below).sum(axis=1)
        np.testing.assert_allclose(share.ravel(), sums, rtol=1e-5)
        row = jnp.asarray(share[share.sum(axis=1) > 0], jnp.float32)
        assert ((np.diff(np.asarray(_thresholds(row)).astype(np.int64), prepend=0, axis=1) > 0) == (row > 0)).all()
        below *= FAN_OUT


@pytest.mark.parametrize("name", ["losses", "deltas", "initial", "interpolated"])
def test_weights_through_the_tree_average_to_one(name):
    sampler = KINDS[name]
    queue = queue_of(0.4)._replace(losses=jnp.linspace(0.1, 2, GRID.size), deltas=jnp.linspace(3, 0.1, GRID.size))
    draw = jax.jit(lambda queue: sampler.draw(jax.random.key(4), GRID, view_of(sampler, queue), 100_000))(queue)
    weights = np.asarray(draw.weights, float)
    assert weights.std() > 0.05
    assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(weights.size)
    np.testing.assert_array_equal(GRID.locate(draw.tasks)[:100], draw.cells[:100])


def test_the_sampler_keeps_its_tree_and_a_small_grid_has_none():
    sampler, small = KINDS["losses"], ParameterGrid({"a": Interval(0.0, 1.0, TREE_FROM - 1)})
    assert sampler.init(small) == ()
    own = sampler.init(GRID)
    cells = jnp.array([3, 3, GRID.size - 1])
    queue = record(empty_queue(GRID.size), cells, jnp.array([1.0, 2.0, 5.0]), jnp.int32(0))
    own = sampler.update(jax.random.key(0), GRID, report_of(cells), View(queue, own, jnp.int32(0)))
    assert_same_trees(own, sum_tree.build(queue.losses))


@pytest.mark.parametrize("method", ["probabilities", "init"])
def test_a_subclass_with_a_rule_of_its_own_is_not_drawn_through_the_tree(method):
    class Own(Proportional):
        pass

    setattr(Own, method, lambda self, grid, *view: jnp.zeros(grid.size).at[9].set(1.0))
    sampler = Own("losses", True)
    view = View(queue_of(1.0), sampler.init(GRID), jnp.int32(0))
    cells, _ = sampler.draw_cells(jax.random.key(0), GRID, view, 50)
    assert (set(cells.tolist()) == {9}) == (method == "probabilities")


def test_a_subclass_that_updates_a_state_of_its_own_is_given_no_tree():
    class Own(Proportional):
        def update(self, key, grid, report, view):
            return view.own

    sampler = Own("losses", True)
    assert sampler.init(GRID) == ()
    cells, p = sampler.draw_cells(jax.random.key(0), GRID, View(queue_of(1.0), (), jnp.int32(0)), 50)
    assert (p(cells) > 0).all()


def test_rounding_makes_no_unknown_cell_more_than_the_largest_known_one():
    a_little_more = np.nextafter(np.float32(0.4), 1)
    whole = sum_tree.Totals(jnp.int32(5), jnp.int32(1), jnp.float32(a_little_more), jnp.float32(0.1), jnp.int32(4))
    assert fill_of(whole, None) == np.float32(0.1)


@pytest.mark.parametrize("largest", [3e38, np.inf])
def test_no_score_is_too_large_to_be_summed(largest):
    queue = empty_queue(GRID.size)._replace(losses=jnp.full(GRID.size, largest).at[:100].set(1.0))
    sampler = Proportional("losses", True, uniform_fraction=0.0)

    @jax.jit
    def draw(queue):
        cells, probability = sampler.draw_cells(jax.random.key(0), GRID, view_of(sampler, queue), 50)
        return cells, probability(cells)

    cells, p = draw(queue)
    assert (cells >= 100).all()
    np.testing.assert_allclose(p, 1 / (GRID.size - 100), rtol=1e-5)


@pytest.mark.parametrize(("share", "sound"), [(1.0, True), (2.0, False)])
def test_shares_of_many_cells_that_do_not_add_up_have_no_entropy(share, sound):
    class Flat(Proportional):
        def shares(self, part, whole, view):
            return jnp.float32(share) * part.cells / whole.cells

    grid, sampler = ParameterGrid({"a": Interval(0.0, 1.0, 40_000)}), Flat("losses", False)
    queue = empty_queue(grid.size)
    entropy = jax.jit(lambda queue: sampler.entropy(grid, view_of(sampler, queue)))(queue)
    np.testing.assert_allclose(entropy, np.log(grid.size) if sound else np.nan, rtol=1e-5)


def test_the_entropy_of_cells_that_are_all_shown_is_exact():
    assert GRID.size <= SHOWN
    view = view_of(KINDS["losses"], queue_of(0.4))
    entropy, p = jax.jit(lambda v: (KINDS["losses"].entropy(GRID, v), KINDS["losses"].probabilities(GRID, v)))(view)
    np.testing.assert_allclose(entropy, stats.entropy(np.asarray(p, float)), rtol=1e-5)


def test_the_entropy_of_many_cells_is_estimated():
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 100_000)})
    sampler, queue = Proportional("losses", False), queue_of(0.3, grid.size)
    p = np.asarray(jax.jit(partial(sampler.probabilities, grid))(View(queue, (), jnp.int32(0))), float)
    estimated = jax.jit(lambda queue: sampler.entropy(grid, view_of(sampler, queue)))(queue)
    # 1,024 draws, whose -log p differ by about 2.
    assert abs(estimated + (p * np.log(p)).sum()) < 5 * np.sqrt(np.average((np.log(p)) ** 2, weights=p) / 1024)
