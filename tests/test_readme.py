"""The README's examples, as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SMALL, succeed
from twmaml.figures.run import FIGURES

README = (Path(__file__).parent.parent / "README.md").read_text()
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", README, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^python -m (twmaml\.train --config-dir .*)$", README, re.MULTILINE)


def test_both_examples_are_there():
    assert set(FILES) == {"oldest.py", "my_conf/sampler/oldest.yaml", "damped.py", "my_conf/task/damped.yaml"}
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs(command, tmp_path, environment):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    small = [item for item in SMALL if not item.startswith(("task.", "evaluation.cells"))]
    process = subprocess.run(
        [sys.executable, "-m", *command.split(), *small, "wandb.mode=disabled"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert {path.stem for path in tmp_path.glob("outputs/*/*/figures/*.png")} == set(FIGURES)


def test_a_trained_initialisation_is_used(train, tmp_path, environment):
    succeed(train("hydra.run.dir=run"))
    (code,) = re.findall(r"```python\n(import sys\n.*?)```", README, re.DOTALL)
    command = [sys.executable, "-c", code, "run"]
    output = succeed(
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    )
    assert re.fullmatch(r"loss after 5 steps on 10 examples: \d+\.\d+\n", output.stdout)


def test_every_picture_is_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((Path(__file__).parent.parent / picture).stat().st_size > 1000 for picture in pictures)
