"""Which jobs one program can train, and what it is told of each."""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from twmaml.configuration.numbers import numbers_in, without_numbers

Config = Mapping[str, Any]
"""A job's, as composed and interpolations resolved."""

Arguments = Callable[[Config, Mapping[str, float]], Set[str]]
"""The keys of those numbers of a job that may be arguments of its program, of some that another job has otherwise."""


def group_keys(configs: Sequence[Config], apart: Sequence[bool], arguments: Arguments) -> list[int]:
    """Equal for jobs that one program can train: those which differ only in what is a run's own.

    Args:
        configs: of the jobs.
        apart: of each, whether only jobs of its own sampler may share its program.
        arguments: which of their numbers may differ.
    """
    keys = [0] * len(configs)
    of_program = [
        _without(config, ("sampling",) if alone else ("sampler", "sampling"))
        for config, alone in zip(configs, apart, strict=True)
    ]
    for key, alike in enumerate(divide(of_program, configs, arguments)):
        for index in alike:
            keys[index] = key
    return keys


def shared_numbers(configs: Sequence[Config], arguments: Arguments) -> list[dict[int, dict[str, float]]]:
    """Jobs that one program trains, by their index: the numbers that are a job's own, but for those of its sampler."""
    return divide([_without(config, ("sampler", "sampling")) for config in configs], configs, arguments)


def sampler_numbers(configs: Sequence[Config], arguments: Arguments) -> list[dict[int, dict[str, float]]]:
    """Jobs whose samplers are the same but for numbers, by their index: these numbers."""
    return divide([{"sampler": config["sampler"]} for config in configs], configs, arguments)


def divide(
    seen: Sequence[Config], configs: Sequence[Config], arguments: Arguments
) -> list[dict[int, dict[str, float]]]:
    """Divides jobs into those which differ only in numbers that may be arguments; of each, by its index, these numbers.

    Args:
        seen: the part of each job's configuration that counts.
        configs: of the jobs.
        arguments: which of their numbers may differ.
    """
    numbers = [numbers_in(config) for config in seen]
    alike: dict[str, list[int]] = {}
    for index, (config, own) in enumerate(zip(seen, numbers, strict=True)):
        key = json.dumps(without_numbers(config, own.keys()), sort_keys=True, default=str)
        alike.setdefault(key, []).append(index)

    def split(members: list[int]) -> list[dict[int, dict[str, float]]]:
        first = numbers[members[0]]
        differing = {key: own for index in members for key, own in numbers[index].items() if own != first[key]}
        allowed = arguments(configs[members[0]], differing) if differing else set()
        refused = sorted(differing.keys() - allowed)
        if not refused:
            return [{index: {key: numbers[index][key] for key in sorted(differing)} for index in members}]
        parts: dict[tuple[float, ...], list[int]] = {}
        for index in members:
            parts.setdefault(tuple(numbers[index][key] for key in refused), []).append(index)
        return [part for members in parts.values() for part in split(members)]

    return [part for members in alike.values() for part in split(members)]


def _without(config: Config, keys: Sequence[str]) -> Config:
    return {key: value for key, value in config.items() if key not in ("seed", "wandb", *keys)}
