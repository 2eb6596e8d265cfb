"""The README's examples, as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SMALL, succeed
from tests.readme import COMMANDS, FILES, README, write_examples
from twmaml.figures.run import FIGURES


def test_every_example_is_a_module_and_a_yaml_of_at_most_40_lines():
    assert len(FILES) == 2 * len(COMMANDS) >= 10
    assert all(len(content.splitlines()) <= 40 for content in FILES.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs(command, tmp_path, environment):
    write_examples(tmp_path)
    small = [item for item in SMALL if not item.startswith(("task.", "evaluation.cells")) or "task=" not in command]
    process = subprocess.run(
        [sys.executable, "-m", *command.split(), *small, "wandb.mode=disabled"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    drawn = {path.stem for path in tmp_path.glob("outputs/*/*/figures/*.png")}
    assert {*FIGURES} - {"pictures", "learned", "contexts"} <= drawn  # of some families and adaptations only
    assert ("forgotten" in drawn) == ("forgotten" in command)


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
