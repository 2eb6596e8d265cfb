"""Few-shot classification by the command line: what it trains, leaves and refuses."""

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import optax
import pytest
from PIL import Image

from tests.conftest import succeed
from twmaml.api import load
from twmaml.storage import evaluation_file
from twmaml.storage.checkpoint import newest
from twmaml.storage.metrics_file import read_metrics
from twmaml.storage.pictures_file import read as read_pictures

ROOT = Path(__file__).parent.parent.parent

GLYPHS = [
    "task=glyphs",
    "task.source.alphabets=[Latin,Braille]",
    "task.noise.cells=2",
    "task.noise.evaluation_cells=2",
    "model.filters=4",
    "model.layers=2",
    "steps=40",
    "log_every=20",
    "meta_batch=2",
    "evaluation.every=20",
    "evaluation.steps=2",
    "evaluation.splits.eval.draws=2",
    "evaluation.splits.eval.task.source.alphabets=[Greek,Lao]",
    "evaluation.splits.seen.draws=1",
]


@pytest.fixture
def folder(tmp_path):
    """Six classes of ten small colour images in two splits, each class of its own colour."""
    random = np.random.default_rng(0)
    for split, classes in (("train", 4), ("test", 3)):
        for k in range(classes):
            place = tmp_path / "images" / split / f"{split}_{k}"
            place.mkdir(parents=True)
            for i in range(6):
                pixels = random.integers(0, 40, (12, 12, 3)) + np.array([60 * k, 200 - 60 * k, 100])
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{i}.png")
    return tmp_path / "images"


def of_folder(folder):
    return [
        "task=image_folder",
        f"task.source.data_dir={folder}",
        "task.source.size=8",
        "task.ways=3",
        "queries=2",
        "evaluation.queries=2",
        "evaluation.splits.eval.draws=2",
        "model.filters=4",
        "model.layers=2",
    ]


def test_a_run_on_glyphs_judges_on_both_splits_and_can_be_used_and_resumed(train, tmp_path, environment):
    succeed(train(*GLYPHS, "sampler=importance_delta", "hydra.run.dir=x", small=False))
    run = tmp_path / "x"
    metrics = read_metrics(run / "metrics.csv")
    for name in ("train/accuracy", "eval/accuracy", "seen/accuracy", "seen/loss", "eval/accuracy_step_1"):
        assert ((metrics[name][-1] >= 0) & (metrics[name][-1] < 5)).all(), name
    for split, names in (("eval", ["Greek", "Lao"]), ("seen", ["Latin", "Braille"])):
        record = evaluation_file.read(evaluation_file.path_of(run, 40, split))
        assert record.grid.axes["alphabet"].span == f"({', '.join(names)})"
        assert (record.queue_losses is None) == (split == "eval")  # of these alphabets the queue has no cells
    figures = {path.stem for path in (run / "figures").iterdir()}
    assert {"queue", "evaluation", "evaluation_seen", "learning_curves_seen", "pictures"} <= figures
    pictures = read_pictures(run)
    assert pictures is not None
    assert pictures.of(0)["predictions"].shape[:2] == (3, 5)  # inner steps + 1, ways
    protocols = json.loads((run / "summary.json").read_text())["protocols"]
    assert "transductive" in protocols["eval"]
    assert "8 tasks" in protocols["eval"]
    assert "classes not seen in training" in protocols["eval"]
    assert "classes seen in training" in protocols["seen"]
    assert "4 tasks" in protocols["seen"]

    (code,) = re.findall(r"```python\n(import sys\n.*?)```", (ROOT / "docs/images.md").read_text(), re.DOTALL)
    used = subprocess.run(
        [sys.executable, "-c", code, run], env=environment, capture_output=True, text=True, check=False
    )
    assert re.fullmatch(r"predicted classes: \[(\d ){4}\d\]\n", succeed(used).stdout)
    trained = load(run)
    images, labels = np.random.default_rng(0).random((5, 28, 28)), np.arange(5)
    before, after = trained.predict(images), trained.adapt(images, labels, 3)(images)
    losses = [optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() for logits in (before, after)]
    assert losses[1] < losses[0]

    (checkpoint,) = newest([run])
    assert checkpoint is not None
    assert checkpoint.notes.data != zlib.crc32(b"")
    process = train(*GLYPHS, "sampler=importance_delta", "hydra.run.dir=x", "steps=60", small=False)
    succeed(process)
    longer = read_metrics(run / "metrics.csv")
    np.testing.assert_array_equal(longer["train/loss"][:3], metrics["train/loss"])


def test_a_run_goes_on_with_the_same_images_wherever_they_lie_and_with_no_others(train, tmp_path, folder):
    own = ["steps=4", "log_every=2", "evaluation.every=4", "hydra.run.dir=x"]
    succeed(train(*of_folder(folder), *own, small=False))
    moved = folder.rename(tmp_path / "elsewhere")
    succeed(train(*of_folder(moved), *own, "steps=6", small=False))
    assert read_metrics(tmp_path / "x/metrics.csv")["step"][-1] == 6
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(moved / "train/train_0/0.png")
    process = train(*of_folder(moved), *own, "steps=8", small=False)
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert "was trained with other images" in process.stderr


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["task.ways=1"], r"task.ways=1"),
        (["shots=2"], r"shots=2 queries=3: need 5 images of a class"),
        (["evaluation.queries=9"], r"shots=1 evaluation.queries=9: need 10 images of a class"),
        (["shots=5", "task.source.instances=8"], r"task.source.instances=8: no character of Arabic, Braille"),
        (["task.ways=900"], r"evaluation.splits.eval: task.ways=900: there are"),
        (["task.source.alphabets=[Klingon]"], r"task.source"),
        (["task=sin2d", "model=conv4"], r"takes images"),
        (["model.outputs=3"], r"model.outputs=3: must be 5"),
        (["task=omniglot"], r"task.source.data_dir: must be given"),
        (["task=omniglot", "task.source.data_dir=nowhere"], r"nowhere"),
        (["sampler=weighted", "sampler.interpolate=true"], r"nothing between the categories of alphabet"),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_is_compiled(overrides, line, train):
    process = train("task=glyphs", *overrides, small=False)
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1, process.stderr
    assert line in process.stderr


def test_a_truncated_image_ends_in_one_line(train, folder):
    broken = folder / "train/train_1/3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    process = train(*of_folder(folder), small=False)
    assert (process.returncode, process.stderr.count("\n")) == (1, 1)
    assert "train_1/3.png" in process.stderr
