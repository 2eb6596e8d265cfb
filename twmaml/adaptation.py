"""The inner loop: from meta-parameters to weights adapted to one task. Knows nothing of sampling."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.models import Model
from twmaml.types import InnerSteps, LossOf, MetaParams, Params, PositiveReal


@runtime_checkable
class Adaptation(Protocol):
    """A meta-learner's inner loop."""

    @property
    def steps(self) -> int:
        """Inner steps in training."""
        ...

    def init(self, params: Params) -> MetaParams:
        """Meta-parameters around freshly initialised weights."""
        ...

    def start(self, meta_params: MetaParams) -> Params:
        """The weights before the first inner step."""
        ...

    def step(
        self, meta_params: MetaParams, params: Params, model: Model, loss_of: LossOf, key: Key[Array, ""]
    ) -> Params:
        """The weights after one more inner step."""
        ...


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class MAML:
    """Model-agnostic meta-learning: the meta-parameters are the initial weights, a step is plain SGD.

    Args:
        learning_rate: of the inner steps.
        steps: inner steps in training; 0 trains the initial weights on all tasks at once.
        first_order: leave out the derivative of the inner gradient (FOMAML).

    References:
        Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning, equation 1; section 5.2 for first order.
    """

    learning_rate: PositiveReal
    steps: InnerSteps
    first_order: bool = False

    def init(self, params: Params) -> MetaParams:
        """The weights themselves."""
        return params

    def start(self, meta_params: MetaParams) -> Params:
        """The weights themselves."""
        return meta_params

    def step(
        self, meta_params: MetaParams, params: Params, model: Model, loss_of: LossOf, key: Key[Array, ""]
    ) -> Params:
        """params - learning_rate * gradient of the loss."""
        del meta_params
        gradient = jax.grad(lambda params: loss_of(partial(model.apply, params), key))(params)
        if self.first_order:
            gradient = jax.lax.stop_gradient(gradient)
        return jax.tree.map(lambda p, g: p - self.learning_rate * g, params, gradient)

    def last_step(
        self, meta_params: MetaParams, params: Params, model: Model, loss_of: LossOf, key: Key[Array, ""]
    ) -> Params:
        """The same step in the form in which the model is fastest to differentiate through it."""
        factored_step = getattr(model, "factored_step", None)
        if factored_step is not None:
            stepped = factored_step(params, loss_of, key, self.learning_rate, self.first_order)
            if stepped is not None:
                return stepped
        return self.step(meta_params, params, model, loss_of, key)


def adapt(
    adaptation: Adaptation, meta_params: MetaParams, model: Model, loss_of: LossOf, key: Key[Array, ""], steps: int
) -> Params:
    """The weights after all inner steps, made to be differentiated by the meta-parameters."""
    params = adaptation.start(meta_params)
    if steps == 0:
        return params
    keys = jax.random.split(key, steps)
    step = partial(adaptation.step, meta_params, model=model, loss_of=loss_of)
    if steps > 1:
        params, _ = jax.lax.scan(lambda params, k: (step(params, key=k), None), params, keys[:-1])
    last_step = getattr(adaptation, "last_step", adaptation.step)
    return last_step(meta_params, params, model=model, loss_of=loss_of, key=keys[-1])


def adaptation_path(
    adaptation: Adaptation,
    meta_params: MetaParams,
    model: Model,
    loss_of: LossOf,
    key: Key[Array, ""],
    steps: int,
    observe: Callable[[Params], Any],
) -> Any:
    """What `observe` says of the weights after 0, 1, ... `steps` inner steps, stacked along the first axis."""

    def observed_step(params: Params, key: Key[Array, ""]) -> tuple[Params, Any]:
        params = adaptation.step(meta_params, params, model, loss_of, key)
        return params, observe(params)

    params = adaptation.start(meta_params)
    _, later = jax.lax.scan(observed_step, params, jax.random.split(key, steps))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), observe(params), later)
