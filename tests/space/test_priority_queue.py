from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.conftest import assert_trees_equal
from twmaml.space.priority_queue import SHOWN, empty_queue, queue_metrics, record, shown_cells
from twmaml.statistics import rank_correlation

CELLS = 6
batches = st.lists(
    st.tuples(st.integers(0, CELLS - 1), st.floats(0, 1e6, width=32, allow_subnormal=False)),
    min_size=8,
    max_size=8,
    unique=True,
)
write = jax.jit(record)


def _write(queue, batch, step):
    cells = jnp.array([cell for cell, _ in batch], jnp.int32)
    written = write(queue, cells, jnp.array([score for _, score in batch], jnp.float32), jnp.int32(step))
    return jax.tree.map(np.asarray, written)


@given(batches, batches, st.randoms())
def test_the_order_of_a_meta_batch_does_not_matter(first, second, random):
    queue = _write(empty_queue(CELLS), first, 0)
    shuffled = random.sample(second, len(second))
    assert_trees_equal(_write(queue, second, 1), _write(queue, shuffled, 1))


@given(batches, batches)
def test_a_cell_holds_the_mean_of_its_scores_and_the_change_since_the_batch_before(first, second):
    before = _write(empty_queue(CELLS), first, 3)
    after = _write(before, second, 7)
    for cell in range(CELLS):
        scores = [score for c, score in second if c == cell]
        if not scores:
            for field in before._fields:
                np.testing.assert_array_equal(getattr(after, field)[cell], getattr(before, field)[cell])
            continue
        # XLA takes what is below the smallest normal number for 0.
        np.testing.assert_allclose(
            after.losses[cell], np.mean(scores), rtol=1e-5, atol=float(np.finfo(np.float32).tiny)
        )
        np.testing.assert_allclose(
            after.deltas[cell], abs(after.losses[cell] - before.losses[cell]), rtol=1e-6, atol=1e-12
        )
        assert after.visits[cell] == before.visits[cell] + len(scores)
        assert after.last_visit[cell] == 7


def test_what_was_not_measured_is_nan():
    queue = _write(empty_queue(CELLS), [(1, 2.0), (1, 4.0)], 0)
    assert np.isnan(queue.deltas).all()  # two visits in one batch are no change over time
    assert list(np.isnan(queue.losses)) == [cell != 1 for cell in range(CELLS)]
    assert list(queue.last_visit) == [0 if cell == 1 else -1 for cell in range(CELLS)]


def test_metrics_are_over_visited_cells():
    queue = _write(empty_queue(CELLS), [(0, 1.0), (1, 2.0), (2, 6.0)], 0)
    metrics = queue_metrics(queue)
    np.testing.assert_allclose(metrics["queue/mean"], 3.0)
    np.testing.assert_allclose(metrics["queue/std"], np.std([1, 2, 6]), rtol=1e-6)
    np.testing.assert_allclose(metrics["queue/coverage"], 0.5)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=3, max_size=30))
def test_the_correlation_is_spearmans_over_visited_cells(pairs):
    losses, visits = np.array(pairs, float).T
    kept = visits > 0
    ours = rank_correlation(losses[kept], visits[kept])
    if len(set(losses[kept])) < 2 or len(set(visits[kept])) < 2:
        assert np.isnan(ours)
    else:
        spearman: Any = stats.spearmanr(losses[kept], visits[kept])
        np.testing.assert_allclose(ours, spearman.statistic, atol=1e-12)


def test_the_shown_cells_of_a_large_queue_are_spread_over_it_and_always_the_same():
    cells = 100_000
    queue = empty_queue(cells)._replace(losses=jnp.arange(cells, dtype=jnp.float32), visits=jnp.arange(cells))
    shown = jax.jit(shown_cells)(queue)
    assert np.unique(shown.visits).size == shown.visits.size == SHOWN
    np.testing.assert_array_equal(shown.losses, shown.visits)
    assert stats.kstest(np.asarray(shown.visits) / cells, "uniform").pvalue > 1e-3
    assert_trees_equal(shown_cells(queue), shown)
    assert shown_cells(empty_queue(SHOWN)).losses.size == SHOWN
