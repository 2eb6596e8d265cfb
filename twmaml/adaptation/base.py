"""The inner loop: from meta-parameters to weights adapted to one task. Knows nothing of sampling."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from twmaml.models.base import Model
from twmaml.types import LossOf, MetaParams, Params


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
