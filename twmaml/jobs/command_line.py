"""Mistakes that Hydra's own parsers would report in many lines, or trip over, told in one."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, Sweep

from twmaml.configuration.config_files import configuration_folder
from twmaml.configuration.explain import explain_error, explain_hydra
from twmaml.errors import ConfigurationError, one_line
from twmaml.storage.run_folder import AlreadyFinishedError


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The same arguments in the order that Hydra knows: its flags before all overrides."""

    def is_override(argument: str) -> bool:
        return not (argument in ("-m", "--multirun") or (argument.startswith("--") and "=" in argument))

    return sorted(arguments, key=is_override)


def check_arguments(arguments: Sequence[str]) -> None:
    """Checks flags and the choices of groups; whether keys and values are right is seen when all is composed.

    Raises:
        ConfigurationError: for the first thing that is wrong.
    """
    parser: Any = get_args_parser()
    parser.error = _refuse
    for override in parse_overrides(parser.parse_args(arguments).overrides):
        group, value = override.key_or_group, override.value()
        if isinstance(value, ChoiceSweep) and any(isinstance(each, Sweep) for each in value.list):
            raise ConfigurationError(f"{override.input_line}: a sweep cannot stand in a list of values; write them out")
        if not (Path(configuration_folder()) / group).is_dir():
            continue
        if override.is_delete():
            if not isinstance(value, str | QuotedString | None):
                raise ConfigurationError(f"{override.input_line}: must name the choice to leave out, or nothing")
            continue
        if isinstance(value, ChoiceSweep):
            choices = value.list
        elif override.is_sweep_override() or isinstance(value, dict) or (value is None and group == "experiment"):
            continue
        else:
            choices = value if isinstance(value, list) else [value]
        for choice in choices:
            text = choice.text if isinstance(choice, QuotedString) else choice
            if not isinstance(text, str) or not text or "${" in text:
                raise ConfigurationError(f"{group}={choice}: must be set to one of its choices (--help lists them)")


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Overrides as Hydra's grammar reads them.

    Raises:
        ConfigurationError: for the first one that it stumbles over.
        OverrideParseException: for the first one that it cannot read.
    """
    parser = OverridesParser.create()
    overrides: list[Override] = []
    for argument in arguments:
        try:
            overrides += parser.parse_overrides([argument])
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            raise ConfigurationError(f"{argument}: cannot be read: {one_line(error)}") from error
    return overrides


def _refuse(message: str) -> NoReturn:
    raise ConfigurationError(f"{message} (--help lists groups and keys, --hydra-help Hydra's own options)")


def exit_with(error: BaseException) -> None:
    """Ends the process with the one line that an expected error has, or with a traceback."""
    if isinstance(error, KeyboardInterrupt):
        sys.exit(128 + next(iter(error.args), signal.SIGINT))
    if isinstance(error, AlreadyFinishedError):
        print(f"twmaml: {error}")
        return
    line = explain_error(error) or explain_hydra(error, sys.argv[1:])
    if line is None:
        raise error
    sys.exit(f"twmaml: {line}")
