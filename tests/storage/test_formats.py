"""Files that runs leave: what is written comes back, and what is damaged is told."""

import json
import math

import numpy as np
import pytest

from tests.conftest import ACCURACY, GRID, SCORE
from twmaml.space.axis import Categories, Interval, Segments
from twmaml.space.grid import ParameterGrid
from twmaml.storage import evaluation_file, pictures_file, summary
from twmaml.storage.evaluation_file import EvaluationRecord
from twmaml.storage.files import DamagedFileError
from twmaml.storage.pictures_file import Pictures
from twmaml.storage.summary import Summary

MIXED = ParameterGrid(
    {
        "angle": Interval(0.1, 5.0, 2, "deg"),
        "noise": Segments([(0.0, 1.0, 2), (3.0, 5.5, 1)], "dB"),
        "kind": Categories(["x", "y"]),
    }
)


def record_of(grid, metrics=(SCORE,), held=True):
    random = np.random.default_rng(0)
    names = ["loss", *(metric.key for metric in metrics[1:])]
    return EvaluationRecord(
        grid=grid,
        metrics=metrics,
        values={name: random.normal(size=(2 * grid.size, 3)).astype(np.float32) for name in names},
        tasks=np.asarray(grid.centres()).repeat(2, axis=0),
        queue_losses=random.normal(size=2 * grid.size).astype(np.float32) if held else None,
        visits=np.arange(2 * grid.size, dtype=np.int32) if held else None,
    )


@pytest.mark.parametrize("grid", [GRID, MIXED])
@pytest.mark.parametrize("metrics", [(SCORE,), (SCORE, ACCURACY)])
@pytest.mark.parametrize("held", [True, False])
def test_an_evaluation_comes_back_to_the_bit(grid, metrics, held, tmp_path):
    written = record_of(grid, metrics, held)
    path = evaluation_file.path_of(tmp_path, 40, "seen")
    path.parent.mkdir(parents=True)
    evaluation_file.write(path, written)
    found = evaluation_file.read(path)
    assert tuple(found.metrics) == metrics
    assert found.grid.axes == grid.axes
    assert list(found.values) == list(written.values)
    pairs = [(found.values[name], written.values[name]) for name in found.values]
    pairs += [(getattr(found, name), getattr(written, name)) for name in ("tasks", "queue_losses", "visits")]
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


def test_splits_have_files_of_their_own(tmp_path):
    paths = {evaluation_file.path_of(tmp_path, step, split) for step in (0, 1) for split in ("eval", "seen")}
    assert len(paths) == 4


def test_an_axis_that_no_file_can_hold_is_refused(tmp_path):
    class Own(Interval):
        pass

    with pytest.raises(TypeError, match="Own"):
        evaluation_file.write(tmp_path / "0.npz", record_of(ParameterGrid({"a": Own(0.0, 1.0, 2)})))


@pytest.mark.parametrize(
    "changes",
    [
        {"axes": "{"},
        {"axes": '{"a": {"kind": "Nothing"}}'},
        {"metrics": "[]"},
        {"metrics": '[{"key": 1}]'},
        {"losses": np.ones((3, 2))},
    ],
)
def test_an_evaluation_that_does_not_fit_together_is_told(changes, tmp_path):
    path = tmp_path / "0.npz"
    evaluation_file.write(path, record_of(GRID))
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, **changes})
    with pytest.raises(DamagedFileError, match=r"0\.npz"):
        evaluation_file.read(path)


def test_an_evaluation_of_an_earlier_version_is_told_apart_from_a_damaged_one(tmp_path):
    np.savez(tmp_path / "0.npz", losses=np.ones((4, 2)), tasks=np.ones((4, 2)), low=[0.0, 0.0], high=[1.0, 1.0])
    with pytest.raises(DamagedFileError, match=r"0\.npz is of an earlier version"):
        evaluation_file.read(tmp_path / "0.npz")


def test_a_summary_comes_back(tmp_path):
    metrics = {"eval/loss": 0.5, "queue/std": math.nan}
    written = Summary("failed: no way", 3, 60, 1.5, 2, None, metrics, "cpu", {"eval": "450 tasks"})
    summary.write(tmp_path, written)
    found = summary.read(tmp_path)
    assert found._replace(metrics={}) == written._replace(metrics={})
    assert found.metrics["eval/loss"] == 0.5
    assert math.isnan(found.metrics["queue/std"])
    assert {"python", "jax", "twmaml"} <= set(json.loads((tmp_path / "summary.json").read_text()))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"status": "finished", "seed": null, "step": 1}'])
def test_a_damaged_summary_is_told(text, tmp_path):
    with pytest.raises(FileNotFoundError):
        summary.read(tmp_path)
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"summary\.json"):
        summary.read(tmp_path)


def test_pictures_come_back(tmp_path):
    assert pictures_file.read(tmp_path) is None
    written = Pictures(np.ones((3, 2)), {"x": np.arange(6.0).reshape(3, 2), "image": np.zeros((3, 4, 4), np.uint8)})
    pictures_file.write(tmp_path, written)
    found = pictures_file.read(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found.tasks, written.tasks)
    assert {name: array.shape for name, array in found.of(1).items()} == {"x": (2,), "image": (4, 4)}
    np.testing.assert_array_equal(found.of(2)["x"], [4.0, 5.0])
