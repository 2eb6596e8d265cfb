"""Mistakes that Hydra's own parsers would report in many lines, or trip over, told in one."""

import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from twmaml.configuration.explain import explain_error, explain_hydra
from twmaml.configuration.overrides import check_overrides
from twmaml.errors import ConfigurationError
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
    check_overrides(parser.parse_args(arguments).overrides)


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
