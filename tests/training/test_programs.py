"""Programs of a group: shared arrays are arguments, and a run is saved as if it had been alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SAMPLERS, assert_trees_equal
from tests.examples import example
from twmaml.meta_learning.chunk import train_chunk
from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.random_numbers import loop_key
from twmaml.space.axis import Interval
from twmaml.storage.checkpoint import CheckpointError
from twmaml.tasks.sinusoid import Sinusoid
from twmaml.training.devices import TRAINING, compile_program, over_runs, shard_runs
from twmaml.training.members import Group
from twmaml.training.parts import Parts
from twmaml.training.programs import DoesNotFitError, Tracing, bytes_taken


class Scaled(Sinusoid):
    """Sinusoids whose amplitudes are scaled by an array that all tasks read."""

    def data(self):
        return jnp.linspace(0.0, 2.0, 300_000)

    def episode(self, key, task, data):
        parameters = super().episode(key, task, data)
        return {**parameters, "amplitude": parameters["amplitude"] * data[-1]}


@pytest.fixture
def learner(make_learner):
    return make_learner(family=Scaled(Interval(0.5, 4.5, 4), Interval(0.0, 180.0, 5, "deg"), 1.0, -5.0, 5.0))


def group_of(learner, evaluations, data, samplers):
    """A group of a run of each sampler, with the seeds 0, 1, ..."""
    whole = Parts(learner, evaluations, data, 0, {}, [], {}, lambda _, learner, __: learner)
    parts = [replace(whole, learner=replace(learner, sampler=sampler)) for sampler in samplers]
    return Group(parts, range(len(parts)), [{}] * len(parts))


def test_arrays_that_all_tasks_read_are_no_constants_of_a_program(learner):
    data = learner.family.data()
    program = jax.jit(partial(train_chunk, learner))
    assert len(program.lower(learner.init(0), jnp.int32(3), data).as_text()) < 300_000
    bound = jax.jit(lambda state: train_chunk(learner, state, jnp.int32(3), data))
    assert len(bound.lower(learner.init(0)).as_text()) > 600_000  # what closing over them would make of it
    once, twice = (program(learner.init(0), jnp.int32(3), scale * data)[0] for scale in (1, 2))
    assert twice.queue.losses[np.asarray(once.queue.visits) > 0].mean() > 2 * jnp.nanmean(once.queue.losses)


def test_a_small_loop_may_draw_random_numbers():
    def total(key):
        return jax.lax.fori_loop(0, 5, lambda i, sum_: sum_ + jax.random.uniform(jax.random.fold_in(key, i)), 0.0)

    program = jax.jit(total)
    compiled = compile_program(program.lower(loop_key(0)), TRAINING)
    assert compiled(loop_key(0)) == pytest.approx(float(program(jax.random.key(0))))


@pytest.mark.parametrize("cores", [1, 4])
def test_an_array_that_several_splits_read_is_in_memory_once(cores, learner, monkeypatch):
    monkeypatch.setattr("twmaml.training.devices.count_cores", lambda: cores)
    shared, own = np.ones(5), [np.zeros(3), np.full(3, 2.0)]
    data = {"train": (shared, own[0]), "eval": (shared, own[1]), "seen": (shared, own[0])}
    group = group_of(learner, {}, data, [SAMPLERS["uniform"]])
    assert (group.judging is group.sharding) == (cores == 1)
    places = {name: [a.unsafe_buffer_pointer() for a in arrays] for name, arrays in group.data.items()}
    assert places["train"][0] == places["eval"][0] == places["seen"][0]
    assert places["train"][1] == places["seen"][1] != places["eval"][1]
    assert_trees_equal(group.data, data)


@pytest.mark.parametrize("runs", [1, 2])
def test_evaluations_beside_the_training_have_its_figures_to_the_bit(learner, monkeypatch, runs):
    evaluation = Evaluation(learner, learner.family.grid.with_cells([2, 2]), steps=2, draws=1, queries=3)
    data = learner.family.data()
    judged, devices = [], []
    for cores in (1, 4):
        monkeypatch.setattr("twmaml.training.devices.count_cores", lambda cores=cores: cores)
        group = group_of(learner, {"eval": evaluation}, {"train": data, "eval": data}, [SAMPLERS["weighted"]] * runs)
        with ThreadPoolExecutor() as background:
            tracing = Tracing(group, background)
            programs = tracing.compiled(np.inf)
            states, _ = programs.advance(programs.begin(), 5)
            judged.append(jax.device_get(programs.evaluate(states)))
            assert_trees_equal(programs.illustrate(states, runs - 1).queue.losses, states.queue.losses[runs - 1])
            if runs > 1:
                taken = [bytes_taken(each, group.sharding) for each in (programs._train, programs._evaluate["eval"])]
                needed = max(taken) if cores == 1 else sum(taken)  # in turn, or both at once
                tracing.compiled(needed)
                with pytest.raises(DoesNotFitError):
                    tracing.compiled(needed - 1)
        devices.append({*group.sharding.device_set, *group.judging.device_set})
    assert [len(each) for each in devices] == [runs, 2 * runs]
    assert_trees_equal(*judged)


def test_a_run_of_a_group_is_saved_without_the_others_and_goes_on_to_the_bit(learner):
    smoothed = example("smoothed", "Smoothed")(decay=0.7, uniform_fraction=0.1)
    evaluation = Evaluation(learner, learner.family.grid.with_cells([2, 2]), steps=1, draws=1, queries=3)
    data = learner.family.data()
    with ThreadPoolExecutor() as background:
        samplers = [SAMPLERS["uniform"], smoothed, smoothed]
        group = group_of(learner, {"eval": evaluation}, {"train": data, "eval": data}, samplers)
        programs = Tracing(group, background).compiled(np.inf)
        states, _ = programs.advance(programs.begin(), 7)
        saved = programs.save(states)
        assert [name for name in saved[0] if name.startswith("sampler")] == []
        assert [saved[i]["sampler"].shape for i in (1, 2)] == [(20,), (20,)]
        assert not np.array_equal(saved[1]["sampler"], saved[2]["sampler"])
        ends = [programs.advance(each, 5)[0] for each in (states, programs.restore(saved))]
        assert_trees_equal(*[ends[i]._replace(sampler=()) for i in (0, 1)])
        for before, after in zip(*map(programs.save, ends), strict=True):
            assert before.keys() == after.keys()
            assert all(
                np.array_equal(before[name], after[name], equal_nan=before[name].dtype.kind == "f") for name in before
            )
        with pytest.raises(CheckpointError, match="sampler is missing"):
            programs.restore([saved[0], saved[0], saved[2]])
        results = programs.evaluate(states)
        assert results["eval"].results["loss"].shape[1:] == (4, 2)


def test_new_states_take_the_place_of_used_ones_and_of_nothing_else(learner):
    evaluation = Evaluation(learner, learner.family.grid.with_cells([2, 2]), steps=1, draws=1, queries=3)
    data = learner.family.data()
    with ThreadPoolExecutor() as background:
        group = group_of(learner, {"eval": evaluation}, {"train": data, "eval": data}, [SAMPLERS["weighted"]])
        programs = Tracing(group, background).compiled(np.inf)
    used, _ = programs.advance(programs.begin(), 2)
    states, _ = programs.advance(used, 3)
    saved, drawn = programs.save(used)[0], programs.illustrate(used, 0)
    kept = jax.tree.map(np.copy, (saved, drawn))
    fresh, chunk = programs.advance(states, 4)
    reused, same_chunk = programs.advance(states, 4, used)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(used))
    assert_trees_equal(reused, fresh)
    assert_trees_equal(same_chunk, chunk)
    assert_trees_equal((saved, drawn), kept)
    _, alone = jax.jit(partial(train_chunk, replace(learner, sampler=SAMPLERS["weighted"])))(
        jax.tree.map(lambda leaf: leaf[0], states), jnp.int32(4), data
    )
    assert {name: values.shape for name, values in chunk.metrics.items()} == dict.fromkeys(chunk.metrics, (1,))
    for name, value in alone.metrics.items():
        np.testing.assert_allclose(chunk.metrics[name][0], value, rtol=1e-4, err_msg=name)


def test_memory_that_is_reused_is_counted_once():
    x, sharding = jnp.zeros((1, 10_000)), shard_runs(1)
    lowered = over_runs(lambda x, _: x + 1, sharding, reuse=True).lower(x, jnp.float32(0), x)
    assert 2 * x.nbytes <= bytes_taken(lowered.compile(), sharding) < 3 * x.nbytes
