"""The example of docs/large_grids.md, on fewer cells, of which there are still enough for a tree."""

import re
from pathlib import Path

import numpy as np

from tests.conftest import contents, succeed
from twmaml.samplers.additive import TREE_FROM
from twmaml.storage.checkpoint import read, steps_in

DOCS = (Path(__file__).parent.parent / "docs/large_grids.md").read_text()
AXES = ("amplitude", "phase", "frequency", "slope", "offset")
SMALL = [
    "task=waves",
    "sampler=importance",
    "steps=30",
    "log_every=10",
    "checkpoint.every=10",
    "evaluation={every: 10, steps: 2, cells: [2, 2, 2, 2, 2]}",
    *[f"task.{name}.cells=6" for name in AXES],
]


def test_five_axes_are_drawn_through_the_tree_and_resumed_to_the_bit(train, tmp_path):
    assert 6 ** len(AXES) >= TREE_FROM
    for name, content in re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```", DOCS, re.DOTALL | re.MULTILINE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    command = ["--config-dir=my_conf", *SMALL]
    succeed(train(*command, "hydra.run.dir=whole", small=False))
    succeed(train(*command, "hydra.run.dir=parts", "steps=20", small=False))
    succeed(train(*command, "hydra.run.dir=parts", small=False))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert (whole / "metrics.csv").read_bytes() == (parts / "metrics.csv").read_bytes()
    assert contents(whole / "evaluation") == contents(parts / "evaluation")
    arrays, same = (read(folder / "checkpoints" / str(steps_in(folder)[0])).arrays for folder in (whole, parts))
    assert any(name.startswith("sampler.") for name in arrays)
    assert all(np.array_equal(arrays[name], same[name], equal_nan=arrays[name].dtype.kind == "f") for name in arrays)
