"""The public names: one list, each documented, typed and on the page; and experiments that are composed."""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest

from tests.conftest import SMALL, succeed
from twmaml import api
from twmaml.api import ConfigurationError, Interval, Regression, Sampler, compose
from twmaml.configuration.composition import compose_configuration
from twmaml.configuration.instantiation import trusted_family
from twmaml.storage.checkpoint import newest
from twmaml.training import process

PAGE = (Path(__file__).parent.parent / "docs" / "from_python.md").read_text()


@pytest.fixture(autouse=True)
def jax_as_it_is(monkeypatch):
    monkeypatch.setattr(process, "_started", True)


def test_public_names_are_one_sorted_list():
    imported = {name for name, value in vars(api).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert api.__all__ == sorted(imported)


@pytest.mark.parametrize("name", api.__all__)
def test_a_public_name_has_a_line_on_the_page(name):
    assert len(re.findall(rf"^\| [^|]*`{name}`[^|]* \| .{{10,}} \|$", PAGE, re.MULTILINE)) == 1


def _functions(public):
    """The functions of a public name: itself, or the public methods that its class defines or inherits from ours."""
    if inspect.isfunction(public):
        return [public]
    ours = [base for base in getattr(public, "__mro__", ()) if base.__module__.startswith("twmaml")]
    members = [member for base in ours for name, member in vars(base).items() if not name.startswith("_")]
    unwrapped = [member.fget if isinstance(member, property) else member for member in members]
    return [member for member in unwrapped if inspect.isfunction(member) and member.__module__.startswith("twmaml")]


@pytest.mark.parametrize("name", [name for name in api.__all__ if name != "Parameter"])  # a union of types
def test_a_public_name_is_typed_and_documented(name):
    public = getattr(api, name)
    assert public.__doc__
    for function in _functions(public):
        signature = inspect.signature(function)
        given = [p for p in signature.parameters.values() if p.name != "self"]
        assert all(p.annotation is not p.empty for p in given), function
        assert signature.return_annotation is not signature.empty, function
        assert function.__doc__, function


def test_a_configuration_is_the_command_lines(train, tmp_path):
    overrides = ["task=sin3d", "sampler=delta", "seed=[0,1]", "sampling.uniform_fraction=0.3", "wandb.mode=disabled"]
    small = ["steps=3", "evaluation.cells=[2,2,2]", "model.widths=[4]"]
    succeed(train(*overrides, *small, "hydra.run.dir=run", small=False))
    (checkpoint,) = newest([tmp_path / "run" / "seed_0"])
    assert checkpoint is not None
    changes = {"task": "sin3d", "steps": 3, "evaluation": {"cells": [2, 2, 2]}, "model": {"widths": [4]}}
    composed = compose(*overrides[1:], **changes).config
    assert checkpoint.notes.config == composed
    assert composed["sampler"]["uniform_fraction"] == 0.3  # without interpolations


@dataclass(frozen=True)
class Even(Sampler):
    cells: int

    def probabilities(self, grid, view):
        return jnp.full(self.cells, 1 / self.cells)


@dataclass(frozen=True)
class Lines(Regression):
    slope: Interval
    x_low: float = -1.0
    x_high: float = 1.0

    def target(self, parameters, x):
        return parameters["slope"] * x


LINES = Lines(Interval(0.0, 1.0, 20))


def test_objects_are_parts():
    sampler, optimizer = Even(20), optax.sgd(0.1)
    experiment = compose("sampler=weighted", "evaluation.cells=[4]", task=LINES, sampler=sampler, optimizer=optimizer)
    assert (experiment.family, experiment.sampler, experiment.optimizer) == (LINES, sampler, optimizer)
    assert experiment.config["task"] is LINES
    runs = compose(*SMALL[:3], "evaluation.cells=[4]", task=LINES, sampler=sampler).begin()
    runs.train(5)
    assert runs[0].queue["visits"].shape == (20,)


@pytest.mark.parametrize(
    ("overrides", "changes", "line"),
    [
        (["stps=3"], {}, "did you mean steps"),
        ([], {"stps": 3}, "did you mean steps"),
        ([], {"steps": 0}, "steps=0: must"),
        (["task=nope"], {}, "task=nope: must be one of"),
        ([], {"task": "nope"}, "task=nope: must be one of"),
        ([], {"sampler": Even(20)}, r"probabilities must be floats of shape \(1764,\)"),
        ([], {"sampler": Even}, "sampler=.*Even.*: must be an instance of twmaml's Sampler"),
        ([], {"optimizer": optax.adam}, "optimizer=.*: must be an instance of GradientTransformation"),
        (["+evaluation.splits.wide.task.slope.high=2.0"], {"task": LINES}, "splits.wide.task: cannot change"),
    ],
)
def test_a_mistake_is_the_command_lines_line(overrides, changes, line):
    with pytest.raises(ConfigurationError, match=line):
        compose(*overrides, **changes)


def test_what_only_the_command_line_does_is_refused():
    experiment = compose(*SMALL, "+evaluation.splits.validation={}", "evaluation.patience=3")
    with pytest.raises(ConfigurationError, match=r"evaluation\.patience=3"):
        experiment.begin()


def test_only_a_family_of_twmamls_own_is_built_unasked():
    config = compose_configuration(["task=sin2d"]).config
    family = trusted_family(config)
    assert family is not None
    assert family.grid.shape == (49, 36)
    assert trusted_family({**config, "task": {"_target_": "os.getcwd"}}) is None
