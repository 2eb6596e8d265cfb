import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from tests.conftest import SAMPLERS, assert_trees_equal
from twmaml.adaptation.maml import MAML
from twmaml.meta_learning.chunk import NO_FAILURE, train_chunk
from twmaml.samplers.base import Draw, Sampler
from twmaml.samplers.epsilon_greedy import EpsilonGreedy
from twmaml.samplers.proportional import Proportional
from twmaml.samplers.uniform import Uniform
from twmaml.space.axis import Interval
from twmaml.tasks.sinusoid import Sinusoid
from twmaml.training.devices import over_runs, shard_runs
from twmaml.training.one_of import OneOf


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_ones(make_learner):
    learner = make_learner(Proportional("losses", True))
    train = jax.jit(partial(train_chunk, learner))
    runs = [train(learner.init(seed), jnp.int32(50))[0] for seed in (3, 3, 4)]
    assert_trees_equal(runs[0], runs[1])
    starts = [learner.init(seed) for seed in (0, 1)]
    for first, second in zip(*(jax.tree.leaves(start.meta_params) for start in starts), strict=True):
        assert first.ndim == 1 or not np.array_equal(first, second)  # biases start at zero
    step = jax.jit(learner.meta_step)
    draws = [step(start)[1] for start in starts]
    assert not np.array_equal(draws[0].tasks, draws[1].tasks)
    shared = starts[1]._replace(meta_params=starts[0].meta_params, opt_state=starts[0].opt_state)
    outcomes = [step(state)[2].loss for state in (starts[0], shared)]
    assert not np.array_equal(*outcomes)  # the same network, other data


def test_chunks_of_any_length_make_the_same_run(make_learner):
    learner = make_learner(EpsilonGreedy(optax.linear_schedule(1.0, 0.0, 20)))
    train = jax.jit(partial(train_chunk, learner))
    whole, _ = train(learner.init(0), jnp.int32(30))
    parts = learner.init(0)
    for steps in (7, 1, 22):
        parts, _ = train(parts, jnp.int32(steps))
    assert_trees_equal(whole, parts)


def test_a_batch_of_runs_equals_single_runs(make_learner):
    learner = make_learner(Proportional("deltas", True))
    sharding = shard_runs(4)
    assert len(sharding.device_set) == 2
    many = over_runs(partial(train_chunk, learner), sharding)
    states, chunk = many(jax.vmap(learner.init)(jnp.arange(4, dtype=jnp.uint32)), jnp.int32(40))
    train = jax.jit(partial(train_chunk, learner))
    for i, seed in enumerate((0, 1, 2)):
        alone, alone_chunk = train(learner.init(seed), jnp.int32(40))
        for one, other in zip(jax.tree.leaves(alone.meta_params), jax.tree.leaves(states.meta_params), strict=True):
            np.testing.assert_allclose(one, np.asarray(other)[i], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            np.asarray(chunk.metrics["train/loss"])[i], alone_chunk.metrics["train/loss"], rtol=1e-4
        )


def test_runs_of_several_samplers_in_one_program_equal_single_runs(make_learner):
    rules = [Proportional("deltas", True), EpsilonGreedy(0.3), Proportional("losses", False, interpolate=True)]

    def train(index, seed):
        learner = make_learner(OneOf(rules, index))
        return train_chunk(learner, learner.init(seed), jnp.int32(40))

    states, chunk = jax.jit(jax.vmap(train))(jnp.arange(3), jnp.arange(3, dtype=jnp.uint32))
    for i, rule in enumerate(rules):
        learner = make_learner(rule)
        alone, alone_chunk = jax.jit(partial(train_chunk, learner))(learner.init(i), jnp.int32(40))
        np.testing.assert_array_equal(states.queue.visits[i], alone.queue.visits)
        for one, other in zip(jax.tree.leaves(alone.meta_params), jax.tree.leaves(states.meta_params), strict=True):
            np.testing.assert_allclose(one, np.asarray(other)[i], rtol=1e-4, atol=1e-6)
        for name, value in alone_chunk.metrics.items():
            np.testing.assert_allclose(chunk.metrics[name][i], value, rtol=1e-4, err_msg=name)
    assert np.isfinite(chunk.metrics["sampler/epsilon"]).tolist() == [False, True, False]


@dataclasses.dataclass(frozen=True)
class EveryOther(Uniform):
    """Weighs one half of a batch with 0, in odd meta-steps the whole but for one task."""

    def weigh(self, report, view):
        place = jnp.arange(len(report.losses))
        return jnp.float32(jnp.where(view.step % 2 == 0, place % 2 == 0, place == 1))


def test_tasks_whose_weight_is_not_0_are_counted(make_learner):
    def train(index):
        learner = make_learner(OneOf([Uniform(), EveryOther()], index))
        return train_chunk(learner, learner.init(0), jnp.int32(5))[1].tasks_trained

    assert jax.vmap(train)(jnp.arange(2)).tolist() == [5 * 6, 3 * 3 + 2 * 1]


@dataclasses.dataclass(frozen=True)
class Unlike(Sampler):
    """A user's: other types than twmaml's own, weak ones, a field that cannot be hashed, a draw and metrics."""

    numbers: list

    def probabilities(self, grid, view):
        return jnp.full(grid.size, 1 / grid.size, jnp.bfloat16)

    def metrics(self, view):
        return {"count": view.step, "epsilon": 3, "half": jnp.bfloat16(0.5)}

    def draw(self, key, grid, view, n):
        cells = jnp.arange(n, dtype=jnp.int16)
        return Draw(grid.sample_in(key, cells), cells, jnp.ones(n, jnp.int32))


def test_samplers_share_a_program_whatever_types_they_give(make_learner):
    rules = [Unlike([1.0]), EpsilonGreedy(0.3), Uniform()]

    def train(index):
        learner = make_learner(OneOf(rules, index))
        return train_chunk(learner, learner.init(0), jnp.int32(4))

    states, chunk = jax.jit(jax.vmap(train))(jnp.arange(3))
    assert states.queue.visits.sum(axis=1).tolist() == [24] * 3
    assert (states.queue.visits[0, :6] == 4).all()
    np.testing.assert_array_equal(chunk.metrics["sampler/count"], [4, np.nan, np.nan])
    np.testing.assert_array_equal(chunk.metrics["sampler/epsilon"], np.array([3, 0.3, np.nan], np.float32))


@pytest.mark.parametrize("meta_batch", [6, 7])
def test_a_meta_batch_shared_by_devices_equals_one_on_one_device(meta_batch, make_learner):
    learner = make_learner(Proportional("losses", True), meta_batch=meta_batch)
    shared = dataclasses.replace(learner, task_devices=2)
    states = jax.vmap(learner.init)(jnp.arange(2, dtype=jnp.uint32))
    results = []
    for each in (learner, shared):
        sharding = shard_runs(2, each.task_devices)
        assert dict(sharding.mesh.shape) == {"runs": 2 // each.task_devices, "tasks": each.task_devices}
        results.append(over_runs(partial(train_chunk, each), sharding)(states, jnp.int32(30)))
    (alone, alone_chunk), (together, chunk) = jax.device_get(results)
    np.testing.assert_array_equal(alone.queue.visits, together.queue.visits)
    for one, other in zip(jax.tree.leaves(alone.meta_params), jax.tree.leaves(together.meta_params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    for name, values in alone_chunk.metrics.items():
        np.testing.assert_allclose(values, chunk.metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_seed_in_a_program_is_the_seed_itself(seed, make_learner):
    learner = make_learner()
    inside = jax.jit(learner.init)(np.uint32(seed))
    assert_trees_equal(inside.key, learner.init(seed).key)


def test_no_chunk_after_the_first_compiles(make_learner):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: compiled.append(event) if "backend_compile" in event else None
    )
    learner = make_learner(Proportional("losses", True))
    sharding = shard_runs(1)
    train = over_runs(partial(train_chunk, learner), sharding)
    state = jax.device_put(jax.vmap(learner.init)(jnp.zeros(1, jnp.uint32)), sharding)
    lengths = [jnp.int32(n) for n in (5, 5, 9)]
    before = len(compiled)
    state, _ = train(state, lengths[0])
    assert len(compiled) > before  # the listener does hear
    before = len(compiled)
    for steps in lengths[1:]:
        state, _ = train(state, steps)
    assert len(compiled) == before


def expected_visits(learner, states):
    """The sum of the distributions that the steps drew from, in visits of each cell."""
    grid = learner.family.grid
    total = np.zeros(grid.size)
    lattice = grid.with_cells([8 * n for n in grid.shape])
    centres = lattice.centres()
    probabilities = jax.jit(partial(learner.sampler.probabilities, grid))
    interpolate = jax.jit(lambda p, tasks: grid.interpolate(p.__getitem__, tasks))
    for state in states:
        p = probabilities(state.view)
        if learner.sampler.interpolate:
            fine = np.asarray(interpolate(p, centres))
            p = fine.reshape([n for size in grid.shape for n in (size, 8)]).mean(axis=(1, 3)).ravel()
        total += learner.meta_batch * np.asarray(p, float)
    return total


@pytest.mark.parametrize("name", SAMPLERS)
def test_with_a_frozen_network_visits_follow_the_distribution(name, make_learner):
    learner = make_learner(SAMPLERS[name], optimizer=optax.set_to_zero(), meta_batch=10)
    step = jax.jit(learner.meta_step)
    states, weights = [learner.init(11)], []
    for _ in range(1500):
        state, draw, _ = step(states[-1])
        states.append(state)
        weights.append(np.asarray(draw.weights))
    assert_trees_equal(states[0].meta_params, states[-1].meta_params)
    expected = expected_visits(learner, states[:-1])
    observed = np.asarray(states[-1].queue.visits)
    assert observed.sum() == expected.sum().round() == 15_000
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3
    weights = np.concatenate(weights)
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(weights.size) + 1e-6


def test_burn_in_visits_every_cell_and_then_only_the_worst(make_learner):
    learner = make_learner(EpsilonGreedy(0.0, burn_in=True))
    step = jax.jit(learner.meta_step)
    state = learner.init(0)
    for _ in range(200):
        if (state.queue.visits > 0).all():
            break
        unvisited = np.asarray(state.queue.visits) == 0
        state, draw, _ = step(state)
        assert unvisited[np.asarray(draw.cells)].all()
    worst = int(np.argmax(state.queue.losses))
    _, draw, _ = step(state)
    assert (np.asarray(draw.cells) == worst).all()


def test_a_loss_that_is_not_finite_names_its_step(make_learner):
    explode = optax.chain(
        optax.sgd(1.0), optax.scale_by_schedule(lambda step: jnp.where(jnp.asarray(step) >= 12, 1e30, 0.0))
    )
    learner = make_learner(optimizer=explode)
    _, chunk = jax.jit(partial(train_chunk, learner))(learner.init(0), jnp.int32(10))
    assert chunk.first_failure == NO_FAILURE
    _, chunk = jax.jit(partial(train_chunk, learner))(learner.init(0), jnp.int32(30))
    assert chunk.first_failure == 13


class Shrinking(Uniform):
    def probabilities(self, grid, view):
        return jnp.where(view.step < 12, 1.0, 0.5) * super().probabilities(grid, view)


def test_probabilities_that_are_none_end_a_chunk(make_learner, sampler):
    train, steps = jax.jit(partial(train_chunk, make_learner(Shrinking()))), jnp.arange(30)
    state = make_learner(Shrinking()).init(0)
    failures = [int(train(state, n)[1].first_failure) for n in steps]
    assert failures == [NO_FAILURE] * 12 + [*range(12, 30)]
    learner = make_learner(sampler)
    assert jax.jit(partial(train_chunk, learner))(learner.init(0), jnp.int32(0))[1].first_failure == NO_FAILURE


@pytest.mark.parametrize("factor", [-1.0, np.nan])
def test_a_score_that_is_negative_or_none_names_its_step(factor, make_learner):
    class Judged(Sinusoid):
        def outcome(self, predict, examples):
            outcome = super().outcome(predict, examples)
            return outcome._replace(score=factor * outcome.score)

    learner = make_learner(family=Judged(Interval(0.5, 4.5, 4), Interval(0.0, 180.0, 5, "deg"), 1.0, -5.0, 5.0))
    assert jax.jit(partial(train_chunk, learner))(learner.init(0), jnp.int32(5))[1].first_failure == 0


def test_metrics_of_a_chunk_are_means_over_its_steps(make_learner):
    learner = make_learner(Proportional("losses", True, uniform_fraction=0.2))
    state, losses, largest = learner.init(0), [], []
    _, chunk = jax.jit(partial(train_chunk, learner))(state, jnp.int32(8))
    step = jax.jit(learner.meta_step)
    for _ in range(8):
        state, draw, outcomes = step(state)
        losses.append(float(np.mean(outcomes.loss)))
        largest.append(float(np.max(draw.weights)))
    np.testing.assert_allclose(chunk.metrics["train/loss"], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(chunk.metrics["weights/max"], np.max(largest), rtol=1e-4)
    p = np.asarray(learner.sampler.probabilities(learner.family.grid, state.view), float)
    np.testing.assert_allclose(chunk.metrics["queue/entropy"], stats.entropy(p), rtol=1e-4)


def test_meta_training_lowers_the_loss(sampler, make_learner):
    learner = make_learner(sampler, optimizer=optax.adam(1e-2), adaptation=MAML(0.05, 1), shots=8, queries=8)
    train = jax.jit(partial(train_chunk, learner))
    state, first = train(learner.init(0), jnp.int32(50))
    state, _ = train(state, jnp.int32(2000))
    _, last = train(state, jnp.int32(50))
    assert last.metrics["train/loss"] < 0.7 * first.metrics["train/loss"]


def test_no_two_uses_share_a_key(make_learner):
    """Keys of the draw, the update, the episode, its support and its query, noted as they come."""
    noted = {}

    def note(name, key):
        noted[name] = tuple(np.asarray(jax.random.key_data(key)).tolist())

    class Noting(Sinusoid):
        def episode(self, key, task, data):
            note("episode", key)
            return super().episode(key, task, data)

        def collect(self, key, episode, part, predict, n):
            note(part, key)
            return super().collect(key, episode, part, predict, n)

    class NotingSampler(Uniform):
        def draw(self, key, grid, view, n):
            note("draw", key)
            return super().draw(key, grid, view, n)

        def update(self, key, grid, report, view):
            note("update", key)
            return super().update(key, grid, report, view)

    family = Noting(Interval(0.5, 4.5, 4), Interval(0.0, 180.0, 5, "deg"), 1.0, -5.0, 5.0)
    learner = make_learner(NotingSampler(), family=family)
    state = learner.init(0)
    key = jax.random.key(3)
    learner.adapt_and_judge(state.meta_params, key, jnp.array([1.0, 1.0]), (), state.step)
    make_learner(NotingSampler()).meta_step(state)
    note("task", key)
    assert set(noted) == {"draw", "update", "episode", "support", "query", "task"}
    assert len({*noted.values()}) == len(noted)


class Preferring(Proportional):
    """Weighs by the losses of the whole batch, and counts its meta-batches."""

    def init(self, grid):
        return jnp.int32(0)

    def weigh(self, report, view):
        return report.losses / jnp.mean(report.losses)

    def update(self, key, grid, report, view):
        return view.own + 1


@pytest.mark.parametrize("at_once", [1, 4, 6])
def test_tasks_in_blocks_make_the_step_of_all_at_once(at_once, make_learner):
    learners = [make_learner(Preferring("losses", False), tasks_at_once=n) for n in (None, at_once)]
    state = learners[0].init(0)
    (whole, draw, outcome), (blocks, other_draw, other) = (jax.jit(each.meta_step)(state) for each in learners)
    assert_trees_equal(draw.tasks, other_draw.tasks)
    pairs = zip(jax.tree.leaves((whole.opt_state, outcome)), jax.tree.leaves((blocks.opt_state, other)), strict=True)
    for one, same in pairs:
        np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(draw.weights, other_draw.weights, rtol=1e-5)
    assert np.std(draw.weights) > 0


@pytest.mark.parametrize("meta_batch", [6, 7])
def test_devices_that_share_a_batch_weigh_it_as_a_whole(meta_batch, make_learner):
    learner = make_learner(Preferring("losses", False), meta_batch=meta_batch)
    states, results = jax.vmap(learner.init)(jnp.arange(2, dtype=jnp.uint32)), []
    for each in (learner, dataclasses.replace(learner, task_devices=2)):
        train = over_runs(partial(train_chunk, each), shard_runs(2, each.task_devices))
        results.append(jax.device_get(train(states, jnp.int32(15))))
    (alone, chunk), (together, shared) = results
    assert (chunk.metrics["weights/max"] > 1.1).all()
    np.testing.assert_allclose(chunk.metrics["weights/max"], shared.metrics["weights/max"], rtol=1e-4)
    for one, other in zip(jax.tree.leaves(alone.meta_params), jax.tree.leaves(together.meta_params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_in_one_program_only_the_chosen_sampler_weighs_and_counts(make_learner):
    rules = [Uniform(), Preferring("losses", False)]

    def train(index):
        learner = make_learner(OneOf(rules, index))
        return train_chunk(learner, learner.init(0), jnp.int32(9))

    states, chunk = jax.jit(jax.vmap(train))(jnp.arange(2))
    assert states.sampler[1].tolist() == [0, 9]
    assert chunk.metrics["weights/max"][0] == 1 < chunk.metrics["weights/max"][1]


@pytest.mark.parametrize("shared", [False, True])
def test_the_entropy_of_what_is_only_a_proposal_is_unknown(shared, make_learner):
    class Selecting(Uniform):
        selects = True

    sampler = OneOf([Uniform(), Selecting()], jnp.int32(1)) if shared else Selecting()
    learner = make_learner(sampler)
    _, chunk = jax.jit(partial(train_chunk, learner))(learner.init(0), jnp.int32(2))
    assert np.isnan(chunk.metrics["queue/entropy"])


def test_a_family_on_policy_collects_anew_at_each_step_with_the_network_as_it_is(make_learner):
    class OnPolicy(Sinusoid):
        on_policy = True

        def collect(self, key, episode, part, predict, n):
            examples = super().collect(key, episode, part, predict, n)
            return examples._replace(targets=examples.targets + jax.lax.stop_gradient(predict(examples.inputs)))

    family = OnPolicy(Interval(0.5, 4.5, 4), Interval(0.0, 180.0, 5, "deg"), 1.0, -5.0, 5.0)
    maml = MAML(0.1, 2)
    learner = make_learner(family=family, adaptation=maml)
    state, key, task = learner.init(0), jax.random.key(1), jnp.array([2.0, 1.0])
    _, outcome = jax.jit(learner.adapt_and_judge)(state.meta_params, key, task, (), state.step)
    _, adapt_key, query_key = jax.random.split(key, 3)
    episode, params = learner.episode(key, task, ()), state.meta_params
    for step_key in jax.random.split(adapt_key, 2):

        def loss(params, fixed, step_key=step_key):
            examples = family.collect(step_key, episode, "support", partial(learner.model.apply, fixed), 3)
            return jnp.mean((learner.model.apply(params, examples.inputs) - examples.targets) ** 2)

        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, params))
    predict = partial(learner.model.apply, params)
    expected = family.outcome(predict, family.collect(query_key, episode, "query", predict, 4)).loss
    np.testing.assert_allclose(outcome.loss, expected, rtol=1e-4)
