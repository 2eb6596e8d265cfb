"""The public API: a trained initialisation from its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from omegaconf import OmegaConf

from twmaml.adaptation.base import Adaptation, adapt
from twmaml.configuration.build import build_part, refuse_foreign
from twmaml.errors import ConfigurationError
from twmaml.models.base import Model
from twmaml.storage.checkpoint import CheckpointError, newest, unpack
from twmaml.tasks.base import TaskFamily
from twmaml.tasks.regression import Examples
from twmaml.types import MetaParams, Params, Predict

_TRUSTED = ("twmaml.tasks.", "twmaml.models.", "twmaml.adaptation.", "twmaml.space.", "jax.nn.", "jax._src.nn.")
"""Where the parts come from that `load` builds unasked."""


class Trained(NamedTuple):
    """A trained initialisation."""

    family: TaskFamily
    model: Model
    adaptation: Adaptation
    meta_params: MetaParams
    step: int
    """Meta-steps that it was trained for."""

    @property
    def params(self) -> Params:
        """The weights before adapting."""
        return self.adaptation.start(self.meta_params)

    def adapt(self, support_x: Any, support_y: Any, steps: int) -> Params:
        """The weights after so many inner steps on examples of a regression task."""
        examples = Examples(*(jnp.asarray(part, jnp.float32).reshape(-1, 1) for part in (support_x, support_y)))

        def loss_of(predict: Predict, _: Any) -> Array:
            return self.family.outcome(predict, examples).loss

        return adapt(self.adaptation, self.meta_params, self.model, loss_of, jax.random.key(0), steps)


def load(folder: str | Path, trust: Sequence[str] = ()) -> Trained:
    """The trained initialisation in the folder of a run, from its newest whole checkpoint.

    Args:
        folder: of the run.
        trust: modules besides twmaml's own that a family, a model or an adaptation may come from. Their code runs.

    Raises:
        CheckpointError, ConfigurationError: if there is none that can be used.
    """
    folder = Path(folder)
    (checkpoint,) = newest([folder])
    if checkpoint is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    cfg = OmegaConf.create(checkpoint.notes.config)
    for key in ("task", "model", "adaptation"):
        refuse_foreign(checkpoint.notes.config[key], (*_TRUSTED, *(f"{module}." for module in trust)))
    family, model = build_part(cfg, "task", TaskFamily), build_part(cfg, "model", Model)
    adaptation = build_part(cfg, "adaptation", Adaptation)
    shapes = jax.eval_shape(lambda: adaptation.init(model.init(jax.random.key(0), family.example_input)))
    meta_params = unpack({"meta_params": shapes}, checkpoint.arrays)["meta_params"]
    return Trained(family, model, adaptation, jax.tree.map(jnp.asarray, meta_params), checkpoint.notes.step)


def trusted_family(config: Mapping[str, Any]) -> TaskFamily | None:
    """The family of a configuration; None if it is not one of twmaml's own, or cannot be built any more."""
    try:
        refuse_foreign(config["task"], _TRUSTED)
        return build_part(OmegaConf.create(dict(config)), "task", TaskFamily)
    except ConfigurationError:
        return None
