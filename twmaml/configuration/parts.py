"""The parts of a run, built."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hydra
from jaxtyping import Array, Float, PyTree
from omegaconf import DictConfig

from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.learner import MetaLearner
from twmaml.training.memory import Need


@dataclass(frozen=True)
class Parts:
    """The parts of a run, but for the seed."""

    learner: MetaLearner
    evaluations: Mapping[str, Evaluation]
    """By the name of the split."""
    data: Mapping[str, PyTree[Any]]
    """Arrays of the families by the name of the split; those of training under `train`."""
    fingerprint: int
    """A checksum of the data."""
    figures: Mapping[str, Callable[..., Any]]
    """Figures of the user's own by name."""
    needs: Sequence[Need]
    optimizer: DictConfig

    @property
    def evaluation(self) -> Evaluation:
        """The split `eval`."""
        return self.evaluations["eval"]

    def with_numbers(self, numbers: Mapping[str, Float[Array, ""]]) -> "Parts":
        """The same parts around arrays, which may be arguments of a program; nothing is checked.

        Args:
            numbers: by key, as on the command line: `adaptation.learning_rate`.

        Raises:
            ValueError: for a key that does not hold a real number of a part: it needs a program of its own.
        """
        learner = self.learner
        arguments = {key.partition(".")[2]: n for key, n in numbers.items() if key.startswith("optimizer.")}
        if arguments:
            factory = hydra.utils.instantiate(self.optimizer, _partial_=True, _convert_="all")
            learner = replace(learner, optimizer=factory(**arguments))
        for key, number in numbers.items():
            part, _, path = key.partition(".")
            if part in ("sampler", "model", "adaptation"):
                learner = replace(learner, **{part: _with_number(getattr(learner, part), path, number, key)})
            elif part != "optimizer":
                raise ValueError(f"{key}: is no number of a sampler, a model, an adaptation or an optimizer")
        evaluations = {
            name: replace(each, learner=replace(learner, family=each.learner.family))
            for name, each in self.evaluations.items()
        }
        return replace(self, learner=learner, evaluations=evaluations)


def _with_number(part: Any, path: str, number: Any, key: str) -> Any:
    name, _, rest = path.partition(".")
    value = getattr(part, name, None)
    if not rest and type(value) is not float:
        raise ValueError(f"{key}: {value!r} is not a real number")
    changed = copy.copy(part)
    object.__setattr__(changed, name, _with_number(value, rest, number, key) if rest else number)
    return changed
