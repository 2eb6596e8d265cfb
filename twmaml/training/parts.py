"""The parts of a run, built."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import PyTree

from twmaml.meta_learning.evaluation import Evaluation
from twmaml.meta_learning.learner import MetaLearner
from twmaml.training.memory import Need
from twmaml.types import Number


@dataclass(frozen=True)
class Parts:
    """The parts of a run, but for the seed."""

    learner: MetaLearner
    evaluations: Mapping[str, Evaluation]
    """By the name of the split."""
    data: Mapping[str, PyTree[Any]]
    """Arrays of the families by the name of the split; those of training under `train`."""
    fingerprint: int
    """A checksum of the data: a run does not go on with other data."""
    figures: Mapping[str, Callable[..., Any]]
    """Figures of the user's own by name."""
    needs: Sequence[Need]
    nodes: Mapping[str, Any]
    """The configurations of the learner's parts, of those that have one."""
    renumber: Callable[[Mapping[str, Any], MetaLearner, Mapping[str, Number]], MetaLearner]
    """A learner, built from such nodes, with other numbers in its parts."""

    @property
    def evaluation(self) -> Evaluation:
        """The split `eval`."""
        return self.evaluations["eval"]

    def with_numbers(self, numbers: Mapping[str, Number]) -> "Parts":
        """The same parts around other numbers, which may be arguments of a program; nothing is checked.

        Args:
            numbers: by key, as on the command line: `adaptation.learning_rate`.

        Raises:
            ValueError: for a key that does not hold a real number of a part: it needs a program of its own.
        """
        if not numbers:
            return self
        learner = self.renumber(self.nodes, self.learner, numbers)
        evaluations = {
            name: replace(each, learner=replace(learner, family=each.learner.family, shots=each.learner.shots))
            for name, each in self.evaluations.items()
        }
        return replace(self, learner=learner, evaluations=evaluations)
