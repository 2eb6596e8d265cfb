"""From a node of the configuration to the object that it describes."""

from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.explain import explain_instantiation
from twmaml.errors import ConfigurationError
from twmaml.models.base import Model
from twmaml.tasks.base import TaskFamily


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
    if not isinstance(part, protocol):
        name = f"twmaml's {protocol.__name__}" if protocol.__module__.startswith("twmaml") else protocol.__name__
        members = {*protocol.__annotations__, *vars(protocol)} if getattr(protocol, "_is_protocol", False) else {}
        missing = sorted(each for each in members if not each.startswith("_") and not hasattr(part, each))
        lacks = f"; it has no {', '.join(missing)}" if missing else ""
        raise ConfigurationError(f"{key}._target_={cfg[key].get('_target_')}: does not make a {name}{lacks}")
    return part


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
