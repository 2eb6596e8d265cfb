"""The method: one meta-step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree, UInt32

from twmaml.adaptation.base import Adaptation, Judge, bind
from twmaml.meta_learning.random_numbers import loop_key
from twmaml.meta_learning.task_share import TaskShare
from twmaml.models.base import Batch, Model
from twmaml.samplers.base import Draw, Report, Sampler, View
from twmaml.space.priority_queue import PriorityQueue, empty_queue, record
from twmaml.tasks.base import Part, TaskFamily
from twmaml.tasks.regression import is_mean_squared_error
from twmaml.types import Fast, LossOf, MetaParams, Outcome, Predict, Step

# Folded into keys that are split as well. (0 would not do: it gives the first key of the split.)
_UPDATE, _EPISODE = 0x75706474, 0x65706973


class RunState(NamedTuple):
    """Everything that training changes, and the key that all its randomness comes from."""

    meta_params: MetaParams
    opt_state: optax.OptState
    queue: PriorityQueue
    sampler: PyTree[Array]
    """The sampler's own state."""
    key: Key[Array, ""]
    step: Step

    @property
    def view(self) -> View:
        """The part that the sampler decides from."""
        return View(self.queue, self.sampler, self.step)


@dataclass(frozen=True)
class MetaLearner:
    """The configured parts of a run, and how they work together."""

    family: TaskFamily
    sampler: Sampler
    model: Model
    adaptation: Adaptation
    optimizer: optax.GradientTransformation
    meta_batch: int
    shots: int
    queries: int
    task_devices: int = 1
    """Devices that share the tasks of a meta-batch; if not 1, only inside a mesh with an axis `tasks` of that size."""
    tasks_at_once: int | None = None
    """Tasks that are adapted side by side, by a device; all if None."""

    def init(self, seed: int | UInt32[Array, ""]) -> RunState:
        """The state before the first meta-step; all of a run's randomness follows from the seed."""
        init_key, own_key = jax.random.split(loop_key(seed))
        meta_params = self.adaptation.init(init_key, self.model, self.family.example_input)
        return RunState(
            meta_params=meta_params,
            opt_state=self.optimizer.init(meta_params),
            queue=empty_queue(self.family.grid.size),
            sampler=self.sampler.init(self.family.grid),
            key=own_key,
            step=jnp.int32(0),
        )

    def meta_step(self, state: RunState, data: PyTree[Array] = ()) -> tuple[RunState, Draw, Outcome]:
        """One update; the draw that is returned has the weights that counted."""
        grid, step_key = self.family.grid, jax.random.fold_in(state.key, state.step)
        draw_key, tasks_key = jax.random.split(step_key)
        draw = self.sampler.draw(draw_key, grid, state.view, self.meta_batch)

        gradient, outcomes, weights = self._meta_gradient(state, tasks_key, draw, data)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.meta_params)
        meta_params = optax.apply_updates(state.meta_params, updates)

        queue = record(state.queue, draw.cells, outcomes.score, state.step)
        report = Report(draw, outcomes.loss, outcomes.score, state.queue)
        view = state.view._replace(queue=queue)
        own = self.sampler.update(jax.random.fold_in(step_key, _UPDATE), grid, report, view)
        state = RunState(meta_params, opt_state, queue, own, state.key, state.step + 1)
        return state, draw._replace(weights=weights), outcomes

    def _meta_gradient(
        self, state: RunState, key: Key[Array, ""], draw: Draw, data: PyTree[Array]
    ) -> tuple[MetaParams, Outcome, Float[Array, " tasks"]]:
        """Gradient of the weighted mean of the objectives, the outcome of every task, and what each counted for."""
        share = TaskShare(self.meta_batch, self.task_devices)
        keys, tasks = share.own((jax.random.split(key, self.meta_batch), draw.tasks))

        def weigh(outcomes: Outcome) -> tuple[Float[Array, " share"], tuple[Outcome, Float[Array, " tasks"]]]:
            """By what each objective is multiplied; the outcomes of all tasks, and what each counts for."""
            outcomes = share.gather(outcomes)
            losses, scores = jax.lax.stop_gradient((outcomes.loss, outcomes.score))
            weights = self.sampler.weigh(Report(draw, losses, scores, state.queue), state.view)
            return share.weights(weights) / self.meta_batch, (outcomes, weights)

        def meta_loss(meta_params: MetaParams) -> tuple[Array, tuple[Outcome, Array]]:
            def adapt_and_judge(key: Key[Array, ""], task: Array) -> tuple[Array, Outcome]:
                return self.adapt_and_judge(meta_params, key, task, data, state.step)

            objectives, outcomes = self._over_tasks(adapt_and_judge, keys, tasks)
            coefficients, besides = weigh(outcomes)
            return jnp.sum(coefficients * objectives), besides

        found = self._squared_error_gradient(state.meta_params, keys, tasks, data, weigh)
        gradient, (outcomes, weights) = jax.grad(meta_loss, has_aux=True)(state.meta_params) if found is None else found
        return share.total(gradient), outcomes, weights

    def _squared_error_gradient(
        self, meta_params: MetaParams, keys: Any, tasks: Any, data: PyTree[Array], weigh: Callable[[Outcome], Any]
    ) -> tuple[MetaParams, Any] | None:
        """The same as by autodiff, in the form that the adaptation has for mean squared errors; None without."""
        if not is_mean_squared_error(self.family) or self.tasks_at_once is not None:
            return None

        def examples(key: Key[Array, ""], task: Array) -> tuple[Any, Any]:
            episode, support, _, query_key = self.begin(key, task, data)
            return support, self._collect(query_key, episode, "query", lambda inputs: inputs, self.queries)

        support, query = (Batch(*part) for part in jax.vmap(examples)(keys, tasks))
        found = self.adaptation.meta_gradient(
            self.model, meta_params, support, query, lambda losses: weigh(Outcome(losses, losses, {}))
        )
        return None if found is None else (found[0], found[2])

    def _over_tasks(self, adapt_and_judge: Callable[..., Any], keys: Any, tasks: Any) -> Any:
        """All tasks side by side, or blocks of them after one another, of which nothing is kept for the way back."""
        if self.tasks_at_once is None:
            return jax.vmap(adapt_and_judge)(keys, tasks)
        one = jax.checkpoint(lambda each: adapt_and_judge(*each))
        return jax.lax.map(one, (keys, tasks), batch_size=self.tasks_at_once)

    def adapt_and_judge(
        self, meta_params: MetaParams, key: Key[Array, ""], task: Float[Array, " axes"], data: PyTree[Array], step: Step
    ) -> tuple[Float[Array, ""], Outcome]:
        """Adapts to one task on support data: the objective, and how the adapted network does on query data."""
        episode, support, adapt_key, query_key = self.begin(key, task, data)
        loss_of = self.loss_of(episode, support)
        judge = self.judge(meta_params, query_key, episode, self.queries)
        return self.adaptation.objective(self.model, meta_params, loss_of, judge, adapt_key, step)

    def begin(self, key: Key[Array, ""], task: Float[Array, " axes"], data: PyTree[Array]) -> tuple[Any, Any, Any, Any]:
        """A task's episode and support, and the keys of adapting to it and of its query."""
        support_key, adapt_key, query_key = jax.random.split(key, 3)
        episode = self.episode(key, task, data)
        return episode, self.collect_support(support_key, episode), adapt_key, query_key

    def episode(self, key: Key[Array, ""], task: Float[Array, " axes"], data: PyTree[Array]) -> Any:
        """The part that support and query of a task share, drawn by a key of its own out of the task's."""
        return self.family.episode(jax.random.fold_in(key, _EPISODE), task, data)

    def collect_support(self, key: Key[Array, ""], episode: Any) -> Any:
        """The data to adapt on; None where it is collected anew at each step."""
        if self.family.on_policy:
            return None
        return self._collect(key, episode, "support", lambda inputs: inputs, self.shots)

    def _collect(self, key: Key[Array, ""], episode: Any, part: Part, predict: Predict, n: int) -> Any:
        """Examples of an episode, computed once: without the barrier XLA repeats them in everything that reads them."""
        return jax.lax.optimization_barrier(self.family.collect(key, episode, part, predict, n))

    def loss_of(self, episode: Any, support: Any) -> LossOf:
        """The loss that a task's inner steps descend: on one support set, or collected anew at each step."""

        def loss(predict: Predict, step_key: Key[Array, ""]) -> Array:
            on_policy = self.family.on_policy
            collected = self._collect(step_key, episode, "support", predict, self.shots) if on_policy else support
            return self.family.outcome(predict, collected).loss

        return loss

    def judge(self, meta_params: MetaParams, key: Key[Array, ""], episode: Any, n: int) -> Judge:
        """How what is adapted does on `n` fresh examples."""

        def outcome(fast: Fast) -> Outcome:
            predict = bind(self.adaptation, self.model, meta_params, fast)
            return self.family.outcome(predict, self._collect(key, episode, "query", predict, n))

        return outcome
