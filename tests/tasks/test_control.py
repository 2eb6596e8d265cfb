"""Environments, trajectories, advantages and estimators."""

import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from twmaml.models.mlp import MLP
from twmaml.models.policy import Categorical, CategoricalPolicy, Gaussian, GaussianPolicy
from twmaml.space.axis import Interval, Nuisance, Segments
from twmaml.tasks.control.advantages import discounted_sums, generalised_advantages, linear_baseline, standardised
from twmaml.tasks.control.classic import CartPole, Pendulum
from twmaml.tasks.control.environment import Environment, Transition
from twmaml.tasks.control.estimators import ESTIMATORS, dice, low_variance_curvature
from twmaml.tasks.control.navigation import Navigation
from twmaml.tasks.control.rollouts import Rollouts, roll_out
from twmaml.tasks.reinforcement import ReinforcementLearning

RANGE = Interval(-0.5, 0.5, 4)
NAVIGATION = Navigation(RANGE, RANGE, 6)
LECUN = jax.nn.initializers.lecun_normal()


@dataclass(frozen=True)
class Countdown(Environment):
    """Ends after so many actions; would give a reward of 100 for any that comes later."""

    length: Interval
    horizon: int

    observations, actions, discrete = 1, 2, True

    @property
    def return_range(self):
        return 0.0, 10.0

    def reset(self, key, task):
        return jnp.int32(0), jnp.zeros(1)

    def step(self, key, state, action, task):
        over = state >= task["length"]
        return Transition(state + 1, state[None] + 1.0, jnp.where(over, 100.0, 1.0), state + 1 >= task["length"])

    def succeeded(self, state, task):
        return state == task["length"]


class NoActions(Countdown):
    actions = None


class OtherObservation(Countdown):
    observations = 3


class NoTransition(Countdown):
    def step(self, key, state, action, task) -> Any:
        return tuple(super().step(key, state, action, task))


class OtherState(Countdown):
    def step(self, key, state, action, task):
        return super().step(key, state, action, task)._replace(state=jnp.zeros(2))


class UnknownParameter(Countdown):
    def step(self, key, state, action, task):
        return super().step(key, state * task["weight"], action, task)


class ManyRewards(Countdown):
    def step(self, key, state, action, task):
        return super().step(key, state, action, task)._replace(reward=jnp.zeros(2))


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (NoActions, "must have actions, an integer"),
        (OtherObservation, r"the observation of reset must have shape \(3,\)\. Got \(1,\)"),
        (NoTransition, "step must return a Transition. Got tuple"),
        (OtherState, "step must return a state of the form that reset gives"),
        (UnknownParameter, "KeyError: 'weight'"),
        (ManyRewards, r"the reward must have shape \(\)\. Got \(2,\)"),
    ],
)
def test_an_environment_that_does_not_keep_the_contract_is_refused_by_name(environment, line):
    with pytest.raises(ValueError, match=f"{environment.__name__}.*{line}"):
        environment(Interval(1.0, 9.0, 4), 8)


def chance(observations) -> Any:
    return Categorical(jnp.zeros((*observations.shape[:-1], 2)))


def still(observations) -> Any:
    return Gaussian(jnp.zeros_like(observations), jnp.full_like(observations, -20.0))


def test_nothing_counts_after_the_end_of_an_episode_and_nothing_restarts():
    environment = Countdown(Interval(1.0, 9.0, 4), 8)
    rollouts = roll_out(environment, {"length": 3}, chance, jax.random.key(0), 5)
    np.testing.assert_array_equal(rollouts.returns, 3)
    np.testing.assert_array_equal(rollouts.valid, np.tile(np.arange(8) < 3, (5, 1)))
    np.testing.assert_array_equal(rollouts.rewards[:, 3:], 0)
    assert rollouts.successes is not None
    assert rollouts.successes.all()  # the state is the one at the end, not one of after it
    unfinished = roll_out(environment, {"length": 20}, chance, jax.random.key(0), 5)
    assert unfinished.valid.all()
    assert unfinished.successes is not None
    assert not unfinished.successes.any()


def test_trajectories_are_those_of_the_policy_and_of_the_task():
    policy = GaussianPolicy([4], "tanh", LECUN, 2, -1.0)
    weights = policy.init(jax.random.key(1), jnp.zeros(2))
    task = NAVIGATION.parameters_of({"goal_x": 0.3, "goal_y": -0.2})
    rollouts = roll_out(NAVIGATION, task, partial(policy.apply, weights), jax.random.key(0), 3)
    moves = np.clip(np.asarray(rollouts.actions), -0.1, 0.1)
    places = np.cumsum(moves, axis=1)
    np.testing.assert_allclose(rollouts.observations[:, 1:], places[:, :-1], atol=1e-6)
    distances = np.hypot(places[..., 0] - 0.3, places[..., 1] + 0.2)
    np.testing.assert_allclose(rollouts.rewards, -distances, rtol=1e-5)
    assert len({*np.asarray(rollouts.returns).tolist()}) == 3
    again = roll_out(NAVIGATION, task, partial(policy.apply, weights), jax.random.key(0), 3)
    np.testing.assert_array_equal(rollouts.actions, again.actions)


def test_nothing_of_a_trajectory_is_differentiated():
    policy = GaussianPolicy([], "tanh", LECUN, 2)
    task = NAVIGATION.parameters_of({"goal_x": 0.3, "goal_y": -0.2})

    def total(weights):
        rollouts = roll_out(NAVIGATION, task, partial(policy.apply, weights), jax.random.key(0), 3)
        return jnp.sum(rollouts.rewards) + jnp.sum(rollouts.actions) + jnp.sum(rollouts.observations)

    gradient = jax.grad(total)(policy.init(jax.random.key(1), jnp.zeros(2)))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("model", "environment"),
    [
        (MLP([2], "tanh", LECUN, 2), NAVIGATION),
        (CategoricalPolicy([2], "tanh", LECUN, 2), NAVIGATION),
        (GaussianPolicy([2], "tanh", LECUN, 3), NAVIGATION),
        (GaussianPolicy([2], "tanh", LECUN, 2), Countdown(RANGE, 4)),
    ],
)
def test_a_policy_with_other_actions_is_refused(model, environment):
    weights = model.init(jax.random.key(0), jnp.zeros(environment.observations))
    with pytest.raises(ValueError, match=f"an action of {type(environment).__name__} is"):
        roll_out(environment, {"length": 3, **vars(environment)}, partial(model.apply, weights), jax.random.key(0), 2)


@given(st.integers(1, 6), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_advantages_are_sums_of_temporal_differences(length, discount, trace, seed):
    random = np.random.default_rng(seed)
    rewards, values = random.normal(size=(2, 2, length))
    valid = np.arange(length) < random.integers(1, length + 1, (2, 1))
    rewards, baseline = rewards * valid, np.pad(values * valid, ((0, 0), (0, 1)))
    errors = rewards + discount * baseline[:, 1:] - baseline[:, :-1]
    expected = [
        [sum((discount * trace) ** k * row[t + k] for k in range(length - t)) for t in range(length)] for row in errors
    ]
    first, second, third = map(jnp.asarray, (rewards, values, valid))
    ours = generalised_advantages(first, second, third, discount, trace)
    np.testing.assert_allclose(np.where(valid, ours, 0), np.where(valid, expected, 0), atol=1e-5)


def test_with_all_of_the_trace_an_advantage_is_the_return_less_the_baseline():
    rewards, values = jax.random.normal(jax.random.key(0), (2, 3, 5))
    ours = generalised_advantages(rewards, values, jnp.ones((3, 5), bool), 0.9, 1.0)
    np.testing.assert_allclose(ours, discounted_sums(rewards, 0.9) - values, atol=1e-5)


def test_the_baseline_is_least_squares_over_the_steps_that_count():
    observations = jax.random.normal(jax.random.key(0), (20, 7, 2))
    time = jnp.arange(7.0) / 100
    returns = 3 * observations[..., 0] - observations[..., 1] ** 2 + 40 * time + 2
    valid = jnp.arange(7) < jnp.arange(20)[:, None] % 6 + 2
    disturbed = jnp.where(valid, returns, 1e3)
    values = linear_baseline(observations, disturbed, valid, ridge=1e-6)
    np.testing.assert_allclose(jnp.where(valid, values - returns, 0), 0, atol=2e-2)
    # A constant is all that is left when nothing else varies: then it is the mean.
    values = linear_baseline(jnp.zeros((9, 1, 1)), jnp.arange(9.0)[:, None], jnp.ones((9, 1), bool), ridge=1e-6)
    np.testing.assert_allclose(values, 4, rtol=1e-4)


def test_standardised_advantages_have_mean_0_and_deviation_1_where_they_count():
    values = jax.random.normal(jax.random.key(0), (4, 6)) * 5 + 3
    valid = jnp.arange(6) < jnp.arange(4)[:, None] + 2
    counted = np.asarray(standardised(values, valid))[np.asarray(valid)]
    np.testing.assert_allclose([counted.mean(), counted.std()], [0, 1], atol=1e-5)
    assert np.isfinite(standardised(jnp.ones((2, 2)), jnp.ones((2, 2), bool))).all()


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_every_estimator_has_the_gradient_of_the_policy_gradient_theorem(estimator):
    log_probs, advantages = jax.random.normal(jax.random.key(0), (2, 3, 4))
    valid = jnp.arange(4) < jnp.array([[4], [2], [1]])
    gradient = jax.grad(estimator)(log_probs, advantages, valid)
    np.testing.assert_allclose(gradient, jnp.where(valid, advantages, 0), atol=1e-6)
    np.testing.assert_allclose(estimator(log_probs, advantages, valid), jnp.sum(advantages, where=valid), rtol=1e-5)


def test_curvatures_are_the_products_that_an_estimator_keeps():
    advantages = jnp.array([[2.0, 3.0]])
    valid = jnp.ones((1, 2), bool)
    scores = jnp.array([[0.7, -0.4]])  # of log-probabilities that are linear in one weight

    def curvature(estimator):
        return jax.grad(jax.grad(lambda w: estimator(w * scores, advantages, valid)))(0.0)

    kept = 2.0 * 0.7**2 + 3.0 * 0.4**2
    np.testing.assert_allclose(curvature(low_variance_curvature), kept, rtol=1e-5)
    # d²/dw² of 2 r₁ + 3 (r₁ r₂ − r₁), r the ratios: the second advantage has the scores of both steps.
    np.testing.assert_allclose(curvature(dice), 2.0 * 0.7**2 + 3.0 * ((0.7 - 0.4) ** 2 - 0.7**2), rtol=1e-5)


def test_dice_has_the_first_and_the_second_derivative_of_a_return():
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
    try:
        from estimators import derivatives  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    for order, values in derivatives(dice, 50, 20_000).items():
        (ours, error), (theirs, other) = values["estimator"], values["differences"]
        assert abs(ours - theirs) < 3 * np.hypot(error, other), order
        assert max(error, other) < 0.05 * abs(ours), order


def meta_gradient(family, weights, model, key):
    """Of one task, one inner step."""
    episode = family.episode(key, jnp.array([0.2, 0.1]), ())

    def loss(weights, key, part):
        predict = partial(model.apply, weights)
        return family.outcome(predict, family.collect(key, episode, part, predict, 4)).loss

    def adapted_loss(weights):
        first, second = jax.random.split(key)
        gradient = jax.grad(loss)(weights, first, "support")
        return loss(jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient), second, "query")

    return ravel_pytree(jax.grad(adapted_loss)(weights))[0]


def test_the_estimator_of_a_family_is_the_configured_one():
    model = GaussianPolicy([], "tanh", LECUN, 2)
    weights = model.init(jax.random.key(3), jnp.zeros(2))
    gradients = [
        meta_gradient(ReinforcementLearning(NAVIGATION, estimator=name), weights, model, jax.random.key(0))
        for name in ("low_variance_curvature", "dice")
    ]
    assert not np.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize(("discount", "trace", "standardise"), [(0.9, 1.0, True), (0.9, 0.4, False)])
def test_the_gradient_of_a_family_has_the_advantages_that_are_configured(discount, trace, standardise):
    family = ReinforcementLearning(NAVIGATION, discount, trace, standardise)
    model = GaussianPolicy([], "tanh", LECUN, 2)
    weights = model.init(jax.random.key(3), jnp.zeros(2))
    episode = family.episode(jax.random.key(0), jnp.array([0.2, 0.1]), ())
    examples = family.collect(jax.random.key(1), episode, "support", partial(model.apply, weights), 4)
    returns = discounted_sums(examples.rewards, discount)
    values = linear_baseline(examples.observations, returns, examples.valid)
    advantages = np.asarray(generalised_advantages(examples.rewards, values, examples.valid, discount, trace))
    if standardise:
        advantages = (advantages - advantages.mean()) / advantages.std()

    def expected(weights):
        return -jnp.mean(model.apply(weights, examples.observations).log_prob(examples.actions) * advantages)

    gradient = jax.grad(lambda weights: family.outcome(partial(model.apply, weights), examples).loss)(weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), gradient, jax.grad(expected)(weights))


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(-3, 3), st.integers(0, 99))
def test_a_score_is_never_negative_and_falls_with_the_return(x, y, push, seed):
    family = ReinforcementLearning(NAVIGATION)

    def policy(observations) -> Any:
        return Gaussian(jnp.full_like(observations, push), jnp.zeros_like(observations))

    episode = family.episode(jax.random.key(seed), jnp.array([x, y], jnp.float32), ())
    examples = family.collect(jax.random.key(seed), episode, "query", policy, 2)
    outcome = family.outcome(policy, examples)
    low, high = NAVIGATION.return_range
    assert low <= outcome.metrics["return"] <= high
    np.testing.assert_allclose(outcome.score, (high - outcome.metrics["return"]) / (high - low), rtol=1e-5)
    assert 0 <= outcome.score <= 1


def test_a_return_above_the_range_scores_0():
    environment = Countdown(Interval(1.0, 30.0, 2), 25)
    family = ReinforcementLearning(environment)
    examples = roll_out(environment, {"length": 20}, chance, jax.random.key(0), 2)
    assert family.outcome(chance, examples).score == 0


def test_success_is_a_metric_where_the_environment_defines_it():
    assert [metric.key for metric in ReinforcementLearning(NAVIGATION).metrics] == ["return", "success"]
    pendulum = Pendulum(Interval(0.5, 1.5, 2), 1.0, 5)
    assert [metric.key for metric in ReinforcementLearning(pendulum).metrics] == ["return"]
    home = Navigation(Interval(-0.05, 0.05, 2), 0.0, 3)
    stays = roll_out(home, home.parameters_of({"goal_x": 0.05}), still, jax.random.key(0), 2)
    assert stays.successes is not None
    assert stays.successes.all()


def test_a_task_of_a_user_has_every_parameter_that_varies():
    environment = Navigation(Interval(0.0, 180.0, 2, "deg"), Nuisance(0.0, 1.0), 5)
    parameters = environment.parameters_of({"goal_x": 90, "goal_y": 0.25})
    np.testing.assert_allclose([parameters["goal_x"], parameters["goal_y"]], [np.pi / 2, 0.25], rtol=1e-6)
    for task in ({"goal_x": 90}, {"goal_x": 1, "goal_y": 1, "goal_z": 1}, {}):
        with pytest.raises(ValueError, match="a task needs goal_x, goal_y"):
            environment.parameters_of(task)


def test_cart_pole_pushes_the_other_way_round_with_a_negative_gain():
    environment = CartPole(Segments([(-15.0, -5.0, 2), (5.0, 15.0, 2)]), Interval(0.25, 1.5, 2), 10)
    state, _ = environment.reset(jax.random.key(0), {})

    def after(gain, action, length=0.5):
        task = environment.parameters_of({"force_gain": gain, "pole_length": length})
        return environment.step(jax.random.key(0), state, jnp.int32(action), task).observation

    np.testing.assert_array_equal(after(10, 1), after(-10, 0))
    assert after(10, 1)[1] > after(10, 0)[1]
    assert after(10, 1, 0.25)[3] < after(10, 1, 1.5)[3]  # a short pole turns faster, against the push
    gym, defaults = pytest.importorskip("gymnax").make("CartPole-v1")
    np.testing.assert_array_equal(after(10, 1), gym.step_env(jax.random.key(0), state, 1, defaults)[0])


def test_a_heavy_pendulum_is_turned_less():
    environment = Pendulum(Interval(0.5, 1.5, 2), Interval(0.5, 1.5, 2), 10)
    state, _ = environment.reset(jax.random.key(0), {})

    def turned(mass):
        task = environment.parameters_of({"mass": mass, "length": 1.0})
        steps = (environment.step(jax.random.key(0), state, jnp.array([push]), task) for push in (1.0, 0.0))
        pushed, not_pushed = (step.observation[2] for step in steps)
        return float(pushed - not_pushed)

    np.testing.assert_allclose(turned(1.0), 3 * 2.0 * 0.05, rtol=1e-4)
    np.testing.assert_allclose(turned(0.5), 2 * turned(1.0), rtol=1e-4)


@pytest.mark.parametrize(
    "environment",
    [
        NAVIGATION,
        CartPole(Segments([(-15.0, -5.0, 2), (5.0, 15.0, 2)]), 0.5, 6),
        Pendulum(Interval(0.5, 1.5, 2), 1.0, 6),
        Countdown(Interval(1.0, 9.0, 4), 8),
    ],
    ids=lambda environment: type(environment).__name__,
)
def test_returns_are_in_the_range_and_pictures_can_be_drawn(environment):
    family = ReinforcementLearning(environment)
    policy: Any = CategoricalPolicy if environment.discrete else GaussianPolicy
    model = policy([3], "tanh", LECUN, environment.actions)
    predict = partial(model.apply, model.init(jax.random.key(0), family.example_input))
    episode = family.episode(jax.random.key(1), family.grid.centres()[0], ())
    rollouts = family.collect(jax.random.key(2), episode, "query", predict, 4)
    low, high = environment.return_range
    assert (low <= np.asarray(rollouts.returns)).all()
    assert (np.asarray(rollouts.returns) <= high).all()
    picture = family.picture(
        episode, None, lambda observe: jax.tree.map(lambda x: jnp.stack([x] * 4), observe(predict))
    )
    figure = Figure()
    first, second = figure.subplots(1, 2)
    family.draw_picture(first, jax.tree.map(np.asarray, picture))
    labels = first.get_legend_handles_labels()[1]
    assert [label for label in labels if label.startswith("after")] == [
        "after 0 inner steps",
        "after 1 inner step",
        "after 3 inner steps",
    ]
    colours = {line.get_color() for line in first.lines if str(line.get_label()).startswith("after")}
    assert len(colours) == 3
    task = {name: float(value) for name, value in episode.parameters.items() if isinstance(value, Array_like)}
    environment.draw_moment(second, task, _paths(rollouts), 2)
    figure.canvas.draw_idle()


Array_like = jax.Array | float | int


def _paths(rollouts: Rollouts):
    from twmaml.tasks.control.environment import Paths

    return Paths(*(np.asarray(part)[:1] for part in rollouts.paths))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # brax's own, of what it builds on
@pytest.mark.parametrize("name", ["halfcheetah", "ant"])
def test_a_body_of_brax_takes_a_few_real_steps(name):
    pytest.importorskip("brax")
    from twmaml.tasks.control.locomotion import Ant, HalfCheetah

    environment = HalfCheetah(Interval(0.0, 2.0, 2), 3) if name == "halfcheetah" else Ant(Interval(0.0, 360.0, 2), 3)
    model = GaussianPolicy([3], "tanh", LECUN, environment.actions)
    predict = partial(model.apply, model.init(jax.random.key(0), jnp.zeros(environment.observations)))
    (axis,) = environment.grid.names
    task = environment.parameters_of({axis: 1.0})
    rollouts = jax.jit(lambda key: roll_out(environment, task, predict, key, 2))(jax.random.key(1))
    assert np.isfinite(rollouts.rewards).all()
    assert not np.array_equal(rollouts.observations[:, 0], rollouts.observations[:, 1])
    other = environment.parameters_of({axis: 2.0})
    again = jax.jit(lambda key: roll_out(environment, other, predict, key, 2))(jax.random.key(1))
    np.testing.assert_array_equal(rollouts.observations[:, 1], again.observations[:, 1])
    assert not np.array_equal(rollouts.rewards, again.rewards)


@pytest.mark.parametrize(("module", "extra"), [("gymnax", "control"), ("brax", "brax")])
def test_a_missing_extra_is_named(module, extra, monkeypatch):
    from twmaml.errors import ConfigurationError
    from twmaml.tasks.control import classic, locomotion

    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=re.escape(f'pip install -e ".[{extra}]"')):
        (
            classic._gymnax.__wrapped__
            if module == "gymnax"
            else partial(locomotion._brax.__wrapped__, backend="spring")
        )("CartPole" if module == "gymnax" else "ant")
