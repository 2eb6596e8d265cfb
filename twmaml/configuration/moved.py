"""Names of earlier versions, and what they are now."""

import re

KEYS = {"epsilon": "sampling.epsilon", "uniform_fraction": "sampling.uniform_fraction"}
"""Root keys."""

_NAMES = {
    "adaptation.Adaptation": "adaptation.base.Adaptation",
    "adaptation.MAML": "adaptation.maml.MAML",
    "checkpoint.load": "api.load",
    "grid.Axis": "space.axis.Interval",
    "grid.ParameterGrid": "space.grid.ParameterGrid",
    "models.MLP": "models.mlp.MLP",
    "models.Model": "models.base.Model",
    "priority_queue.PriorityQueue": "space.priority_queue.PriorityQueue",
    "samplers.Draw": "samplers.base.Draw",
    "samplers.EpsilonGreedy": "samplers.epsilon_greedy.EpsilonGreedy",
    "samplers.Proportional": "samplers.proportional.Proportional",
    "samplers.Sampler": "samplers.base.Sampler",
    "samplers.Uniform": "samplers.uniform.Uniform",
    "tasks.base.Examples": "tasks.regression.Examples",
    "tasks.base.Outcome": "types.Outcome",
    "tasks.base.Regression": "tasks.regression.Regression",
}
"""Names that a user's configuration or module may have from twmaml."""


def moved_key(key: str) -> str | None:
    """The new name of a key, or of one below it."""
    root, dot, rest = key.partition(".")
    return f"{KEYS[root]}{dot}{rest}" if root in KEYS else None


def moved_name(message: str) -> str | None:
    """The new place of what a target or an import names, by the target itself or by Python's message."""
    if match := re.search(r"cannot import name '(\w+)' from '([\w.]+)'", message):
        message = f"{match.group(2)}.{match.group(1)}"
    named = re.search(r"\btwmaml\.([\w.]+)", message)
    if named is None:
        return None
    for old, new in _NAMES.items():
        if named.group(1) == old:
            return f"twmaml.{new}"
    of_module = [f"twmaml.{new}" for old, new in _NAMES.items() if old.rpartition(".")[0] == named.group(1)]
    return " and ".join(of_module) or None
