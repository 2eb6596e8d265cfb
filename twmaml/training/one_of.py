"""Several samplers in one program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from twmaml.samplers.base import Draw, Report, Sampler, View
from twmaml.space.grid import ParameterGrid


@plain_dataclass(frozen=True)
class OneOf(Sampler):
    """One of several samplers, chosen by a number that may be traced: so runs of different samplers share a program.

    Its own state is the tuple of all members' states, of which only the chosen one's changes. Every result is cast to
    32 bits, so that all branches return the same types.

    Args:
        samplers: to choose from.
        index: of the one that draws.
    """

    samplers: Sequence[Sampler]
    index: Int[Array, ""]

    @property
    def selects(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the chosen one does; traced."""
        return jnp.array([each.selects for each in self.samplers])[self.index]

    def init(self, grid: ParameterGrid) -> PyTree[Array]:
        """The states of all."""
        return tuple(each.init(grid) for each in self.samplers)

    def probabilities(self, grid: ParameterGrid, view: View) -> Float[Array, " cells"]:
        """The probabilities of the chosen one."""
        return self._switch(lambda each, view: jnp.float32(each.probabilities(grid, view)), view)

    def draw(self, key: Key[Array, ""], grid: ParameterGrid, view: View, n: int) -> Draw:
        """The draw of the chosen one."""

        def draw(sampler: Sampler, view: View, key: Key[Array, ""]) -> Draw:
            tasks, cells, weights = sampler.draw(key, grid, view, n)
            return Draw(jnp.float32(tasks), jnp.int32(cells), jnp.float32(weights))

        return self._switch(draw, view, key)

    def entropy(self, grid: ParameterGrid, view: View) -> Float[Array, ""]:
        """The entropy of the chosen one."""
        return self._switch(lambda each, view: jnp.float32(each.entropy(grid, view)), view)

    def weigh(self, report: Report, view: View) -> Float[Array, " tasks"]:
        """The weights of the chosen one."""
        if not self._overridden("weigh"):
            return report.draw.weights
        return self._switch(lambda each, view, report: jnp.float32(each.weigh(report, view)), view, report)

    def update(self, key: Key[Array, ""], grid: ParameterGrid, report: Report, view: View) -> PyTree[Array]:
        """The states of all, the chosen one's updated."""
        if not self._overridden("update"):
            return view.own

        def branch(i: int) -> Callable[..., tuple[Any, ...]]:
            def update(view: View, key: Key[Array, ""], report: Report) -> tuple[Any, ...]:
                own = self.samplers[i].update(key, grid, report, view._replace(own=view.own[i]))
                return (*view.own[:i], own, *view.own[i + 1 :])

            return update

        return jax.lax.switch(self.index, [branch(i) for i in range(len(self.samplers))], view, key, report)

    def metrics(self, view: View) -> Mapping[str, Array]:
        """The metrics of any of them; NaN where the chosen one does not have one."""
        names = [{*each.metrics(view._replace(own=own))} for each, own in zip(self.samplers, view.own, strict=True)]

        def metrics(sampler: Sampler, view: View) -> dict[str, Array]:
            own = sampler.metrics(view)
            return {name: jnp.float32(own.get(name, jnp.nan)) for name in sorted(set.union(*names))}

        return self._switch(metrics, view)

    def _overridden(self, method: str) -> bool:
        """Whether any of them has a method of its own; if none, a switch would only copy what it passes through."""
        return any(getattr(type(each), method) is not getattr(Sampler, method) for each in self.samplers)

    def _switch(self, branch: Callable[..., Any], view: View, *operands: Any) -> Any:
        """The result of a function of the chosen sampler and of its own view."""

        def of_member(i: int) -> Callable[..., Any]:
            return lambda view, *operands: branch(self.samplers[i], view._replace(own=view.own[i]), *operands)

        return jax.lax.switch(self.index, [of_member(i) for i in range(len(self.samplers))], view, *operands)
