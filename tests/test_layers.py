"""The import table: a package imports only what the table allows, and no package is missing from it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "twmaml"

EVERYONE = {"types", "errors", "statistics"}
PARTS = {"samplers", "tasks", "adaptation", "models", "space"}
METHOD = {"meta_learning", *PARTS}
MAY_IMPORT = {
    "types": set(),
    "errors": set(),
    "statistics": set(),
    "space": set(),
    "models": set(),
    "samplers": {"space"},
    "tasks": {"space"},
    "adaptation": {"models"},
    "meta_learning": PARTS,
    "storage": {"space"},
    "figures": {"space", "storage"},
    "analysis": {"figures", "storage", "space"},
    "training": {*METHOD, "figures", "storage"},
    "configuration": {"training", *METHOD, "storage"},
    "jobs": {"configuration", "training", "storage", "figures"},
    "python": {"configuration", "training", *METHOD, "storage", "figures"},
    "api": {"python", *PARTS, "storage", "figures"},
    "train": {"jobs", "configuration"},
    "compare": {"analysis", "configuration"},
    "reproduce": {"analysis", "configuration"},
}
HYDRA = {"jobs", "configuration", "train"}
OMEGACONF = {*HYDRA, "analysis.finished_runs", "python", "reproduce"}


def _modules():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), ast.parse(path.read_text())


MODULES = dict(_modules())


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _own(tree):
    """The modules of twmaml that a module imports, one by one or by a name out of it."""
    return {name.removeprefix("twmaml.") for name in _imports(tree)} & set(MODULES)


def _package(module):
    return module.partition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_the_table_allows(name):
    allowed = {_package(name), *EVERYONE, *MAY_IMPORT[_package(name)]} - (
        EVERYONE if name in ("types", "errors") else set()
    )
    forbidden = {imported for imported in _own(MODULES[name]) if _package(imported) not in allowed}
    assert not forbidden, f"{name} imports {', '.join(sorted(forbidden))}"


def test_the_table_is_complete_and_has_no_circle():
    assert {_package(name) for name in MODULES} == set(MAY_IMPORT)
    left = dict(MAY_IMPORT)
    while left:
        free = [name for name, imported in left.items() if not imported & set(left)]
        assert free, f"in a circle: {', '.join(left)}"
        for name in free:
            del left[name]


def test_no_modules_import_each_other():
    left = {name: _own(tree) - {name} for name, tree in MODULES.items()}
    while left:
        free = [name for name, imported in left.items() if not imported & set(left)]
        assert free, f"in a circle: {', '.join(left)}"
        for name in free:
            del left[name]


def test_packages_export_nothing():
    assert all(path.read_text() == "" for path in PACKAGE.rglob("__init__.py"))


@pytest.mark.parametrize("name", MODULES)
def test_only_jobs_and_configuration_know_hydra(name):
    roots = {imported.partition(".")[0] for imported in _imports(MODULES[name])}
    assert "hydra" not in roots or _package(name) in HYDRA
    assert "omegaconf" not in roots or {name, _package(name)} & OMEGACONF
