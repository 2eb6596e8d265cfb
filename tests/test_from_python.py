"""The page and the notebook of docs/from_python, as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import succeed

DOCS = Path(__file__).parent.parent / "docs"
PAGE, NOTEBOOK = DOCS / "from_python.md", DOCS / "from_python.ipynb"

EXECUTE = """
import sys, nbclient, nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""
"""Executes every cell anew; a cell that fails fails it. `python -c` of it writes the notebook again in docs/."""


@pytest.fixture
def run_code(tmp_path, environment):
    def run(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return succeed(
            subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        )

    return run


def test_the_pages_examples_run_one_after_the_other(run_code, tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    (tmp_path / "page.py").write_text(code)
    output = run_code("import runpy; runpy.run_path('page.py', run_name='__main__')").stdout
    (loss,) = re.findall(r"^loss after 5 steps on 10 examples: (.*)$", output, re.MULTILINE)
    assert float(loss) < 2  # half the square of the amplitude: what the zero function has
    assert not [*tmp_path.glob("outputs")]


def _contents(path):
    """Of every cell its source and the kinds of its outputs, streams and the line of progress left out."""
    cells = json.loads(path.read_text())["cells"]
    kinds = [[sorted(output.get("data", {})) for output in cell.get("outputs", [])] for cell in cells]
    return [
        ("".join(cell["source"]), [kind for kind in of_cell if "image/png" in kind])
        for cell, of_cell in zip(cells, kinds, strict=True)
    ]


def test_the_notebook_runs_and_shows_what_is_committed(run_code, tmp_path):
    run_code(EXECUTE, NOTEBOOK, tmp_path / "again.ipynb")
    assert _contents(tmp_path / "again.ipynb") == _contents(NOTEBOOK)
    assert sum(len(pictures) for _, pictures in _contents(NOTEBOOK)) >= 4
    assert NOTEBOOK.stat().st_size < 500_000
