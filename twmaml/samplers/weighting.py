"""The base class of weightings: what the losses of a batch count for, whoever has drawn its tasks."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree

from twmaml.samplers.base import Draw, Probability, Report, Sampler, View
from twmaml.space.grid import ParameterGrid


class Both(NamedTuple):
    """The state of a weighting."""

    proposal: PyTree[Array]
    """Of the sampler that draws."""
    weighting: PyTree[Array]
    """Of the weighting itself."""


class Weighting(Sampler):
    """A rule for what tasks count for, on top of a sampler that draws them.

    The weights are those of the draw times those of the rule: with importance weights in the draw, the expected
    gradient is that of the rule under uniform sampling, its own state given. A subclass is a frozen dataclass with a
    field `proposal`.
    """

    proposal: Sampler

    @abstractmethod
    def factors(self, report: Report, view: View) -> Float[Array, " tasks"]:
        """The rule: by what the weight of each task of a batch is multiplied.

        Args:
            report: of the whole batch.
            view: as it was when the batch was drawn, with the weighting's own state.
        """

    def start(self, grid: ParameterGrid) -> PyTree[Array]:
        """The weighting's own state before the first meta-step; nothing where losses alone decide."""
        del grid
        return ()

    def learn(self, grid: ParameterGrid, report: Report, view: View) -> PyTree[Array]:
        """The weighting's own state after a batch; `view` has the batch in its queue."""
        del grid, report
        return view.own

    @property
    def importance(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the proposal weighs its draws."""
        return self.proposal.importance

    @property
    def interpolate(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the proposal draws between the cells' centres."""
        return self.proposal.interpolate

    @property
    def selects(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the proposal chooses from more than it keeps."""
        return self.proposal.selects

    @property
    def expensive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the proposal is."""
        return self.proposal.expensive

    @property
    def continuous_only(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the proposal is."""
        return self.proposal.continuous_only

    def init(self, grid: ParameterGrid) -> Both:
        """Both states."""
        return Both(self.proposal.init(grid), self.start(grid))

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """Those of the proposal."""
        return self.proposal.probabilities(grid, _of_proposal(view))

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int) -> Draw:
        """The proposal's draw."""
        return self.proposal.draw(key, grid, _of_proposal(view), n)

    def draw_cells(
        self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int
    ) -> tuple[Int[Array, " tasks"], Probability]:
        """The cells that the proposal draws."""
        return self.proposal.draw_cells(key, grid, _of_proposal(view), n)

    def entropy(self, grid: ParameterGrid, view: View) -> Float[Array, ""]:
        """That of the proposal."""
        return self.proposal.entropy(grid, _of_proposal(view))

    def weigh(self, report: Report, view: View) -> Float[Array, " tasks"]:
        """The proposal's weights times the rule's."""
        weights = self.proposal.weigh(report, _of_proposal(view))
        report = report._replace(draw=report.draw._replace(weights=weights))
        return weights * self.factors(report, _of_weighting(view))

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> Both:
        """Both states after a batch."""
        return Both(
            self.proposal.update(key, grid, report, _of_proposal(view)),
            self.learn(grid, report, _of_weighting(view)),
        )

    def metrics(self, view: View) -> Mapping[str, Array]:
        """Those of the proposal."""
        return self.proposal.metrics(_of_proposal(view))


def _of_proposal(view: View) -> View:
    return view._replace(own=view.own.proposal)


def _of_weighting(view: View) -> View:
    return view._replace(own=view.own.weighting)
