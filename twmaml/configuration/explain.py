"""From an error of Hydra's or OmegaConf's to one line."""

import re
import traceback
from collections.abc import Sequence
from typing import Any

from hydra.errors import CompactHydraException, InstantiationException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from twmaml.configuration.config_files import suggest, suggest_key
from twmaml.configuration.moved import moved_name
from twmaml.errors import clear, explain, innermost, one_line


def explain_error(error: BaseException) -> str | None:
    """The one line that tells the user what is wrong, Hydra's and OmegaConf's errors included; None for a fault."""
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        return clear(_explain_composition(error))
    return explain(error)


def explain_hydra(error: BaseException, arguments: Sequence[str]) -> str | None:
    """The one line for an error of Hydra's own, which stumbles over some values of its keys; None for any other."""
    passed = {frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)}
    if any(re.match(r"(twmaml|hydra_plugins)\.(?!train$)", name) for name in passed):
        return None
    asked = [argument for argument in arguments if re.match(r"[+~]*hydra\b", argument)]
    return clear(f"{' '.join(asked)}: Hydra cannot work with it: {one_line(error)}") if asked else None


def _explain_composition(error: BaseException) -> str:  # noqa: PLR0911  one for each kind of message
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; a value of special characters needs quotes twice: \"key='a=b'\""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        return one_line(error.__cause__)
    text = "\n".join(filter(None, [str(error), str(error.__cause__ or "")]))
    if match := re.search(r"Could not (?:find|load) 'hydra/(launcher|sweeper)/(joblib|submitit|ray|optuna)", text):
        part, engine = match.groups()
        extra = {"submitit": "slurm"}.get(engine, engine)
        return f'hydra/{part}: {engine} is not installed; pip install -e ".[{extra}]"'
    if match := re.search(r"Could not find '([\w/-]+)/([^/']+)'", text):
        group, choice = match.groups()
        available = re.search(r"Available options in '[^']*':\n((?:\t\S+\n?)+)", text)
        options = available.group(1).split() if available else []
        return f"{group}={choice}: must be one of {', '.join(options)}{suggest(choice, options)}"
    if match := re.search(r"Error merging override ([^\n]+)", text):
        return f"{match.group(1)}: is of another kind than what the key holds"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = next(filter(None, match.groups()))
        return f"{key}: there is no such key{suggest_key(key)}"
    for each in (error, error.__cause__):
        if isinstance(each, MissingMandatoryValue):
            return f"{each.full_key}: must be given"
        if isinstance(each, OmegaConfBaseException) and each.full_key:
            return f"{each.full_key}: {one_line(each)}"
    return one_line(error)


def explain_instantiation(error: InstantiationException, key: str) -> str:
    """One line on a part that could not be built from what stands under a key."""
    match = re.search(r"full_key: (\S+)", str(error))
    full_key = match.group(1) if match else key
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return first_invalid(cause, f"{full_key}.")
    head = str(error).splitlines()[0]
    target = re.search(r"'([^']+)'", head)
    if "locating target" in head and target:
        return f"{full_key}._target_={target.group(1)}: {_why_not_imported(target.group(1), cause)}"
    return f"{full_key}: {one_line(cause if cause is not None else error)}"


def _why_not_imported(target: str, error: BaseException | None) -> str:
    reason = error and (error.__cause__ or error.__context__)
    if (new := moved_name(target)) is not None:
        return f"it is now {new}"
    if reason is None or (isinstance(reason, ModuleNotFoundError) and f"{target}.".startswith(f"{reason.name}.")):
        return "there is nothing of that name to import"
    moved = moved_name(str(reason)) if isinstance(reason, ImportError) else None
    place = innermost(reason, lambda package: package not in ("hydra", "importlib"))
    where = f" ({place[1]})" if place and not isinstance(reason, SyntaxError) else ""  # whose message has it
    now = f"; it is now {moved}" if moved else ""
    return f"cannot be imported: {type(reason).__name__}: {one_line(reason)}{where}{now}"


def first_invalid(error: ValidationError, prefix: str) -> str:
    """One line for the first key that is wrong, as the user would write it."""
    # Alternatives of a union are tried one after the other; the first that has the right type says most.
    details = sorted(error.errors(), key=_is_of_type)
    detail = details[0]
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if _is_of_type(detail):  # then no alternative has it
        others = [
            each["msg"] for each in details if each["loc"][:1] == detail["loc"][:1] and each["msg"] != detail["msg"]
        ]
        message = " or ".join([message, *(other.removeprefix("Input should be ") for other in dict.fromkeys(others))])
    message = re.sub(r"\d{20,}", lambda digits: f"{float(digits.group()):g}", message)
    location = [part for part in detail["loc"] if isinstance(part, int) or re.fullmatch(r"[a-z_]\w*", part)]
    if detail["type"] == "value_error":
        names_its_field = re.match(r"[a-z_]+ must", message)
        return f"{prefix}{message}" if names_its_field or not prefix else f"{prefix.rstrip('.')}: {message}"
    key = prefix + ".".join(map(str, location[:1]))
    if detail["type"] == "unexpected_keyword_argument":
        return f"{key}: there is no such key"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    return f"{key}={detail['input']}: {message}"


def _is_of_type(detail: Any) -> bool:
    """Whether an error is that a value has the wrong type."""
    return detail["type"].endswith("_type")
