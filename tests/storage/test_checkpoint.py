"""Checkpoints on disk: what is written comes back to the bit, what is damaged is not used, nothing is executed."""

import json
import pickle
import resource
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omegaconf import OmegaConf
from orbax.checkpoint import PyTreeCheckpointer

from tests.conftest import assert_trees_equal, make_learner_of
from twmaml.api import load
from twmaml.configuration.config_files import configuration_folder
from twmaml.errors import ConfigurationError
from twmaml.meta_learning.chunk import train_chunk
from twmaml.models.mlp import MLP
from twmaml.storage.checkpoint import (
    Checkpoint,
    CheckpointError,
    Notes,
    newest,
    newest_notes,
    pack,
    remove_after,
    steps_in,
    unpack,
    write,
)
from twmaml.storage.metrics_file import Mark
from twmaml.storage.run_folder import Resumable, RunFolder

PARTS = {
    "task": {
        "_target_": "twmaml.tasks.sinusoid.Sinusoid",
        "amplitude": {"_target_": "twmaml.space.axis.Interval", "low": 0.5, "high": 4.5, "cells": 4},
        "phase": {"_target_": "twmaml.space.axis.Interval", "low": 0.0, "high": 180.0, "cells": 5, "unit": "deg"},
        "frequency": 1.0,
        "x_low": -5.0,
        "x_high": 5.0,
    },
    "model": OmegaConf.to_container(OmegaConf.load(f"{configuration_folder()}/model/mlp.yaml")),
    "adaptation": {"_target_": "twmaml.adaptation.maml.MAML", "learning_rate": 0.01, "steps": 1},
    "shots": 10,
}
PARTS["model"]["widths"] = [8, 8]


@pytest.fixture(scope="module")
def trained():
    """The state of a run after three steps; cells that nobody has visited hold NaN."""
    learner = make_learner_of()
    state, _ = jax.jit(partial(train_chunk, learner))(learner.init(0), 3)
    return learner, state


@pytest.fixture
def folder(tmp_path, trained):
    """Of a run with checkpoints of the steps 10 and 20."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for step in (10, 20):
        write(tmp_path / "run", checkpoint(trained[1], step), keep=3)
    return tmp_path / "run"


def checkpoint(state, step, config=None):
    notes = Notes(step, 0, config or PARTS, {"a": 0.1, "b": float("nan")}, 1.5, Mark(100, "10,1.5\r\n"), "abc123")
    arrays = {name: np.asarray(leaf) for name, leaf in pack(state).items()}
    return Checkpoint(notes, arrays | {"losses": np.ones((2, 3))})


def test_a_state_comes_back_to_the_bit(folder, trained):
    learner, state = trained
    (read,) = newest([folder])
    assert read is not None
    assert_trees_equal(unpack(jax.eval_shape(lambda: learner.init(0)), read.arrays), state)
    assert repr(read.notes) == repr(checkpoint(state, 20).notes)  # NaN is not equal to itself


def test_numbers_of_half_precision_come_back(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    weights = {"a": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "b": jnp.float16(1.5)}
    write(tmp_path, checkpoint(weights, 10), keep=1)
    (read,) = newest([tmp_path])
    assert read is not None
    assert_trees_equal(unpack(jax.eval_shape(lambda: weights), read.arrays), weights)


def test_only_the_newest_are_kept_and_those_of_later_steps_go(folder, trained):
    for step in (30, 40):
        write(folder, checkpoint(trained[1], step), keep=2)
    assert steps_in(folder) == [40, 30]
    (folder / "checkpoints" / ".50.partial").mkdir()
    remove_after(folder, 30)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["30"]


def test_each_of_the_newest_has_the_best_up_to_it_beside_it(tmp_path, trained):
    (tmp_path / "checkpoints").mkdir()
    bests, kept = {10: 10, 20: 20, 30: 20, 40: 20, 50: 50, 60: 50, 70: 50}, []
    for step in bests:
        write(tmp_path, checkpoint(trained[1], step), keep=2, best=lambda until: bests[until])
        kept.append(steps_in(tmp_path))
    assert kept == [[10], [20, 10], [30, 20], [40, 30, 20], [50, 40, 20], [60, 50], [70, 60, 50]]


def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(folder, trained, monkeypatch):
    config = {**PARTS, "more": "x" * 20_000}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(CheckpointError, match=rf"^cannot write to {folder}/checkpoints/30: File too large$"):
            write(folder, checkpoint(trained[1], 30, config), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match="30: No space left on device"):
        write(folder, checkpoint(trained[1], 30), keep=1)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["10", "20"]
    assert newest([folder])[0] is not None


def files_of(path):
    return [each for each in sorted((path / "arrays").rglob("*")) if each.is_file()]


def largest(path):
    return max(files_of(path), key=lambda each: each.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def blank(path):
    """Gives a file another content of equal size."""
    path.write_bytes(bytes(path.stat().st_size))


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Bomb:
    """Its pickle writes a file when it is read."""

    def __reduce__(self):
        return open, ("exploded", "w")


DAMAGES = {
    "notes removed": lambda path: (path / "notes.json").unlink(),
    "notes cut": lambda path: (path / "notes.json").write_bytes((path / "notes.json").read_bytes()[:-40]),
    "notes changed": lambda path: (path / "notes.json").write_text(
        (path / "notes.json").read_text().replace('"a": 0.1', '"a": 0.2')
    ),
    "notes of another kind": lambda path: (path / "notes.json").write_text("[1, 2]"),
    "notes a pickle": lambda path: (path / "notes.json").write_bytes(pickle.dumps(Bomb())),
    "arrays removed": lambda path: shutil.rmtree(path / "arrays"),
    "arrays a file": lambda path: [shutil.rmtree(path / "arrays"), (path / "arrays").write_bytes(b"")],
    "arrays empty": lambda path: [each.write_bytes(b"") for each in files_of(path)],
    "a file removed": lambda path: largest(path).unlink(),
    "a file empty": lambda path: largest(path).write_bytes(b""),
    "a file cut": lambda path: cut(largest(path)),
    "a file longer": lambda path: largest(path).write_bytes(largest(path).read_bytes() + b"\0"),
    "a file of another content": lambda path: blank(largest(path)),
    "a bit of each file": lambda path: [spoil(each) for each in files_of(path)],
    "a folder for a file": lambda path: [(file := largest(path)).unlink(), file.mkdir()],
    "one file more": lambda path: (path / "arrays" / "d" / "more").write_bytes(b"more"),
    "arrays pickles": lambda path: [each.write_bytes(pickle.dumps(Bomb())) for each in files_of(path)],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_executes_nothing(damage, folder, caplog, monkeypatch):
    monkeypatch.chdir(folder.parent)
    DAMAGES[damage](folder / "checkpoints" / "20")
    (read,) = newest([folder])
    assert read is not None
    assert read.notes.step == 10
    assert f"{folder}/checkpoints/20 is damaged" in caplog.text
    assert "goes back to an earlier one" in caplog.text
    DAMAGES[damage](folder / "checkpoints" / "10")
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)  # importing it would fail
    with pytest.raises(CheckpointError, match="none of its checkpoints is whole") as raised:
        newest([folder])
    assert "\n" not in str(raised.value)
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert not (folder.parent / "exploded").exists()


def test_a_single_bit_of_any_file_counts(folder):
    path = folder / "checkpoints" / "20"
    for file in [path / "notes.json", *files_of(path)]:
        content = file.read_bytes()
        for position in {0, len(content) // 3, len(content) - 1}:
            changed = bytearray(content)
            changed[position] ^= 1
            file.write_bytes(changed)
            assert [each.notes.step for each in newest([folder]) if each] == [10], (file, position)
        file.write_bytes(content)
    assert [each.notes.step for each in newest([folder]) if each] == [20]


def test_a_whole_checkpoint_that_cannot_be_read_is_not_passed_over(folder, monkeypatch):
    def fail(*_):
        raise OSError("Too many\nopen files")

    monkeypatch.setattr(PyTreeCheckpointer, "restore", fail)
    with pytest.raises(CheckpointError, match=rf"^cannot read the checkpoint {folder}/checkpoints/20: Too many; open"):
        newest([folder])


def as_of_layout_1(path):
    """Makes the notes of a checkpoint what they were before they told the sizes and checksums of files."""
    notes = json.loads((path / "notes.json").read_text())
    del notes["files"]
    (path / "notes.json").write_text(json.dumps({**notes, "layout": 1, "checksum": 1234567890}, indent=1) + "\n")


def test_an_older_layout_is_refused_with_the_reason(folder):
    as_of_layout_1(folder / "checkpoints" / "20")
    for read in (lambda: newest([folder]), lambda: newest_notes(folder), lambda: load(folder)):
        with pytest.raises(CheckpointError, match=r"20 has layout 1; this version of twmaml reads 2$"):
            read()


def test_runs_of_one_program_go_on_from_the_same_step(folder, trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    write(other, checkpoint(trained[1], 30), keep=3)
    assert [each.notes.step for each in newest([folder, other]) if each] == [20, 20]
    spoil(largest(folder / "checkpoints" / "20"))
    assert [each.notes.step for each in newest([folder, other]) if each] == [10, 10]
    remove_after(folder, -1)
    assert [each and each.notes.step for each in newest([folder, other])] == [None, 30]


def test_an_old_best_that_several_runs_have_draws_none_of_them_back(tmp_path, trained):
    def steps(*present):
        for name, own in zip("ab", present, strict=True):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            (tmp_path / name / "checkpoints").mkdir(parents=True)
            for step in own:
                write(tmp_path / name, checkpoint(trained[1], step), keep=9)
        return [found.notes.step for found in newest([tmp_path / "a", tmp_path / "b"]) if found]

    assert steps([40, 50], [30, 40]) == [40, 40]  # killed between two of a program
    assert steps([30, 40, 50], [40, 80, 90]) == [50, 90]


def test_steps_that_would_leave_other_rows_are_a_last_resort(folder):
    assert [each.notes.step for each in newest([folder], lambda step: step == 10) if each] == [10]
    assert [each.notes.step for each in newest([folder], lambda _: False) if each] == [20]


def test_a_state_of_another_shape_is_refused(folder):
    (read,) = newest([folder])
    assert read is not None
    wider = make_learner_of(model=MLP([8, 9], "tanh", jax.nn.initializers.lecun_normal()))
    other = jax.eval_shape(lambda: wider.init(0))
    with pytest.raises(CheckpointError, match="does not fit: meta_params"):
        unpack(other, read.arrays)


def test_a_trained_initialisation_can_be_used(folder, trained):
    learner, state = trained
    loaded = load(folder)
    assert_trees_equal(loaded.meta_params, state.meta_params)
    assert loaded.step == 20
    x = np.linspace(-5, 5, 10)
    y = np.sin(x)

    def error(predict):
        return float(np.mean((np.asarray(predict(jnp.asarray(x, jnp.float32)[:, None]))[:, 0] - y) ** 2))

    errors = [error(predict) for predict in (loaded.predict, *(loaded.adapt(x, y, steps) for steps in (0, 1, 10)))]
    assert errors[0] == errors[1] > errors[2] > errors[3]
    with pytest.raises(ConfigurationError, match=r"is now predict\(x\)"):
        _ = loaded.model
    assert loaded.family.grid.shape == learner.family.grid.shape


class Own:
    """A network that is not twmaml's."""

    def init(self, key, example_input):
        del key, example_input
        return {"slope": jnp.zeros(())}

    def apply(self, params, inputs):
        return params["slope"] * inputs


def test_own_code_is_trusted_where_it_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    config = {**PARTS, "model": {"_target_": "tests.storage.test_checkpoint.Own"}}
    write(tmp_path, checkpoint({"meta_params": Own().init(None, None)}, 10, config), keep=1)
    with pytest.raises(ConfigurationError, match=r"Own: is not twmaml's own"):
        load(tmp_path)
    assert float(load(tmp_path, trust=["tests.storage.test_checkpoint"]).meta_params["slope"]) == 0


@pytest.mark.parametrize(
    "target", ["os.system", "twmaml.models.mlp.jax.numpy.array", "twmaml.storage.files.write_json"]
)
def test_a_checkpoint_that_would_run_foreign_code_is_refused(target, tmp_path, trained):
    (tmp_path / "checkpoints").mkdir()
    config = {**PARTS, "model": {**PARTS["model"], "bias": [{"_target_": target, "command": "touch exploded"}]}}
    write(tmp_path, checkpoint(trained[1], 10, config), keep=1)
    with pytest.raises(ConfigurationError, match=f"{target}: is not twmaml's own"):
        load(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load(tmp_path)


def test_a_run_of_an_earlier_version_goes_on_unless_a_key_that_was_added_since_says_something_else(folder):
    notes = newest_notes(folder)
    assert notes is not None
    for inside, refused in ((False, None), (True, r"evaluation.inside_cells \(False there, True here\)")):
        config = notes.config | {"steps": 30, "evaluation": {"patience": None, "inside_cells": inside}}
        with pytest.raises(ConfigurationError, match=refused) if refused else nullcontext():
            assert RunFolder.look(folder, config) == Resumable()
