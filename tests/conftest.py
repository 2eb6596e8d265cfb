import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings

from twmaml.adaptation import MAML
from twmaml.grid import Axis, ParameterGrid
from twmaml.models import MLP
from twmaml.runner import MetaLearner
from twmaml.samplers import EpsilonGreedy, Proportional, Uniform
from twmaml.tasks.sinusoid import Sinusoid

jax.config.update("jax_num_cpu_devices", 2)  # so that tests of several runs are also tests of several devices

settings.register_profile("twmaml", deadline=None, max_examples=25)  # a first example compiles
settings.load_profile("twmaml")

SAMPLERS = {
    "uniform": Uniform(),
    "epsilon_greedy": EpsilonGreedy(0.3),
    "weighted": Proportional("losses", False),
    "importance": Proportional("losses", True),
    "delta": Proportional("deltas", False),
    "importance_delta": Proportional("deltas", True),
    "interpolated": Proportional("losses", False, interpolate=True),
    "interpolated_importance": Proportional("losses", True, interpolate=True),
}


@pytest.fixture(params=list(SAMPLERS))
def sampler(request):
    return SAMPLERS[request.param]


@pytest.fixture
def grid():
    return ParameterGrid({"a": Axis(0.5, 4.5, 4), "b": Axis(0.0, 180.0, 5, "deg")})


@pytest.fixture
def make_learner():
    def make(sampler=None, **changes):
        parts = {
            "family": Sinusoid(Axis(0.5, 4.5, 4), Axis(0.0, 180.0, 5, "deg"), 1.0, -5.0, 5.0),
            "sampler": sampler or Uniform(),
            "model": MLP([8, 8], "tanh", jax.nn.initializers.lecun_normal()),
            "adaptation": MAML(0.01, 1),
            "optimizer": optax.adam(1e-3),
            "meta_batch": 6,
            "shots": 3,
            "queries": 4,
        }
        return MetaLearner(**{**parts, **changes})

    return make


def assert_trees_equal(first, second):
    first, second = (jax.tree.map(_raw, tree) for tree in (first, second))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def _raw(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
