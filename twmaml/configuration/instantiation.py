"""From a node of the configuration to the object that it describes."""

from collections.abc import Mapping
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.explain import explain_instantiation
from twmaml.errors import ConfigurationError
from twmaml.models.base import Model
from twmaml.tasks.base import TaskFamily

TRUSTED = ("twmaml.tasks.", "twmaml.models.", "twmaml.adaptation.", "twmaml.space.", "jax.nn.", "jax._src.nn.")
"""Where the parts come from that `load` builds unasked."""


def build_part(cfg: DictConfig, key: str, protocol: Any) -> Any:
    """Builds what stands under a key, which must be what the protocol says.

    Raises:
        ConfigurationError: if it is not.
    """
    try:
        part = hydra.utils.instantiate(cfg[key], _convert_="all")
    except InstantiationException as error:
        raise ConfigurationError(explain_instantiation(error, key)) from error
    except SystemExit as error:  # of a _target_ that is no part at all
        raise ConfigurationError(f"{key}: a _target_ in it ends the process") from error
    if (fault := _fault_of(part, protocol)) is not None:
        raise ConfigurationError(f"{key}._target_={cfg[key].get('_target_')}: does not make a {fault}")
    return part


def check_kind(part: Any, key: str, protocol: Any) -> None:
    """Refuses an object that is to be a part and is not what the protocol says.

    Raises:
        ConfigurationError: if it is not.
    """
    if (fault := _fault_of(part, protocol)) is not None:
        raise ConfigurationError(f"{key}={part!r}: must be an instance of {fault}")


def _fault_of(part: Any, protocol: Any) -> str | None:
    """The name of the protocol, and what a part lacks of it; None if it is what the protocol says."""
    if isinstance(part, protocol) and not isinstance(part, type):
        return None
    name = f"twmaml's {protocol.__name__}" if protocol.__module__.startswith("twmaml") else protocol.__name__
    members = {*protocol.__annotations__, *vars(protocol)} if getattr(protocol, "_is_protocol", False) else {}
    missing = sorted(each for each in members if not each.startswith("_") and not hasattr(part, each))
    return name + (f"; it has no {', '.join(missing)}" if missing else "")


def refuse_foreign(part: Any, trusted: tuple[str, ...]) -> None:
    """Refuses a configuration that would run other code than it may."""
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else []:
        refuse_foreign(value, trusted)
    target = part.get("_target_") if isinstance(part, dict) else None
    if target is None:
        return
    # A trusted module may have imported others: what counts is also where the thing itself is defined.
    if not str(target).startswith(trusted) or not f"{hydra.utils.get_object(str(target)).__module__}.".startswith(
        trusted
    ):
        raise ConfigurationError(f"{target}: is not twmaml's own; load(folder, trust=[MODULE]) runs it all the same")


def trusted_family(config: Mapping[str, Any]) -> TaskFamily | None:
    """The task family of a configuration, if it is twmaml's own: for its pictures. Nothing else is executed."""
    try:
        refuse_foreign(config["task"], TRUSTED)
        return build_part(OmegaConf.create(dict(config)), "task", TaskFamily)
    except ConfigurationError:
        return None


def build_model(cfg: DictConfig, family: TaskFamily) -> Model:
    """Builds the network; `model.outputs: null` takes what the family needs.

    Raises:
        ConfigurationError: if it is none, or has another number of outputs.
    """
    if "outputs" in cfg.model and cfg.model.outputs is None:
        cfg = OmegaConf.merge(cfg, {"model": {"outputs": family.outputs}})  # type: ignore[assignment]
    model = build_part(cfg, "model", Model)
    if cfg.model.get("outputs", family.outputs) != family.outputs:
        raise ConfigurationError(
            f"model.outputs={cfg.model.outputs}: must be {family.outputs}, which the task needs, or null for that"
        )
    return model
