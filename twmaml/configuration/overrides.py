"""Overrides, `task=sin2d` say: read, and their choices of groups checked."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, Sweep

from twmaml.configuration.config_files import configuration_groups
from twmaml.errors import ConfigurationError, one_line


def check_overrides(overrides: Sequence[str]) -> None:
    """Checks the choices of groups; whether keys and values are right is seen when all is composed.

    Raises:
        ConfigurationError: for the first thing that is wrong.
        OverrideParseException: for the first one that cannot be read.
    """
    groups = configuration_groups()
    for override in parse_overrides(overrides):
        group, value = override.key_or_group, override.value()
        if isinstance(value, ChoiceSweep) and any(isinstance(each, Sweep) for each in value.list):
            raise ConfigurationError(f"{override.input_line}: a sweep cannot stand in a list of values; write them out")
        if group not in groups:
            continue
        if override.is_delete():
            if not isinstance(value, str | QuotedString | None):
                raise ConfigurationError(f"{override.input_line}: must name the choice to leave out, or nothing")
            continue
        if isinstance(value, ChoiceSweep):
            choices = value.list
        elif override.is_sweep_override() or isinstance(value, dict):
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
