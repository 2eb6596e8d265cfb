"""The public API beside `load`, which the checkpoints' tests hold."""

import pytest

from tests.conftest import succeed
from twmaml.api import compose, trusted_family
from twmaml.errors import ConfigurationError
from twmaml.storage.checkpoint import newest


def test_a_configuration_is_composed_as_the_command_line_does(train, tmp_path):
    overrides = ["task=sin3d", "sampler=delta", "seed=[0,1]", "sampling.uniform_fraction=0.3"]
    composed = compose([*overrides, "wandb.mode=disabled", "steps=3"])
    assert composed["sampler"]["uniform_fraction"] == 0.3  # without interpolations
    small = ["steps=3", "evaluation.cells=[2,2,2]", "model.widths=[4]", "hydra.run.dir=run"]
    succeed(train(*overrides, *small, small=False))
    (checkpoint,) = newest([tmp_path / "run" / "seed_0"])
    assert checkpoint is not None
    assert checkpoint.notes.config == compose([*overrides, "wandb.mode=disabled", *small[:-1]])


@pytest.mark.parametrize(
    ("override", "line"), [("stps=3", "did you mean steps"), ("steps=0", "steps=0: must"), ("task=nope", "task=nope")]
)
def test_a_mistake_is_the_command_lines_line(override, line):
    with pytest.raises(ConfigurationError, match=line):
        compose([override])


def test_only_a_family_of_twmamls_own_is_built_unasked():
    config = compose(["task=sin2d"])
    family = trusted_family(config)
    assert family is not None
    assert family.grid.shape == (49, 36)
    assert trusted_family({**config, "task": {"_target_": "os.getcwd"}}) is None
