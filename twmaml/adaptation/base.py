"""The base class of adaptations: from meta-parameters to a network adapted to one task. Knows nothing of sampling."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from twmaml.models.base import Batch, Coefficients, MetaGradient, Model
from twmaml.types import Fast, LossOf, MetaParams, Outcome, Predict, Step

Judge = Callable[[Fast], Outcome]
"""How an adapted network does on a task's query data."""


class Adaptation(ABC):
    """A meta-learner's inner loop and objective: the only place that binds a network to weights."""

    steps: int
    """Inner steps in training."""
    same_data: bool = False
    """Whether it needs the same support data at every inner step, which policies do not have."""

    def init(self, key: Key[Array, ""], model: Model, example_input: Any) -> MetaParams:
        """Fresh meta-parameters: the network's weights."""
        return model.init(key, example_input)

    def start(self, meta_params: MetaParams) -> Fast:
        """The adapted parameters before the first inner step: the meta-parameters themselves."""
        return meta_params

    def predict(self, model: Model, meta_params: MetaParams, fast: Fast, inputs: Any) -> Any:
        """Outputs of the adapted network: what is adapted are its weights."""
        del meta_params
        return model.apply(fast, inputs)

    @abstractmethod
    def step(
        self,
        model: Model,
        meta_params: MetaParams,
        fast: Fast,
        loss_of: LossOf,
        key: Key[Array, ""],
        index: int | Int[Array, ""],
    ) -> Fast:
        """The adapted parameters after one more inner step, `index` of them having been taken."""

    def last_step(
        self,
        model: Model,
        meta_params: MetaParams,
        fast: Fast,
        loss_of: LossOf,
        key: Key[Array, ""],
        index: int | Int[Array, ""],
    ) -> Fast:
        """The same step in the form that is fastest to differentiate through; only `predict` understands it."""
        return self.step(model, meta_params, fast, loss_of, key, index)

    def meta_gradient(
        self, model: Model, meta_params: MetaParams, support: Batch, query: Batch, coefficients: Coefficients
    ) -> MetaGradient | None:
        """Gradient of a weighted sum of mean squared errors in a faster form than autodiff of `objective` gives.

        Returns:
            None where there is none.
        """
        del model, meta_params, support, query, coefficients
        return None

    def objective(
        self,
        model: Model,
        meta_params: MetaParams,
        loss_of: LossOf,
        judge: Judge,
        key: Key[Array, ""],
        meta_step: Step,
    ) -> tuple[Float[Array, ""], Outcome]:
        """The number that the meta-step differentiates for one task, and the outcome that is logged and queued.

        Args:
            model: the network.
            meta_params: to be differentiated by.
            loss_of: the loss on support data, which the inner steps descend.
            judge: the adapted network on query data.
            key: of the adaptation.
            meta_step: of the training.
        """
        del meta_step
        outcome = judge(adapt(self, model, meta_params, loss_of, key, self.steps))
        return outcome.loss, outcome

    def learned(self, meta_params: MetaParams) -> Mapping[str, PyTree[Any]]:
        """Arrays that are learned besides the weights, by what they are: figures show their values. On the host."""
        del meta_params
        return {}

    def context(self, fast: Fast) -> Float[Array, " size"] | None:
        """The adapted numbers where they are few and no weights, which figures show over the tasks; else None."""
        del fast
        return None


def inner_gradient(
    adaptation: Adaptation, model: Model, meta_params: MetaParams, fast: Fast, loss_of: LossOf, key: Key[Array, ""]
) -> Fast:
    """The gradient of the loss on support data by what is adapted."""
    return jax.grad(lambda fast: loss_of(bind(adaptation, model, meta_params, fast), key))(fast)


def bind(adaptation: Adaptation, model: Model, meta_params: MetaParams, fast: Fast) -> Predict:
    """The adapted network as a function of its inputs."""
    return partial(adaptation.predict, model, meta_params, fast)


def adapt(
    adaptation: Adaptation,
    model: Model,
    meta_params: MetaParams,
    loss_of: LossOf,
    key: Key[Array, ""],
    steps: int,
) -> Fast:
    """The adapted parameters after all inner steps, made to be differentiated by the meta-parameters."""
    fast = adaptation.start(meta_params)
    if steps == 0:
        return fast
    keys = jax.random.split(key, steps)

    def step(fast: Fast, key_and_index: tuple[Array, Array]) -> tuple[Fast, None]:
        return adaptation.step(model, meta_params, fast, loss_of, *key_and_index), None

    if steps > 1:
        fast, _ = jax.lax.scan(step, fast, (keys[:-1], jnp.arange(steps - 1)))
    return adaptation.last_step(model, meta_params, fast, loss_of, keys[-1], steps - 1)


def adaptation_path(
    adaptation: Adaptation,
    model: Model,
    meta_params: MetaParams,
    loss_of: LossOf,
    key: Key[Array, ""],
    steps: int,
    observe: Callable[[Fast], Any],
) -> Any:
    """`observe` of what is adapted after 0, 1, ... `steps` inner steps, stacked along the first axis."""

    def observed_step(fast: Fast, key_and_index: tuple[Array, Array]) -> tuple[Fast, Any]:
        fast = adaptation.step(model, meta_params, fast, loss_of, *key_and_index)
        return fast, observe(fast)

    fast = adaptation.start(meta_params)
    _, later = jax.lax.scan(observed_step, fast, (jax.random.split(key, steps), jnp.arange(steps)))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), observe(fast), later)
