"""The import picture: a module imports only from lower levels, and no module is missing from the picture."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "twmaml"
LEVELS = {
    "types": 0,
    "grid": 0.5,
    "memory": 0,
    "priority_queue": 1,
    "models": 1,
    "tasks.base": 1,
    "tasks.sinusoid": 2,
    "tasks.quadratic": 2,
    "samplers": 2,
    "adaptation": 2,
    "runner": 3,
    "statistics": 0,
    "evaluation": 3.5,
    "tracking": 3.5,
    "terminal": 3.5,
    "panels": 3.5,
    "figures": 3.6,
    "finished": 3.6,
    "comparison": 3.7,
    "comparison_sheet": 3.75,
    "comparison_figures": 3.8,
    "checkpoint": 3.6,
    "programs": 3.7,
    "run": 3.7,
    "session": 3.72,
    "standing": 3.75,
    "conf_files": 0,
    "errors": 0.5,
    "command_line": 0.6,
    "contracts": 3.54,
    "configuration": 3.55,
    "processes": 0,
    "page": 0,
    "request": 3.8,
    "report": 3.85,
    "training": 3.87,
    "jobs": 3.9,
    "page_data": 3.9,
    "compare": 4,
    "reproduce": 4,
    "resume": 3.95,
    "train": 4,
}


def _modules():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), ast.parse(path.read_text())


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("twmaml."):
            yield node.module.removeprefix("twmaml.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("twmaml.") for a in node.names if a.name.startswith("twmaml."))


@pytest.mark.parametrize(("name", "tree"), list(_modules()))
def test_a_module_imports_only_from_lower_levels(name, tree):
    for imported in _imports(tree):
        assert LEVELS[imported] < LEVELS[name], f"{name} imports {imported}"


def test_the_picture_is_complete():
    assert {name for name, _ in _modules()} == set(LEVELS)


def test_packages_export_nothing():
    assert all(path.read_text() == "" for path in PACKAGE.rglob("__init__.py"))


@pytest.mark.parametrize(("name", "tree"), list(_modules()))
def test_only_the_command_line_and_its_configuration_know_hydra(name, tree):
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    knows = any(module.split(".")[0] in ("hydra", "omegaconf") for module in imported)
    assert not knows or name in (
        "train",
        "jobs",
        "request",
        "configuration",
        "command_line",
        "conf_files",
        "errors",
        "finished",
        "reproduce",
        "checkpoint",
        "resume",
    )
