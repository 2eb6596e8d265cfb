from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.conftest import assert_trees_equal
from twmaml.meta_learning.evaluation import Evaluation
from twmaml.samplers.proportional import Proportional
from twmaml.space.priority_queue import empty_queue
from twmaml.statistics import cell_means, cvar, diverged_tasks, reported_steps, summarize
from twmaml.training.devices import over_runs, shard_runs

losses_lists = st.lists(st.floats(0, 1e3), min_size=1, max_size=40)


@pytest.fixture
def evaluation(make_learner):
    learner = make_learner()
    return Evaluation(learner, learner.family.grid.with_cells([3, 4]), steps=6, draws=2, queries=5)


@given(losses_lists, st.sampled_from([5, 10, 30, 50, 100]))
def test_cvar_is_the_least_mean_excess(losses, percent):
    losses, alpha = np.array(losses), max(percent / 100, 1 / len(losses))
    # Rockafellar and Uryasev's definition, minimised over every threshold that can be the least.
    by_definition = min(t + np.maximum(losses - t, 0).mean() / alpha for t in losses)
    np.testing.assert_allclose(cvar(losses, percent), by_definition, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(cvar(losses, 100), losses.mean(), rtol=1e-9, atol=1e-9)
    assert losses.mean() - 1e-9 <= cvar(losses, percent) <= losses.max() + 1e-9


def test_losses_are_those_of_adapting_every_task_by_itself(evaluation):
    learner, fixed = evaluation.learner, evaluation.tasks()
    state = learner.init(0)
    losses = jax.jit(evaluation.results)(state.meta_params, fixed)["loss"]
    assert losses.shape == (24, 7)
    for i in (0, 13):
        support_key, _, query_key = jax.random.split(fixed.keys[i], 3)
        episode = learner.episode(fixed.keys[i], fixed.tasks[i], ())
        support = learner.family.collect(support_key, episode, "support", lambda x: x, learner.shots)
        query = learner.family.collect(query_key, episode, "query", lambda x: x, 5)
        params = state.meta_params

        def loss(params, data):
            return jnp.mean((learner.model.apply(params, data.inputs) - data.targets) ** 2)

        for k in range(7):
            np.testing.assert_allclose(losses[i, k], loss(params, query), rtol=1e-4)
            gradient = jax.grad(loss)(params, support)
            params = jax.tree.map(lambda p, g: p - learner.adaptation.learning_rate * g, params, gradient)


def test_of_each_task_there_is_what_the_queue_holds_for_its_cell(evaluation):
    queue_grid = evaluation.learner.family.grid
    queue = empty_queue(queue_grid.size)._replace(
        losses=jnp.arange(queue_grid.size) + 0.5, visits=jnp.arange(queue_grid.size)
    )
    fixed = replace(evaluation, queue_grid=queue_grid).tasks()
    cells = queue_grid.locate(fixed.tasks)
    losses, visits = fixed.look_up(queue)
    np.testing.assert_array_equal(losses, cells + 0.5)
    np.testing.assert_array_equal(visits, cells)
    assert evaluation.tasks().look_up(queue) == (None, None)


def test_tasks_and_data_are_the_same_for_every_sampler_and_run(make_learner, evaluation):
    other = Evaluation(make_learner(Proportional("losses", True)), evaluation.grid, 6, 2, 5)
    for first, second in zip(evaluation.tasks()[:2], other.tasks()[:2], strict=True):
        raw = [jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in (first, second)]
        np.testing.assert_array_equal(raw[0], raw[1])
    params = jax.vmap(evaluation.learner.init)(jnp.zeros(2, jnp.uint32)).meta_params
    losses = over_runs(evaluation.results, shard_runs(2))(params, evaluation.tasks())["loss"]
    np.testing.assert_array_equal(losses[0], losses[1])


def test_evaluation_shares_no_key_with_training(make_learner, evaluation):
    ours = {tuple(row) for row in np.asarray(jax.random.key_data(evaluation.tasks().keys))}
    learner = make_learner()
    for seed in range(3):  # evaluation.seed is among them
        loop_key = learner.init(seed).key
        for step in range(200):
            _, tasks_key = jax.random.split(jax.random.fold_in(loop_key, step))
            keys = np.asarray(jax.random.key_data(jax.random.split(tasks_key, learner.meta_batch)))
            assert not ours & {tuple(row) for row in keys}


def test_draws_of_a_cell_have_the_same_task_and_different_data(evaluation):
    fixed = evaluation.tasks()
    np.testing.assert_array_equal(fixed.tasks[0::2], fixed.tasks[1::2])
    assert len({tuple(k) for k in np.asarray(jax.random.key_data(fixed.keys))}) == 24


def test_tasks_may_lie_anywhere_inside_their_cells(evaluation, make_learner):
    inside = replace(evaluation, draws=50, inside_cells=True)
    fixed, grid = inside.tasks(), inside.grid
    np.testing.assert_array_equal(grid.locate(fixed.tasks), np.repeat(np.arange(grid.size), 50))
    axes = grid.axes.values()
    place = np.stack([axis.position(fixed.tasks[:, i]) * axis.cells % 1 for i, axis in enumerate(axes)])
    assert all(stats.kstest(of_axis, "uniform").pvalue > 1e-3 for of_axis in place)
    at_centres = replace(inside, inside_cells=False)
    assert_trees_equal(fixed.keys, at_centres.tasks().keys)  # the same data at other places
    other = replace(inside, learner=make_learner(Proportional("losses", True)))
    assert_trees_equal(fixed, other.tasks())
    assert np.all(fixed.tasks != replace(inside, seed=1).tasks().tasks)
    assert (inside.protocol, at_centres.protocol) == tuple(
        f"3 shots, 5 queries, 6 inner steps, 600 tasks{words}" for words in (" inside their cells", "")
    )


def _random_losses(tasks=24, steps=7):
    return np.random.default_rng(0).uniform(0.5, 2, (tasks, steps))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_a_diverged_task_is_counted_and_left_out(evaluation, bad):
    losses = _random_losses()
    losses[5, 4:] = bad
    marked = diverged_tasks(losses)
    assert marked.sum() == 3
    assert marked[5, 4:].all()
    summary = summarize({"loss": losses}, evaluation.metrics, evaluation.draws)
    assert (summary["eval/diverged"], summary["eval/diverged_step_1"]) == (1, 0)
    kept = np.where(np.arange(24) == 5, np.nan, losses[:, 6]).reshape(12, 2)
    cells = np.nanmean(kept, axis=1)
    np.testing.assert_allclose(summary["eval/loss"], cells.mean())
    np.testing.assert_allclose(summary["eval/std"], cells.std())
    np.testing.assert_allclose(summary["eval/worst"], cells.max())
    np.testing.assert_allclose(summary["eval/cvar_10"], np.sort(cells)[-2:] @ [0.2, 1] / 1.2)
    assert summary["eval/loss"] == summary["eval/loss_step_6"]


def test_a_task_that_starts_near_zero_has_not_diverged_by_staying_small():
    losses = _random_losses()
    losses[3] = [1e-4, *[0.5] * 6]
    assert not diverged_tasks(losses).any()


def test_where_every_task_diverged_nothing_is_averaged(evaluation):
    losses = _random_losses()
    losses[:, 6] = np.inf
    summary = summarize({"loss": losses}, evaluation.metrics, evaluation.draws)
    assert summary["eval/diverged"] == 24
    assert np.isnan(summary["eval/loss"])
    assert np.isfinite(summary["eval/loss_step_5"])
    assert np.isnan(cell_means(losses[:, 6], diverged_tasks(losses)[:, 6], 2)).all()


def test_steps_are_reported_as_far_as_evaluation_goes():
    assert reported_steps(10) == [0, 1, 5, 10]
    assert reported_steps(3) == [0, 1, 2, 3]
    assert reported_steps(4) == [0, 1, 4]
    assert reported_steps(20) == [0, 1, 5, 10, 20]
